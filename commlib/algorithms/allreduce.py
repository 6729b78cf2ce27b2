"""Allreduce: rings, all pairs, recursive exchange, and the hierarchy. N is the number of ranks, S the message size.

Every program is right in place and out of place: partial results go to the output, which in place overwrites an
input chunk only after its last use.
"""

from __future__ import annotations

from commlib.algorithms.entry import NODES, Entry, Values, chunk_per_rank, whole_nodes
from commlib.algorithms.shapes import fold, peers, power_below
from commlib.dsl import BufferLike, Program


def ring_allreduce(p: Program) -> None:
    """Ring: each chunk goes round once to be reduced and once more to be spread.

    Chunks: N. Steps: 2(N - 1) hops. Bytes sent per rank: 2(N - 1)/N S, the optimum. Time: 2(N - 1) alpha +
    2(N - 1)/N S beta. Source: Patarasuk, Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations" (2009).
    """
    n = p.ranks
    for i in range(n):
        c = p.chunk(i, "input", i)
        for hop in range(1, n):
            c = p.chunk((i + hop) % n, "input", i).reduce(c, into="output")
        c = c.copy(c.rank, "output")  # it is there already, unless the rank is alone
        for hop in range(n, 2 * n - 1):
            c = c.copy((i + hop) % n)


def allpairs_one_shot_allreduce(p: Program) -> None:
    """All pairs, one shot: everyone sends its whole input to everyone, and each rank reduces for itself.

    All ranks add in rank order, so that their results agree to the last bit. Chunks: 1. Steps: 1 hop. Bytes sent
    per rank: (N - 1) S. Time: alpha + (N - 1) S beta; the choice for very small messages. Scratch: N S.
    Source: MSCCL++'s and TensorRT-LLM's one-shot allreduce.
    """
    arrived = p.scratch("arrived", p.ranks)
    for r in range(p.ranks):
        for q in peers(p.ranks, r):
            p.chunk(r, "input").copy(q, arrived, r)
    for r in range(p.ranks):
        terms = [p.chunk(r, "input") if q == r else p.chunk(r, arrived, q) for q in range(p.ranks)]
        total = terms[0]
        for q in range(1, p.ranks):  # in place the output may be written only once the own input is in the sum
            total = total.reduce(terms[q], into=("output", 0) if q >= r else None)
        total.copy(r, "output", 0)


def allpairs_allreduce(p: Program) -> None:
    """All pairs, two shots: rank i reduces everyone's chunk i and sends the result to everyone.

    Chunks: N. Steps: 2 hops. Bytes sent per rank: 2(N - 1)/N S, the optimum. Time: 2 alpha + 2(N - 1)/N S beta,
    where every pair has a link. Source: Cowan et al., "MSCCLang: Microsoft collective communication language" (2023).
    """
    for i in range(p.ranks):
        c = p.chunk(i, "input", i)
        for q in peers(p.ranks, i):
            c = c.reduce(p.chunk(q, "input", i), into="output")
        c = c.copy(i, "output")  # it is there already, unless the rank is alone
        for q in peers(p.ranks, i):
            c.copy(q)


def recursive_doubling_allreduce(p: Program) -> None:
    """Recursive doubling: in round k, ranks 2^k apart exchange all they have and both reduce.

    Other counts than powers of two first fold the extra ranks into neighbours and unfold them at the end.
    Chunks: 1. Steps: ceil(log2 N) hops, 2 more when folding. Bytes sent per rank: log2 N S. Time: log2 N (alpha +
    S beta). Scratch: log2 N S, because an exchange in place must keep what it sends. Both partners of an exchange
    add the same two terms: results agree to the last bit.
    Source: Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH" (2005).
    """
    core, pairs = fold(p.ranks).core, fold(p.ranks).pairs
    rounds = len(core).bit_length() - 1
    total = {rank: p.chunk(rank, "input") for rank in range(p.ranks)}
    arrived = p.scratch("arrived", max(rounds, 1))
    for rank, extra in pairs:
        total[rank] = total[rank].reduce(total[extra], into="output")
    for k in range(rounds):
        partner = {rank: core[j ^ (1 << k)] for j, rank in enumerate(core)}
        theirs = {rank: total[partner[rank]].copy(rank, arrived, k) for rank in core}
        for rank in core:
            total[rank] = total[rank].reduce(theirs[rank], into=("output", 0))
    for rank, extra in pairs:
        total[rank].copy(extra)
    total[core[0]].copy(core[0], "output")  # it is there already, unless the rank is alone


