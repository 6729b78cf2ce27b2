"""Alltoall and alltoallv. N is the number of ranks, S the size of one shard: what one rank sends to one other.

In place, rank r's output shard d takes the place of its input shard d, which must have left before; the programs
for both placements therefore stage what would be overwritten.
"""

from __future__ import annotations

from commlib.algorithms.entry import NODES, Entry, whole_nodes
from commlib.algorithms.shapes import peers
from commlib.dsl import Chunk, Program


def direct_alltoall(p: Program) -> None:
    """Direct: everyone sends each shard straight to the output of the rank that it is for.

    Out of place only: nothing is staged, so in place a shard would be overwritten before it is sent. Chunks: 1.
    Steps: 1 hop. Bytes sent per rank: (N - 1) S, the optimum. Time: alpha + (N - 1) S beta, where every pair has a
    link. Source: Thakur, Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH" (2005).
    """
    for r in range(p.ranks):
        p.chunk(r, "input", r).copy(r, "output", r)
        for d in peers(p.ranks, r):
            p.chunk(r, "input", d).copy(d, "output", r)


def pairwise_alltoall(p: Program) -> None:
    """Pairwise exchange: as direct, but one rank of each pair stages what it receives, so it works in place too.

    Each rank stages about half of its shards. Chunks: 1. Steps: 1 hop. Bytes sent per rank: (N - 1) S, the optimum.
    Time: alpha + (N - 1) S beta, and a local copy of about N S / 2. Scratch: N S at most.
    Source: MPI_Alltoall with MPI_IN_PLACE in MPICH, which exchanges pair by pair.
    """
    n, staged = p.ranks, p.scratch("staged", p.ranks)
    for r in range(n):
        p.chunk(r, "input", r).copy(r, "output", r)
    for hop in range(1, n // 2 + 1):
        for r in range(n if 2 * hop < n else hop):
            d = (r + hop) % n
            there = p.chunk(r, "input", d).copy(d, staged, r)
            p.chunk(d, "input", r).copy(r, "output", d)
            there.copy(d, "output", r)


def bruck_alltoall(p: Program) -> None:
    """Bruck: in round k, each rank packs the shards with bit k set in their way to go and sends them 2^k ahead.

    Chunks: 1. Steps: ceil(log2 N) hops of one message each. Bytes sent per rank: about N/2 log2 N S. Time:
    ceil(log2 N) (alpha + N/2 S beta), and local copies of the same size. Scratch: about N log2 N S. For small
    messages on many ranks. Source: Bruck et al., "Efficient algorithms for all-to-all communications in multiport
    message-passing systems" (1997).
    """
    n = p.ranks
    way = [{ahead: p.chunk(r, "input", (r + ahead) % n) for ahead in range(n)} for r in range(n)]
    for k in range((n - 1).bit_length()):
        moving = [ahead for ahead in range(n) if ahead >> k & 1]
        packed, arrived = (p.scratch(f"{name} {k}", len(moving)) for name in ("packed", "arrived"))
        for r in range(n):
            for slot, ahead in enumerate(moving):
                way[r][ahead].copy(r, packed, slot)
        for r in range(n):
            message = p.chunk(r, packed, 0, len(moving)).copy((r + (1 << k)) % n, arrived, 0)
            way[message.rank].update(zip(moving, message.split(len(moving)), strict=True))
    for r in range(n):
        for ahead, c in way[r].items():
            c.copy(r, "output", (r - ahead) % n)


def two_step_alltoall(p: Program, nodes: int) -> None:
    """Two steps: inside the node, shards go to the rank with the place of their destination; then across nodes.

    With L = N / nodes local ranks, what one node's ranks send to one rank of another node travels as one message of
    L shards. Chunks: 1. Steps: 1 hop inside, 1 between nodes. Bytes sent per rank: (N - nodes) S inside, (N - L) S
    between nodes, in messages of L S. Scratch: N S.
    Source: Cowan et al., "MSCCLang: Microsoft collective communication language" (2023), the two-step alltoall.
    """
    local, gathered = p.ranks // nodes, p.scratch("gathered", p.ranks)
    for r in range(p.ranks):
        node, g = divmod(r, local)
        for d in [r, *peers(p.ranks, r)]:
            target, place = divmod(d, local)
            p.chunk(r, "input", d).copy(node * local + place, gathered, target * local + g)
    for r in range(p.ranks):
        node, place = divmod(r, local)
        for target in [node, *peers(nodes, node)]:
            c = p.chunk(r, gathered, target * local, local)
            c.copy(target * local + place, "output", node * local)


def three_step_alltoall(p: Program, nodes: int) -> None:
    """Three steps: a node gathers all it has for another node on one rank; one big message; the other node scatters.

    With L = N / nodes local ranks, local rank (m mod L) is the gateway to node m, and from it. Chunks: 1. Steps: 1
    hop inside, 1 between nodes, 1 inside. Messages between nodes: one of L^2 S for each pair of nodes. Bytes sent
    per rank: about 2 (N - L) S inside, (N - L) S between nodes, even if nodes - 1 is a multiple of L. For small
    messages on many nodes. Scratch: about 2 N S at the gateways.
    Source: Cowan et al., "MSCCLang" (2023), the three-step alltoall.
    """
    local, square = p.ranks // nodes, (p.ranks // nodes) ** 2
    inside = p.scratch("inside", local)
    outbound = [p.scratch(f"to node {node}", square) for node in range(nodes)]
    inbound = [p.scratch(f"from node {node}", square) for node in range(nodes)]
    for r in range(p.ranks):
        node, g = divmod(r, local)
        for d in [r, *peers(p.ranks, r)]:
            target, place = divmod(d, local)
            if target == node:
                p.chunk(r, "input", d).copy(d, inside, g)
            else:
                p.chunk(r, "input", d).copy(node * local + target % local, outbound[target], place * local + g)
    for r in range(p.ranks):
        p.chunk(r, inside, 0, local).copy(r, "output", r // local * local)
    for node in range(nodes):
        for target in peers(nodes, node):
            c = p.chunk(node * local + target % local, outbound[target], 0, square)
            _spread(c.copy(target * local + node % local, inbound[node], 0), target, node, local)


def _spread(message: Chunk, target: int, node: int, local: int) -> None:
    """Hand each local rank of ``target`` its part of a message from ``node``."""
    for place, c in enumerate(message.split(local)):
        c.copy(target * local + place, "output", node * local)


def direct_alltoallv(p: Program) -> None:
    """Direct: everyone sends what it has for a rank, of whatever size, straight to that rank's output.

    Out of place only, as direct_alltoall. The sizes belong to the launch: each pair's data is one chunk, which
    never shares a slot with another pair's. Chunks: 1. Steps: 1 hop. Bytes sent per rank: what it has for others.
    """
    direct_alltoall(p)


def pairwise_alltoallv(p: Program) -> None:
    """Pairwise exchange: as pairwise_alltoall, for data of any size per pair, in place too.

    Chunks: 1. Steps: 1 hop. Bytes sent per rank: what it has for others. Scratch slots have the size of the largest.
    """
    pairwise_alltoall(p)


ENTRIES = (
    Entry("alltoall", direct_alltoall, ("small", "large"), placement="out"),
    Entry("alltoall", pairwise_alltoall, ("small", "large")),
    Entry("alltoall", bruck_alltoall, ("small",)),
    Entry("alltoall", two_step_alltoall, ("large",), parameters=(NODES,), refuses=whole_nodes),
    Entry("alltoall", three_step_alltoall, ("small",), parameters=(NODES,), refuses=whole_nodes),
    Entry("alltoallv", direct_alltoallv, ("small", "large"), placement="out"),
    Entry("alltoallv", pairwise_alltoallv, ("small", "large")),
)
