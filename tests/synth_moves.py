"""Schedules of every collective for the tests of moves, lowering and processes; quick and deterministic."""

from __future__ import annotations

from synth_cases import MIB, problem

from commlib import collectives
from commlib.collectives import Collective
from commlib.demand import demand
from commlib.topology import Topology, cost_table
from synth.compose import allreduce_moves, moves_of
from synth.engine import Budget
from synth.moves import Moves
from synth.schedule import Schedule, expand
from synth.spread import first_plan
from synth.trees import tree_allreduce


def schedule(topology: Topology, collective: Collective) -> Schedule:
    """A schedule of a collective; of one that reduces, on the reversed topology."""
    turned = topology.reversed() if demand(collective, MIB).reduces else topology
    posed = problem(turned, collective, symmetric=False)
    return expand(posed, first_plan(posed, Budget(seconds=30)))


def allreduce(topology: Topology, shard: int = 1) -> Moves:
    """An allreduce of ``shard`` chunks per rank, of reducescatter and allgather."""
    scatter, gather = (collectives.collective(name, topology.ranks, shard) for name in ("reducescatter", "allgather"))
    return allreduce_moves(schedule(topology, scatter), schedule(topology, gather))


def several(ranks: int) -> list[Collective]:
    """Collectives of every kind that has a demand, rooted ones with different roots, and a custom one."""
    c, last = collectives, ranks - 1
    return [
        c.allgather(ranks, 2),
        c.alltoall(ranks),
        c.alltoallv(ranks),
        c.broadcast(ranks, 3, last),
        c.scatter(ranks, 2, last),
        c.gather(ranks, 1, last),
        c.sendrecv(ranks, 2),
        c.alltonext(ranks),
        c.reducescatter(ranks, 2),
        c.reduce(ranks, 3, last),
        shuffle(ranks),
    ]


def shuffle(ranks: int) -> Collective:
    """In place a rotation on every rank, with one chunk that also goes to the next rank: nothing can stay as it is."""
    sources = {(r, k): [(r, (k + 1) % 3)] for r in range(ranks) for k in range(3)}
    sources |= {(r, 3): [((r - 1) % ranks, 0)] for r in range(ranks)}
    return collectives.custom("shuffle", [3] * ranks, [4] * ranks, sources, [(0, 0)] * ranks)


def moves(topology: Topology, collective: Collective) -> Moves:
    """The moves of a collective, allreduce included."""
    if collective.name != "allreduce":
        return moves_of(schedule(topology, collective))
    if collective.chunks % topology.ranks:
        return tree_allreduce(cost_table(topology, [MIB]), collective.chunks)
    return allreduce(topology, collective.chunks // topology.ranks)
