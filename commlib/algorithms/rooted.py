"""Gather and scatter, and the broadcast and reduce that are built from them. N is the number of ranks.

S is the size of a shard in gather and scatter, and of the whole message in broadcast and reduce. *Virtual* ranks
count from the root, so that a binomial subtree is a run of neighbouring virtual ranks.
"""

from __future__ import annotations

from commlib.algorithms.entry import Entry, chunk_per_rank
from commlib.algorithms.shapes import binomial_spans, from_root, peers, root_of
from commlib.dsl import BufferLike, Program, Scratch


def scatter_allgather_broadcast(p: Program) -> None:
    """Scatter and allgather (van de Geijn): a binomial scatter of N parts, then each part goes round in a ring.

    Ranks that hold a part from the scatter already are not sent it again. Chunks: N. Steps: log2 N + N - 1 hops.
    Bytes sent by the root: at most 2(N - 1)/N S. Time: (log2 N + N - 1) alpha + 2(N - 1)/N S beta.
    Source: Barnett et al., "Interprocessor collective communication library" (1994); Thakur et al. (2005).
    """
    n, ranks = p.ranks, from_root(p)
    last = [n] + [0] * (n - 1)  # virtual rank v holds parts v to last[v] - 1
    p.chunk(ranks[0], "input", 0, n).copy(ranks[0], "output")
    for parent, child, size in binomial_spans(n):
        source: BufferLike = "input" if parent == 0 else "output"
        p.chunk(ranks[parent], source, child, size).copy(ranks[child], "output")
        last[child] = child + size
    for part in range(n):
        c = p.chunk(ranks[part], "output", part)
        for v in peers(n, part):
            c = p.chunk(ranks[v], "output", part) if v <= part < last[v] else c.copy(ranks[v])


def ring_reduce(p: Program) -> None:
    """Ring reduce-scatter, then gather: each chunk is reduced around the ring to one rank, which sends it to the root.

    Chunks: N. Steps: N hops. Bytes sent per rank: S, received by the root: 2(N - 1)/N S. Time: N alpha +
    2(N - 1)/N S beta. Source: Rabenseifner, "Optimization of collective reduction operations" (2004), with rings.
    """
    root, partial = root_of(p), p.scratch("partial", p.ranks)
    for i in range(p.ranks):
        first, *others = [*peers(p.ranks, i), i]
        c = p.chunk(first, "input", i)
        for rank in others:
            c = p.chunk(rank, "input", i).reduce(c, into="output" if rank == root else partial)
        c.copy(root, "output", i, channel=1)  # apart from the ring, which it would break up


def direct_gather(p: Program) -> None:
    """Direct: everyone sends its shard to the root.

    Chunks: 1. Steps: 1 hop. Bytes received by the root: (N - 1) S, the optimum. Time: alpha + (N - 1) S beta.
    """
    for rank in from_root(p):
        p.chunk(rank, "input").copy(root_of(p), "output", rank)


def binomial_gather(p: Program) -> None:
    """Binomial tree: in each round half of the ranks send all that they have gathered and are done.

    Chunks: 1. Steps: ceil(log2 N) hops. Bytes received by the root: (N - 1) S, the optimum; sent in all: about
    N/2 log2 N S. Time: log2 N alpha + (N - 1) S beta. Scratch: half of N S at most.
    Source: Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH" (2005).
    """
    ranks, rooms, sizes = from_root(p), _rooms(p), _subtrees(p.ranks)
    for v, rank in enumerate(ranks):
        c = p.chunk(rank, "input")
        if v == 0:
            c.copy(rank, "output", rank)
        elif sizes[v] > 1:
            c.copy(rank, rooms[sizes[v]], 0)
    for parent, child, size in reversed(binomial_spans(p.ranks)):
        source: BufferLike = rooms[size] if size > 1 else "input"
        if parent > 0:
            p.chunk(ranks[child], source, 0, size).copy(ranks[parent], rooms[sizes[parent]], child - parent)
            continue
        for offset, count in _unwrapped(p, child, size):
            c = p.chunk(ranks[child], source, offset, count)
            c.copy(ranks[0], "output", ranks[child + offset])


def direct_scatter(p: Program) -> None:
    """Direct: the root sends everyone its shard.

    Chunks: 1. Steps: 1 hop. Bytes sent by the root: (N - 1) S, the optimum. Time: alpha + (N - 1) S beta.
    """
    for rank in from_root(p):
        p.chunk(root_of(p), "input", rank).copy(rank, "output", 0)


def binomial_scatter(p: Program) -> None:
    """Binomial tree: in each round every rank that holds shards sends half of them on.

    Chunks: 1. Steps: ceil(log2 N) hops. Bytes sent by the root: (N - 1) S, the optimum; sent in all: about
    N/2 log2 N S. Time: log2 N alpha + (N - 1) S beta. Scratch: half of N S at most.
    Source: Thakur, Rabenseifner, Gropp (2005).
    """
    ranks, rooms, sizes = from_root(p), _rooms(p), _subtrees(p.ranks)
    p.chunk(ranks[0], "input", ranks[0]).copy(ranks[0], "output", 0)
    for parent, child, size in binomial_spans(p.ranks):
        target: BufferLike = rooms[size] if size > 1 else "output"
        if parent > 0:
            p.chunk(ranks[parent], rooms[sizes[parent]], child - parent, size).copy(ranks[child], target, 0)
            continue
        for offset, count in _unwrapped(p, child, size):
            c = p.chunk(ranks[0], "input", ranks[child + offset], count)
            c.copy(ranks[child], target, offset)
    for v, size in sizes.items():
        if v > 0 and size > 1:
            p.chunk(ranks[v], rooms[size], 0).copy(ranks[v], "output", 0)


def _subtrees(ranks: int) -> dict[int, int]:
    """The size of each virtual rank's binomial subtree."""
    return {0: ranks} | {child: size for _, child, size in binomial_spans(ranks)}


def _rooms(p: Program) -> dict[int, Scratch]:
    """A scratch buffer for each size of subtree; a rank uses only the one of its own size."""
    sizes = {size for _, _, size in binomial_spans(p.ranks) if size > 1}
    return {size: p.scratch(f"subtree of {size}", size) for size in sorted(sizes)}


def _unwrapped(p: Program, first: int, size: int) -> list[tuple[int, int]]:
    """Cut the run of virtual ranks first ... first + size - 1 where the ranks wrap round, as (offset, count)."""
    head = min(size, p.ranks - from_root(p)[first])
    return [(0, head), (head, size - head)] if head < size else [(0, size)]


ENTRIES = (
    Entry("broadcast", scatter_allgather_broadcast, ("large",), chunk_per_rank),
    Entry("reduce", ring_reduce, ("large",), chunk_per_rank),
    Entry("gather", direct_gather, ("small", "large")),
    Entry("gather", binomial_gather, ("small",)),
    Entry("scatter", direct_scatter, ("small", "large")),
    Entry("scatter", binomial_scatter, ("small",)),
)
