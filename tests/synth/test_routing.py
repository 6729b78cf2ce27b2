"""TACCL's routing: known optima, what it proves, preferences, rules of a sketch, limits."""

import sys
from dataclasses import replace

import numpy as np
import pulp  # noqa: F401  (before a test hides HiGHS from it)
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import TEN, microseconds, problem, random_topologies
from taccl_cases import dgx2, mesh, ndv2, posed, ticks

from commlib.collectives import allgather, alltoall, broadcast, collective, custom, gather, scatter
from commlib.topology import Link, Topology, fully_connected, ring, torus
from synth.engine import Budget, Ended
from synth.errors import ScheduleError
from synth.exact import solve_exact
from synth.listing import list_schedule
from synth.problem import Problem, Rules
from synth.routing import another, route, routed_time, routes_of, short_trees
from synth.routing_model import routing_model
from synth.schedule import check, expand, makespan
from synth.spread import spread_routes
from synth.symmetry import Symmetry


def poor_routes(problem: Problem) -> dict[int, tuple[int, ...]]:
    """Routes that know nothing of each other, so that there is something to gain."""
    return spread_routes(problem, weight=0.0, rounds=1)


OPTIMA = [
    (ndv2(23, 46), allgather(8), 69),
    (ndv2(32, 34), allgather(8), 68),
    (ndv2(10, 17), allgather(8), 30),
    (mesh(2, 4), allgather(8), 40),
    (mesh(3, 3), allgather(9), 40),
    (dgx2(8, 8), allgather(8), 56),
    (ring(6, TEN), allgather(6), 30),
    (ring(6, TEN), broadcast(6, 2), 30),
    (ring(6, TEN), scatter(6), 30),
    (ring(6, TEN), gather(6), 30),
    (torus((3, 3), TEN), alltoall(9), 30),
]


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("topology", "wanted", "optimum"), OPTIMA)
def test_known_optima_with_and_without_their_bound(topology, wanted, optimum, known):
    task = posed(topology, wanted)
    found = route(task, Budget(30), ticks(task, optimum) if known else 0, poor_routes(task))
    assert found.ended is Ended.PROOF
    assert microseconds(task, found.bound) == optimum
    assert microseconds(task, routed_time(task, found.routes)) == microseconds(task, found.time)
    check(expand(task, list_schedule(task, found.routes)))


def test_the_routing_of_two_nodes_meets_the_bound_of_its_nics():
    task = posed(ndv2(nodes=2), allgather(16))
    found = route(task, Budget(30), ticks(task, 912), poor_routes(task))
    assert found.ended is Ended.PROOF
    assert microseconds(task, found.bound) == 912
    assert found.time < routed_time(task, poor_routes(task))


def test_the_time_of_routes_is_their_longest_path_or_slot():
    task = problem(Topology("line", 3, {(0, 1): TEN, (1, 2): TEN}), broadcast(3, 4), symmetric=False)
    routes = dict.fromkeys(range(4), (0, 1))
    # Four transfers over the first link (40), then one more hop (10); each link alone: 10 before the second, 10 after.
    assert microseconds(task, routed_time(task, routes)) == 50
    assert microseconds(task, routed_time(task, {0: (0, 1)})) == 20
    assert routed_time(task, {}) == 0


def test_routes_that_are_no_tree_are_refused():
    task = problem(ring(3, TEN), broadcast(3), symmetric=False)
    with pytest.raises(ScheduleError, match="not a tree"):
        routed_time(task, {0: tuple(range(6))})


def test_no_routing_is_found_below_the_optimum():
    task = posed(ndv2(), allgather(8))
    assert routing_model(task, 1, ticks(task, 45)) is None, "the farthest rank alone takes 46"
    assert another(task, Budget(30), ticks(task, 69) - 1, 0, short_trees(task)) is None


def test_a_routing_of_least_weight_stays_within_the_time():
    task = posed(ndv2(), allgather(8))
    routes = another(task, Budget(30), ticks(task, 69), 0, short_trees(task))
    assert routes is not None
    assert microseconds(task, routed_time(task, routes)) == 69


def test_relays_carry_what_no_direct_link_does():
    links = {(0, 1): TEN, (1, 2): TEN, (1, 3): TEN, (2, 0): TEN, (3, 0): TEN}
    wanted = custom("pair", [1, 0, 0, 0], [0, 0, 1, 1], {(2, 0): [(0, 0)], (3, 0): [(0, 0)]})
    task = problem(Topology("y", 4, links), wanted, symmetric=False)
    found = route(task, Budget(30), 0, {0: (0, 1, 2)})
    assert microseconds(task, found.bound) == 20
    assert found.routes == {0: (0, 1, 2)}


