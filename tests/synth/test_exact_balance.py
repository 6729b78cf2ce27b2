"""Balanced routes: even loads, trees, limits of length."""

from __future__ import annotations

import pytest

from commlib.collectives import allgather, alltoall, broadcast, collective
from commlib.demand import demand
from commlib.topology import Link, Topology, cost_table
from commlib.topology.shapes import ring, torus
from synth.balance import balanced_routes
from synth.discover import discover
from synth.engine import Budget
from synth.listing import list_schedule
from synth.problem import Problem
from synth.schedule import check, expand, makespan
from synth.symmetry import Actions, Symmetry


def posed(topology, wanted, symmetric=True):
    asked = demand(wanted, 1.0)
    costs = cost_table(topology, asked.sizes)
    symmetry = discover(Actions(costs, asked)) if symmetric else Symmetry.trivial(topology.ranks)
    return Problem(topology, asked, costs, symmetry)


def loads(problem, routes):
    load: dict[int, int] = {}
    for item, links in routes.items():
        for link in links:
            for slot, ticks in problem.uses[problem.demand.items[item].size][link]:
                load[slot] = load.get(slot, 0) + ticks
    return load


def test_an_alltoall_on_a_torus_is_even_and_listed_at_the_bound():
    problem = posed(torus((8, 8), Link(0, 10)), alltoall(64))
    routes = balanced_routes(problem, 64, Budget())
    assert set(loads(problem, routes).values()) == {64}
    plan = list_schedule(problem, routes, 64)
    assert makespan(problem, plan) == 64
    check(expand(problem, plan))


@pytest.mark.parametrize("wanted", [allgather(6), broadcast(6), collective("gather", 6), collective("scatter", 6)])
def test_routes_are_trees_that_reach_all(wanted):
    problem = posed(ring(6, Link(1, 2)), wanted, symmetric=False)
    check(expand(problem, list_schedule(problem, balanced_routes(problem, 15, Budget()))))


def test_two_ways_are_shared_out_evenly():
    links = {pair: Link(0, 1) for pair in [(0, 1), (0, 2), (1, 3), (2, 3), (3, 0)]}
    problem = posed(Topology("diamond", 4, links), collective("broadcast", 4, 4), symmetric=False)
    load = loads(problem, balanced_routes(problem, 20, Budget()))
    into_three = [load[link] for link, (_, target) in enumerate(problem.ends) if target == 3]
    assert into_three == [2, 2]


def test_ways_that_are_too_long_are_not_taken():
    problem = posed(ring(6, Link(0, 1)), broadcast(6), symmetric=False)
    assert balanced_routes(problem, 2, Budget()) is None
    routes = balanced_routes(problem, 3, Budget())
    assert makespan(problem, list_schedule(problem, routes)) == 3


def test_the_same_seed_gives_the_same_routes():
    problem = posed(torus((4, 4), Link(0, 1)), alltoall(16))
    assert balanced_routes(problem, 10, Budget(seed=5)) == balanced_routes(problem, 10, Budget(seed=5))
