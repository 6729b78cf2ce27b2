"""Synthesized algorithms on real processes: every collective on 2 to 16 ranks, both placements, exactly."""

import random

import pytest
from process_cases import ProcessCase, run_cases
from synth_cases import random_topology
from synth_moves import moves, several, shuffle

from commlib import collectives
from commlib.collectives import Collective, Placement
from commlib.ir.algorithm import Algorithm
from commlib.topology import Topology, hypercube, ring
from synth.lowering import compiled


def cases_of(algorithm: Algorithm, chance: random.Random) -> list[ProcessCase]:
    found = []
    for placement in Placement:
        dtype = chance.choice(["float32", "int64", "float64"])
        sizes = None
        if algorithm.collective.name == "alltoallv":
            sizes = equal_both_ways(algorithm.ranks, chance)
        found.append(ProcessCase(algorithm, chance.choice([1, 17, 1000]), dtype, "sum", placement, sizes))
    return found


def equal_both_ways(ranks: int, chance: random.Random) -> tuple[tuple[int, ...], ...]:
    """Sizes of an alltoallv that can run in place: what two ranks send each other has the same size."""
    upper = {(a, b): chance.choice([0, 1, 9, 130]) for a in range(ranks) for b in range(a, ranks)}
    return tuple(tuple(upper[min(a, b), max(a, b)] for b in range(ranks)) for a in range(ranks))


def run_all(topology: Topology, wanted: list[Collective], instances: int = 1) -> None:
    chance = random.Random(topology.ranks)
    algorithms = [compiled(moves(topology, c), c.name, instances=instances) for c in wanted]
    run_cases([case for algorithm in algorithms for case in cases_of(algorithm, chance)], topology.ranks)


def standard(ranks: int) -> list[Collective]:
    reductions = [collectives.allreduce(ranks, ranks), collectives.allreduce(ranks, 2 * ranks - 1)]
    return [c for c in several(ranks) if c.custom is None] + reductions


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_every_collective_on_random_topologies(ranks):
    run_all(random_topology(ranks, ranks), standard(ranks))


def test_every_collective_on_sixteen_ranks():
    run_all(hypercube(4), standard(16))


def test_in_several_instances():
    run_all(ring(4), [collectives.allgather(4), collectives.allreduce(4, 4), collectives.alltoall(4)], instances=3)


def test_a_custom_collective():
    run_all(random_topology(11, 4), [shuffle(4)])
