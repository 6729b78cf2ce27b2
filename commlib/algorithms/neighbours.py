"""Sendrecv and alltonext: everyone sends to the next rank. S is the size of a rank's message.

In place, the message that arrives takes the place of the one that leaves; going from the last rank to the first,
each rank has sent before it receives.
"""

from __future__ import annotations

from commlib.algorithms.entry import NODES, Entry, Values, whole_nodes
from commlib.dsl import Chunk, Program, Scratch


def direct_sendrecv(p: Program) -> None:
    """Direct: everyone sends to the next rank; only rank 0, where the ring closes, stages what it receives.

    Chunks: 1. Steps: 1 hop. Bytes sent per rank: S, the optimum. Time: alpha + S beta. Scratch: S on rank 0.
    """
    staged = p.scratch("staged", 1)
    closing = p.chunk(p.ranks - 1, "input").copy(0, staged, 0)
    for r in reversed(range(p.ranks - 1)):
        p.chunk(r, "input").copy(r + 1, "output")
    closing.copy(0, "output", 0)


def direct_alltonext(p: Program) -> None:
    """Direct: every rank but the last sends to the next.

    Chunks: 1. Steps: 1 hop. Bytes sent per rank: S. Time: alpha + S beta, on the slowest link.
    """
    for r in reversed(range(p.ranks - 1)):
        p.chunk(r, "input").copy(r + 1, "output")


def hierarchical_alltonext(p: Program, nodes: int) -> None:
    """With helpers: what crosses from node to node is spread over all local ranks, so that it uses every NIC.

    With L = N / nodes local ranks, the last rank of a node gives each local rank one of L parts, these send them to
    their peers in the next node, and those hand them to its first rank. Chunks: L. Steps: 1 hop inside, 1 between
    nodes, 1 inside. Bytes sent between nodes per rank: S / L. Time: 3 alpha + S/L beta of the link between nodes
    + 2 (L - 1)/L S beta inside. Scratch: 2 S / L on the helpers.
    Source: Cowan et al., "MSCCLang: Microsoft collective communication language" (2023), AllToNext.
    """
    local = p.ranks // nodes
    leaving, arriving = p.scratch("leaving", 1), p.scratch("arriving", 1)
    for r in reversed(range(p.ranks - 1)):
        c = p.chunk(r, "input", 0, p.chunks)
        if (r + 1) % local:
            c.copy(r + 1, "output")
            continue
        for g, part in enumerate(c.split(local)):
            _cross(part, r + 1, g, local, (leaving, arriving))


def _cross(part: Chunk, first: int, g: int, local: int, helpers: tuple[Scratch, Scratch]) -> None:
    """Send one part from the last rank of a node to ``first``, the first of the next, by way of their ranks g."""
    leaving, arriving = helpers
    index = part.index
    if g < local - 1:
        part = part.copy(first - local + g, leaving, 0)
    if g > 0:
        part = part.copy(first + g, arriving, 0)
    part.copy(first, "output", index)


def _one_per_local_rank(ranks: int, values: Values) -> int:
    return ranks // values["nodes"]


ENTRIES = (
    Entry("sendrecv", direct_sendrecv, ("small", "large")),
    Entry("alltonext", direct_alltonext, ("small", "large")),
    Entry("alltonext", hierarchical_alltonext, ("large",), _one_per_local_rank, (NODES,), whole_nodes),
)