def recursive_halving_doubling_allreduce(p: Program) -> None:
    """Recursive halving and doubling (Rabenseifner): a reduce-scatter by halves, then an allgather by doubles.

    Near ranks exchange the large parts. Other counts than powers of two first fold: neighbours 2k and 2k + 1 reduce
    one half each and 2k goes on with both. Chunks: the largest power of two P <= N. Steps: 2 log2 P hops, 3 more
    when folding. Bytes sent per rank: 2(P - 1)/P S, 3/2 S more when folding. Time: 2 log2 P alpha + 2(P - 1)/P S beta.
    Source: Rabenseifner, "Optimization of collective reduction operations" (2004).
    """
    core, holds = _fold_halves(p)
    first, distance, size = [0] * len(core), 1, len(core) // 2
    while size:
        first = [at + size if j & distance else at for j, at in enumerate(first)]
        for j, rank in enumerate(core):
            peer = core[j ^ distance]
            mine, theirs = (p.chunk(q, holds[q], first[j], size) for q in (rank, peer))
            mine.reduce(theirs, into="output")
        holds = dict.fromkeys(core, "output")
        distance, size = distance * 2, size // 2
    size = 1
    while distance > 1:
        distance //= 2
        for j, rank in enumerate(core):
            p.chunk(rank, "output", first[j], size).copy(core[j ^ distance])
        first = [at - size if j & distance else at for j, at in enumerate(first)]
        size *= 2
    _unfold(p)


def _fold_halves(p: Program) -> tuple[tuple[int, ...], dict[int, BufferLike]]:
    """Reduce each folded pair into its core rank by halves; returns the core and the buffer where each has its sum."""
    half, shape = p.chunks // 2, fold(p.ranks)
    holds: dict[int, BufferLike] = dict.fromkeys(shape.core, "input")
    for even, odd in shape.pairs:
        p.chunk(even, "input", 0, half).reduce(p.chunk(odd, "input", 0, half), into="output")
        upper = p.chunk(odd, "input", half, half).reduce(p.chunk(even, "input", half, half), into="output")
        upper.copy(even, channel=1)  # not fused: 2k cannot receive this part before it has sent all of its own
        holds[even] = "output"
    return shape.core, holds


def _unfold(p: Program) -> None:
    """Give the result to the ranks that were folded away (and to the output of a rank that is alone)."""
    if p.ranks == 1:
        p.chunk(0, "input", 0, p.chunks).copy(0, "output")
    for even, odd in fold(p.ranks).pairs:
        p.chunk(even, "output", 0, p.chunks).copy(odd)


def hierarchical_allreduce(p: Program, nodes: int) -> None:
    """Hierarchical (BlueConnect): reduce-scatter in each node, ring allreduce between nodes, allgather in each node.

    With L = N / nodes local ranks, local rank g of every node reduces piece g over its node (all pairs); the ranks g
    of all nodes reduce and spread that piece in a ring; then each hands it to its node. Chunks: N. Steps: 2 hops
    inside nodes and 2(nodes - 1) between them. Bytes sent per rank: 2(L - 1)/L S inside, 2(nodes - 1)/N S between
    nodes. Time: 2 alpha + 2(L - 1)/L S beta inside, 2(nodes - 1) alpha + 2(nodes - 1)/N S beta between.
    Source: Cho et al., "BlueConnect: decomposing all-reduce for deep learning on heterogeneous network hierarchy"
    (2019).
    """
    local = p.ranks // nodes
    for r in range(p.ranks):
        node, g = divmod(r, local)
        c = p.chunk(r, "input", g * nodes, nodes)
        for h in peers(local, g):
            c = c.reduce(p.chunk(node * local + h, "input", g * nodes, nodes), into="output")
    for g in range(local):
        for m in range(nodes):
            _ring(p, [(m + hop) % nodes * local + g for hop in range(nodes)], g * nodes + m, local == 1)
    for r in range(p.ranks):
        node, g = divmod(r, local)
        for h in peers(local, g):
            p.chunk(r, "output", g * nodes, nodes).copy(node * local + h)


def _ring(p: Program, ring: list[int], index: int, fresh: bool) -> None:
    """Ring allreduce of one chunk over some ranks, which hold it in the input when ``fresh``, else in the output."""
    held: BufferLike = "input" if fresh else "output"
    c = p.chunk(ring[0], held, index)
    for rank in ring[1:]:
        c = p.chunk(rank, held, index).reduce(c, into="output")
    c = c.copy(c.rank, "output")  # it is there already, unless the rank is alone
    for rank in ring[:-1]:
        c = c.copy(rank)


def _power_of_two(ranks: int, _values: Values) -> int:
    return power_below(ranks)


ENTRIES = (
    Entry("allreduce", ring_allreduce, ("large",), chunk_per_rank),
    Entry("allreduce", allpairs_one_shot_allreduce, ("small",)),
    Entry("allreduce", allpairs_allreduce, ("small", "large"), chunk_per_rank),
    Entry("allreduce", recursive_doubling_allreduce, ("small",)),
    Entry("allreduce", recursive_halving_doubling_allreduce, ("small", "large"), _power_of_two),
    Entry("allreduce", hierarchical_allreduce, ("large",), chunk_per_rank, (NODES,), whole_nodes),
)
