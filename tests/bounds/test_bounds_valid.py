"""No bound is above a time that some schedule reaches: the one defect that would make every proof worthless."""

from __future__ import annotations

import random

import numpy as np
from bound_cases import Search, ported_topology, posed, random_allreduce, random_topology
from hypothesis import given, settings
from hypothesis import strategies as st

from commlib.bounds import LinearProgram, Work, allreduce_bounds, bounds, flow_bound, fluid_bounds
from commlib.collectives import allreduce, alltoallv, collective
from commlib.demand import demand
from commlib.errors import TopologyError
from commlib.topology.costs import cost_table
from commlib.topology.model import Topology

NAMES = ("allgather", "alltoall", "broadcast", "scatter", "gather", "reducescatter", "reduce", "sendrecv")
SEEDS = st.integers(0, 1 << 30)


def drawn(seed: int) -> tuple[random.Random, Topology]:
    chance = random.Random(seed)
    return chance, chance.choice([random_topology, ported_topology])(chance, chance.choice([3, 3, 4, 4, 5]))


def random_prices(program: LinearProgram) -> np.ndarray:
    """A solver that knows nothing: whatever it says, the bound must hold."""
    return np.random.default_rng(len(program.objective)).random(len(program.objective)) - 0.2


@settings(max_examples=150, deadline=None)
@given(SEEDS, st.sampled_from(NAMES))
def test_no_schedule_beats_a_bound(seed, name):
    chance, topology = drawn(seed)
    chunks = chance.choice([1, 1, 2]) if topology.ranks < 5 else 1
    costs, moved = posed(topology, collective(name, topology.ranks, chunks))
    readings = (False, True) if moved.reduces else (False,)
    best = min(Search(costs, moved, random.Random(k), 300, back).run() for k in range(3) for back in readings)
    groups = [(0, 1), tuple(range(topology.ranks - 1))]
    found = bounds(costs, moved, groups=groups, solver=random_prices)
    priced = flow_bound(Work(costs, moved), random_prices, found[0].ticks)
    assert priced is not None
    for each in (*found, priced):
        assert each.ticks <= best, each.certificate.text()


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.sampled_from(NAMES))
def test_no_schedule_of_a_sketch_beats_its_bounds(seed, name):
    chance, topology = drawn(seed)
    costs, moved = posed(topology, collective(name, topology.ranks))
    rows = [[chance.random() < 0.8 for _ in range(costs.links)] for _ in moved.items]
    allowed = np.array(rows, dtype=bool)
    readings = (False, True) if moved.reduces else (False,)
    best = min(Search(costs, moved, random.Random(seed), 300, back, allowed).run() for back in readings)
    try:
        found = bounds(costs, moved, allowed=allowed, groups=[(0, 1)])
    except TopologyError:
        assert best == 1 << 60
        return
    for each in found:
        assert each.ticks <= best, each.certificate.text()


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_no_schedule_of_several_sizes_beats_a_bound(seed):
    chance, topology = drawn(seed)
    ranks = topology.ranks
    sizes = [[chance.choice([0, 1, 2, 4, 9]) for _ in range(ranks)] for _ in range(ranks)]
    moved = demand(alltoallv(ranks), 1.0, sizes)
    costs = cost_table(topology, moved.sizes)
    best = min(Search(costs, moved, random.Random(k), 300).run() for k in range(2))
    for each in bounds(costs, moved, groups=[(0, 1)], solver=random_prices):
        assert each.ticks <= best, each.certificate.text()


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_no_allreduce_beats_a_bound(seed, chunks):
    chance, topology = drawn(seed)
    ranks = topology.ranks
    costs = cost_table(topology, [1.0])
    best = min(random_allreduce(costs, chunks, chance) for _ in range(60))
    for each in allreduce_bounds(costs, allreduce(ranks, chunks), groups=[(0, 1), tuple(range(2, ranks))]):
        assert each.ticks <= best, each.certificate.text()
    for each in fluid_bounds(topology, allreduce(ranks), float(chunks)):
        assert each.seconds <= costs.seconds(best), each.certificate.text()


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.sampled_from(NAMES), st.integers(1, 2))
def test_no_division_into_chunks_beats_a_fluid_bound(seed, name, chunks):
    _, topology = drawn(seed)
    wanted = collective(name, topology.ranks, chunks)
    costs, moved = posed(topology, wanted)
    readings = (False, True) if moved.reduces else (False,)
    best = min(Search(costs, moved, random.Random(k), 300, back).run() for k in range(2) for back in readings)
    per_rank = 1 if name in ("broadcast", "reduce", "sendrecv") else topology.ranks
    size = float(chunks * per_rank)
    for each in fluid_bounds(topology, wanted, size, groups=[(0, 1)], solver=random_prices):
        assert each.seconds <= costs.seconds(best), each.certificate.text()
