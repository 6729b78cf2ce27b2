"""List scheduling and the greedy: known optima, and always a right schedule."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import TEN, microseconds, problem, random_topologies

from commlib.collectives import allgather, alltoall, broadcast
from commlib.topology import Link, Topology, fully_connected, nodes, ring, torus
from synth.engine import Budget
from synth.errors import ScheduleError
from synth.greedy import greedy
from synth.listing import list_schedule
from synth.schedule import check, expand, makespan


@pytest.mark.parametrize(
    ("topology", "collective", "optimum"),
    [
        (ring(8, TEN), allgather(8), 40),
        (ring(5, TEN), allgather(5), 20),
        (torus((4, 4), TEN), allgather(16), 40),
        (torus((4, 4, 4), TEN), allgather(64), 110),
        (fully_connected(6, TEN), allgather(6), 10),
        (ring(6, TEN), broadcast(6), 30),
        (ring(6, TEN), broadcast(6, 4), 40),
        (nodes(4, 4, TEN, Link(0.0, 4 * TEN.beta)), allgather(16), 70),
    ],
)
def test_the_greedy_reaches_known_optima(topology, collective, optimum):
    posed = problem(topology, collective)
    plan = greedy(posed, Budget())
    check(expand(posed, plan))
    assert microseconds(posed, makespan(posed, plan)) == optimum


def test_routes_are_listed_longest_way_first():
    posed = problem(Topology("fork", 4, {(0, 1): TEN, (0, 2): TEN, (2, 3): TEN}), broadcast(4, 2))
    link = posed.actions.link_number
    links = [int(link[pair]) for pair in ((0, 1), (0, 2), (2, 3))]
    plan = list_schedule(posed, {0: links, 1: links})
    check(expand(posed, plan))
    assert makespan(posed, plan) == 3


def test_a_late_long_way_is_not_delayed_by_early_short_ones():
    slow = Link(0.0, 5 * TEN.beta)
    posed = problem(
        Topology("wait", 5, {(0, 1): TEN, (1, 2): TEN, (1, 3): slow, (3, 4): slow}), broadcast(5), symmetric=False
    )
    plan = list_schedule(posed, {0: range(4)})
    assert makespan(posed, plan) == 11


@pytest.mark.parametrize(
    ("route", "message"),
    [([0, 1, 2], "reaches rank 0 twice"), ([1], "not a tree from rank 0")],
)
def test_routes_that_are_no_trees_are_refused(route, message):
    posed = problem(Topology("cycle", 3, {(0, 1): TEN, (1, 2): TEN, (2, 0): TEN}), broadcast(3), symmetric=False)
    with pytest.raises(ScheduleError, match=message):
        list_schedule(posed, {0: route})


@settings(max_examples=80, deadline=None)
@given(random_topologies(), st.integers(1, 3), st.integers(1, 3))
def test_plans_are_right_and_never_worse_when_listed_again(topology, chunks, tries):
    posed = problem(topology, allgather(topology.ranks, chunks))
    plan = greedy(posed, Budget(), tries=tries)
    check(expand(posed, plan))
    routes = {}
    for transfer in plan:
        routes.setdefault(transfer.item, []).append(transfer.link)
    listed = list_schedule(posed, routes, tries=tries)
    check(expand(posed, listed))
    assert listed == list_schedule(posed, routes, tries=tries)


def test_the_greedy_says_none_where_it_cannot():
    assert greedy(problem(Topology("cut", 2, {(0, 1): TEN}), allgather(2)), Budget()) is None
    assert greedy(problem(ring(4, TEN), alltoall(4)), Budget()) is None
