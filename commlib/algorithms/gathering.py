"""Allgather and reducescatter, each other's mirror image. N is the number of ranks, S the size of one shard."""

from __future__ import annotations

from commlib.algorithms.entry import NODES, Entry, power_of_two_ranks, whole_nodes
from commlib.algorithms.shapes import fold, peers
from commlib.dsl import BufferLike, Program


def ring_allgather(p: Program) -> None:
    """Ring: each shard goes round once.

    Chunks: 1. Steps: N - 1 hops. Bytes sent per rank: (N - 1) S, the optimum. Time: (N - 1)(alpha + S beta).
    Source: Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH" (2005).
    """
    for r in range(p.ranks):
        c = p.chunk(r, "input")
        c.copy(r, "output", r)
        for q in peers(p.ranks, r):
            c = c.copy(q, "output", r)


def allpairs_allgather(p: Program) -> None:
    """All pairs: everyone sends its shard to everyone.

    Chunks: 1. Steps: 1 hop. Bytes sent per rank: (N - 1) S, the optimum. Time: alpha + (N - 1) S beta, where every
    pair has a link. Source: Cowan et al., "MSCCLang: Microsoft collective communication language" (2023).
    """
    for r in range(p.ranks):
        c = p.chunk(r, "input")
        c.copy(r, "output", r)
        for q in peers(p.ranks, r):
            c.copy(q, "output", r)