def test_links_that_cost_nothing_make_no_circles():
    free = Link(0.0, 0.0)
    links = {(0, 1): TEN, (1, 2): free, (2, 1): free, (2, 3): free, (3, 2): free, (3, 1): free, (1, 3): free}
    task = problem(Topology("free", 4, links), broadcast(4, 2), symmetric=False)
    made = routing_model(task, 0, ticks(task, 30))
    found = route(task, Budget(30), 0, {0: (0, 1, 2), 1: (0, 1, 2)})
    assert made is not None
    assert microseconds(task, found.bound) == 20
    check(expand(task, list_schedule(task, found.routes)))


def test_forbidden_links_are_not_used():
    task = posed(ring(4, TEN), allgather(4), symmetric=False)
    allowed = np.ones((4, task.costs.links), dtype=np.bool_)
    allowed[0, task.ends.index((0, 1))] = False
    task = replace(task, rules=Rules(allowed=allowed))
    found = route(task, Budget(30), 0, poor_routes(task))
    assert task.ends.index((0, 1)) not in found.routes[0]
    assert microseconds(task, found.bound) == 30


def test_own_items_first_delay_what_is_passed_on():
    task = posed(Topology("line", 3, {(0, 1): TEN, (1, 2): TEN}), gather(3, chunks=2, root=2), symmetric=False)
    free = route(task, Budget(30), 0, poor_routes(task))
    assert microseconds(task, free.bound) == 40


@pytest.mark.parametrize(("wish", "links"), [("uc-min", 8), ("uc-max", 56)])
def test_preferences_choose_among_routings_of_one_time(wish, links):
    task = posed(dgx2(8, 8), allgather(8), symmetric=False)
    task = replace(task, rules=Rules(switches=((frozenset(range(8)), wish),)))
    group = posed(dgx2(8, 8), allgather(8)).symmetry
    task = replace(task, symmetry=group)
    found = route(task, Budget(30), ticks(task, 56), poor_routes(task))
    assert microseconds(task, found.time) == 56
    used = {int(row) for row in expand(task, list_schedule(task, found.routes)).link}
    assert len(used) == links


@pytest.mark.parametrize("spread", ["minmax", "maxmin"])
def test_spread_evens_out_the_use_of_links(spread):
    task = replace(posed(fully_connected(4, TEN), allgather(4)), rules=Rules(spread=spread))
    found = route(task, Budget(30), ticks(task, 10), poor_routes(task))
    uses = np.bincount(expand(task, list_schedule(task, found.routes)).link, minlength=12)
    assert set(uses.tolist()) == {1}


def test_no_time_keeps_the_routes_to_start_from():
    task = posed(torus((4, 4), TEN), alltoall(16), symmetric=False)
    start = poor_routes(task)
    found = route(task, Budget(0.0), 1, start)
    assert found.ended is Ended.TIME
    assert found.bound <= 80e-6 / task.costs.tick
    check(expand(task, list_schedule(task, found.routes)))


def test_the_same_twice():
    task = posed(ndv2(), allgather(8))
    first, second = (route(task, Budget(30), 0, poor_routes(task)) for _ in range(2))
    assert first == second


def test_cbc_proves_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "highspy", None)
    task = posed(ndv2(), allgather(8))
    found = route(task, Budget(30), 0, poor_routes(task))
    assert found.ended is Ended.PROOF
    assert microseconds(task, found.bound) == 69


@settings(max_examples=25, deadline=None)
@given(
    random_topologies(2, 5),
    st.sampled_from(["allgather", "alltoall", "broadcast", "scatter", "gather"]),
    st.integers(1, 2),
)
def test_its_bound_is_below_every_optimum_and_its_routes_are_right(topology, name, chunks):
    task = problem(topology, collective(name, topology.ranks, chunks))
    task = Problem(task.topology, task.demand, task.costs, Symmetry.trivial(topology.ranks))
    found = route(task, Budget(30), 0, poor_routes(task))
    assert found.bound <= found.time
    plan = list_schedule(task, found.routes)
    check(expand(task, plan))
    assert routed_time(task, routes_of(task, plan)) <= makespan(task, plan)
    best = solve_exact(task, Budget(20), found.bound, plan)
    assert found.bound <= makespan(task, best.plan)
    if best.ended is Ended.PROOF:
        again = solve_exact(task, Budget(20), 0, plan)
        assert makespan(task, again.plan) == makespan(task, best.plan), "the routing's bound misled the exact engine"
