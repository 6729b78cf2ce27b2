"""Tree algorithms: broadcast, reduce and allreduce along binomial and double binary trees. S is the message size.

A tree reduces from its leaves up and broadcasts from its root down. A message is cut into chunks that follow one
another along the tree; with C chunks and depth D that takes D + C - 1 steps of S/C each.
"""

from __future__ import annotations

from commlib.algorithms.entry import Entry, Parameter, Values
from commlib.algorithms.shapes import Edges, binomial_tree, double_binary_tree, from_root, root_of
from commlib.dsl import BufferLike, Chunk, Program


def binomial_broadcast(p: Program) -> None:
    """Binomial tree: in each round every rank that has the message sends it to one that has not.

    Chunks: ``chunks`` (1). Steps: ceil(log2 N) hops. Bytes sent by the root: log2 N S. Time: log2 N (alpha + S beta).
    Source: Thakur, Rabenseifner, Gropp (2005).
    """
    tree = binomial_tree(p.ranks)
    for k in range(p.chunks):
        _broadcast(p, tree, p.chunk(root_of(p), "input", k))


def chain_broadcast(p: Program) -> None:
    """Pipelined chain: each rank passes each chunk on to the next as soon as it has it.

    Chunks: ``chunks`` = C. Steps: N + C - 2 hops. Bytes sent per rank: S, the optimum. Time: (N + C - 2)(alpha +
    S/C beta). Source: the pipelined ring broadcast of NCCL.
    """
    for k in range(p.chunks):
        c = p.chunk(root_of(p), "input", k)
        c.copy(c.rank, "output")
        for rank in from_root(p)[1:]:
            c = c.copy(rank, "output", k)


def double_binary_tree_broadcast(p: Program) -> None:
    """Double binary tree: half of the message runs down each of two trees that share no inner rank.

    Chunks: 2 C, for ``chunks`` = C per tree. Steps: about log2 N + 2 C hops. Bytes sent per rank: at most S.
    Time: about log2 N alpha + S beta. Source: Sanders, Speck, Traeff, "Two-tree algorithms for full bandwidth
    broadcast, reduction and scan" (2009).
    """
    trees = double_binary_tree(p.ranks)
    for k in range(p.chunks):
        _broadcast(p, trees[k % 2], p.chunk(root_of(p), "input", k))


def binomial_reduce(p: Program) -> None:
    """Binomial tree: in each round half of the ranks that still hold a sum give it to another and are done.

    Chunks: ``chunks`` (1). Steps: ceil(log2 N) hops. Bytes received by the root: log2 N S. Time: log2 N (alpha +
    S beta). Source: Thakur, Rabenseifner, Gropp (2005).
    """
    tree, partial = binomial_tree(p.ranks), p.scratch("partial", p.chunks)
    for k in range(p.chunks):
        _reduce(p, tree, k, partial)


def chain_reduce(p: Program) -> None:
    """Pipelined chain: each chunk passes from the farthest rank to the root and takes every rank's part along.

    Chunks: ``chunks`` = C. Steps: N + C - 2 hops. Bytes sent per rank: S, the optimum. Time: (N + C - 2)(alpha +
    S/C beta). Source: the pipelined ring reduce of NCCL.
    """
    ranks, partial = from_root(p), p.scratch("partial", p.chunks)
    for k in range(p.chunks):
        c = p.chunk(ranks[-1], "input", k)
        for rank in reversed(ranks[:-1]):
            c = p.chunk(rank, "input", k).reduce(c, into="output" if rank == root_of(p) else partial)
        c.copy(c.rank, "output")  # it is there already, unless the rank is alone


def double_binary_tree_reduce(p: Program) -> None:
    """Double binary tree: half of the message is reduced up each of two trees that share no inner rank.

    Chunks: 2 C, for ``chunks`` = C per tree. Steps: about log2 N + 2 C hops. Bytes sent per rank: S; received: at
    most S. Time: about log2 N alpha + S beta. Source: Sanders, Speck, Traeff (2009).
    """
    trees, partial = double_binary_tree(p.ranks), p.scratch("partial", p.chunks)
    for k in range(p.chunks):
        _reduce(p, trees[k % 2], k, partial)


def binomial_tree_allreduce(p: Program) -> None:
    """Binomial tree: reduce to rank 0, then broadcast from it.

    Chunks: ``chunks`` (1). Steps: 2 ceil(log2 N) hops. Bytes sent per rank: at most log2 N S. Time: 2 log2 N
    (alpha + S beta). Source: Thakur, Rabenseifner, Gropp (2005).
    """
    tree = binomial_tree(p.ranks)
    for k in range(p.chunks):
        total = _reduce(p, tree, k, "output")
        _broadcast(p, tree, total)


def double_binary_tree_allreduce(p: Program) -> None:
    """Double binary tree: each half of the message is reduced up a tree and broadcast down it.

    The two trees share no inner rank. Chunks: 2 C, for ``chunks`` = C per tree. Steps: about 2 log2 N + 2 C hops.
    Bytes sent per rank: at most 2 S. Time: about 2 log2 N alpha + 2 S beta. Source: Sanders, Speck, Traeff (2009);
    NCCL's tree allreduce.
    """
    trees = double_binary_tree(p.ranks)
    for k in range(p.chunks):
        total = _reduce(p, trees[k % 2], k, "output")
        _broadcast(p, trees[k % 2], total)


def _broadcast(p: Program, tree: Edges, c: Chunk) -> None:
    """Send the root's chunk down a tree, to everyone's output (the root's too)."""
    ranks = from_root(p)
    held = {0: c}
    c.copy(c.rank, "output")
    for parent, child in tree:
        held[child] = held[parent].copy(ranks[child], "output")


def _reduce(p: Program, tree: Edges, k: int, partial: BufferLike) -> Chunk:
    """Reduce everyone's input chunk k up a tree: inner ranks add in ``partial``, the root in its output."""
    ranks = from_root(p)
    held = {v: p.chunk(rank, "input", k) for v, rank in enumerate(ranks)}
    for parent, child in reversed(tree):
        held[parent] = held[parent].reduce(held[child], into="output" if parent == 0 else partial)
    return held[0].copy(ranks[0], "output")  # it is there already, unless the rank is alone


def _given(_ranks: int, values: Values) -> int:
    return values["chunks"]


def _on_two_trees(_ranks: int, values: Values) -> int:
    return 2 * values["chunks"]


def _pipeline(default: int) -> tuple[Parameter, ...]:
    return (Parameter("chunks", default, "chunks that follow one another"),)


_PER_TREE = (Parameter("chunks", 4, "chunks that follow one another along each of the two trees"),)

ENTRIES = (
    Entry("allreduce", binomial_tree_allreduce, ("small",), _given, _pipeline(1)),
    Entry("allreduce", double_binary_tree_allreduce, ("large",), _on_two_trees, _PER_TREE),
    Entry("broadcast", binomial_broadcast, ("small",), _given, _pipeline(1)),
    Entry("broadcast", chain_broadcast, ("large",), _given, _pipeline(8)),
    Entry("broadcast", double_binary_tree_broadcast, ("large",), _on_two_trees, _PER_TREE),
    Entry("reduce", binomial_reduce, ("small",), _given, _pipeline(1)),
    Entry("reduce", chain_reduce, ("large",), _given, _pipeline(8)),
    Entry("reduce", double_binary_tree_reduce, ("large",), _on_two_trees, _PER_TREE),
)