def recursive_doubling_allgather(p: Program) -> None:
    """Recursive doubling: in round k, ranks 2^k apart exchange all the shards they have.

    Powers of two only (Bruck's does the rest). Chunks: 1. Steps: log2 N hops. Bytes sent per rank: (N - 1) S, the
    optimum. Time: log2 N alpha + (N - 1) S beta. Source: Thakur, Rabenseifner, Gropp (2005).
    """
    for r in range(p.ranks):
        p.chunk(r, "input").copy(r, "output", r)
    distance = 1
    while distance < p.ranks:
        for r in range(p.ranks):
            p.chunk(r, "output", r // distance * distance, distance).copy(r ^ distance)
        distance *= 2


def bruck_allgather(p: Program) -> None:
    """Bruck: in round k, each rank sends the shards it has to the rank 2^k before it; then all rotate locally.

    Chunks: 1. Steps: ceil(log2 N) hops. Bytes sent per rank: (N - 1) S, the optimum. Time: ceil(log2 N) alpha +
    (N - 1) S beta, and a local copy of N S. Scratch: N S. Source: Bruck et al., "Efficient algorithms for all-to-all
    communications in multiport message-passing systems" (1997).
    """
    n, rotated = p.ranks, p.scratch("rotated", p.ranks)
    for r in range(n):
        p.chunk(r, "input").copy(r, rotated, 0)
    distance = 1
    while distance < n:
        for r in range(n):
            p.chunk(r, rotated, 0, min(distance, n - distance)).copy((r - distance) % n, rotated, distance)
        distance *= 2
    for r in range(n):
        p.chunk(r, rotated, 0, n - r).copy(r, "output", r)
        if r > 0:
            p.chunk(r, rotated, n - r, r).copy(r, "output", 0)


def hierarchical_allgather(p: Program, nodes: int) -> None:
    """Hierarchical: each shard goes round the ranks of the same place in all nodes, and in each node to everyone.

    With L = N / nodes local ranks. Chunks: 1. Steps: nodes - 1 hops between nodes, 1 inside. Bytes sent per rank:
    (nodes - 1) S between nodes, (N - nodes) S inside. Time: nodes alpha + the larger of the two, as they overlap.
    Source: Cho et al., "BlueConnect" (2019), the allgather half.
    """
    local = p.ranks // nodes
    for r in range(p.ranks):
        c = p.chunk(r, "input")
        c.copy(r, "output", r)
        for hop in range(nodes):
            if hop > 0:
                c = c.copy((r + hop * local) % p.ranks, "output", r)
            node, place = divmod(c.rank, local)
            for other in peers(local, place):
                c.copy(node * local + other, "output", r)


def ring_reducescatter(p: Program) -> None:
    """Ring: each shard goes round once and ends, reduced, at its owner.

    Chunks: 1. Steps: N - 1 hops. Bytes sent per rank: (N - 1) S, the optimum. Time: (N - 1)(alpha + S beta).
    Source: Patarasuk, Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009).
    """
    partial = p.scratch("partial", p.ranks)
    for owner in range(p.ranks):
        first, *others = [*peers(p.ranks, owner), owner]
        c = p.chunk(first, "input", owner)
        for rank in others:
            c = p.chunk(rank, "input", owner).reduce(c, into=("output", 0) if rank == owner else partial)
        c.copy(owner, "output", 0)  # it is there already, unless the rank is alone


def allpairs_reducescatter(p: Program) -> None:
    """All pairs: everyone sends each shard to its owner, who reduces them.

    Chunks: 1. Steps: 1 hop. Bytes sent per rank: (N - 1) S, the optimum. Time: alpha + (N - 1) S beta, where every
    pair has a link. Source: Cowan et al., "MSCCLang" (2023).
    """
    for owner in range(p.ranks):
        c = p.chunk(owner, "input", owner)
        for q in peers(p.ranks, owner):
            c = c.reduce(p.chunk(q, "input", owner), into=("output", 0))
        c.copy(owner, "output", 0)  # it is there already, unless the rank is alone


def recursive_halving_reducescatter(p: Program) -> None:
    """Recursive halving: in each round, a rank gives half of the shards it still has to a partner and keeps half.

    Far ranks exchange the large parts. Other counts than powers of two first fold the extra ranks into neighbours,
    who send them their shard at the end. Chunks: 1. Steps: log2 N hops, 2 more when folding. Bytes sent per rank:
    (N - 1) S, the optimum; at most N S when folding. Time: log2 N alpha + (N - 1) S beta. Scratch: N S.
    Source: Thakur, Rabenseifner, Gropp (2005).
    """
    shape, partial = fold(p.ranks), p.scratch("partial", p.ranks)
    holds: dict[int, BufferLike] = dict.fromkeys(shape.core, "input")
    for even, odd in shape.pairs:
        p.chunk(even, "input", 0, p.ranks).reduce(p.chunk(odd, "input", 0, p.ranks), into=partial)
        holds[even] = partial
    begin = [*shape.core, p.ranks]  # core rank j answers for shards begin[j] to begin[j + 1] - 1
    size = len(shape.core) // 2
    while size:
        for j, rank in enumerate(shape.core):
            peer, low = shape.core[j ^ size], j // size * size
            span = begin[low], begin[low + size] - begin[low]
            mine, theirs = (p.chunk(q, holds[q], *span) for q in (rank, peer))
            mine.reduce(theirs, into=("output", 0) if span == (rank, 1) else partial)
        holds = dict.fromkeys(shape.core, partial)
        size //= 2
    for even, odd in shape.pairs:
        p.chunk(even, holds[even], even).copy(even, "output", 0)
        p.chunk(even, holds[even], odd).copy(odd, "output", 0)
    if p.ranks == 1:
        p.chunk(0, "input").copy(0, "output")


def hierarchical_reducescatter(p: Program, nodes: int) -> None:
    """Hierarchical: each node reduces among its own ranks, then the ranks of the same place in all nodes in rings.

    With L = N / nodes local ranks: rank g of a node first sums, over its node, the shards of the ranks g of all
    nodes. Chunks: 1. Steps: 1 hop inside a node, nodes - 1 between nodes. Bytes sent per rank: (N - nodes) S
    inside, (nodes - 1) S between nodes. Scratch: nodes S. Source: Cho et al., "BlueConnect" (2019), the first half.
    """
    local, partial = p.ranks // nodes, p.scratch("partial", nodes)
    for owner in range(p.ranks):
        home, place = divmod(owner, local)
        sums = {}
        for node in range(nodes):
            c = p.chunk(node * local + place, "input", owner)
            for other in peers(local, place):
                c = c.reduce(p.chunk(node * local + other, "input", owner), into=(partial, home))
            sums[node] = c
        first, *others = [*peers(nodes, home), home]
        c = sums[first]
        for node in others:
            c = sums[node].reduce(c, into=("output", 0) if node == home else (partial, home))
        c.copy(owner, "output", 0)  # it is there already, unless there is one node


ENTRIES = (
    Entry("allgather", ring_allgather, ("large",)),
    Entry("allgather", allpairs_allgather, ("small", "large")),
    Entry("allgather", recursive_doubling_allgather, ("small", "large"), refuses=power_of_two_ranks),
    Entry("allgather", bruck_allgather, ("small",)),
    Entry("allgather", hierarchical_allgather, ("large",), parameters=(NODES,), refuses=whole_nodes),
    Entry("reducescatter", ring_reducescatter, ("large",)),
    Entry("reducescatter", allpairs_reducescatter, ("small", "large")),
    Entry("reducescatter", recursive_halving_reducescatter, ("small",)),
    Entry("reducescatter", hierarchical_reducescatter, ("large",), parameters=(NODES,), refuses=whole_nodes),
)
