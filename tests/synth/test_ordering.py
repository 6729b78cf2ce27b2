"""TACCL's ordering: greedy orders of given routes, and a sender's own items first where the sketch says so."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import TEN, microseconds, problem, random_topologies

from commlib.collectives import broadcast, collective, gather
from commlib.topology import Topology, ring
from synth.engine import Budget
from synth.ordering import order_routes
from synth.own_first import is_own, keeps_own_first, slots_own_first, with_own_first
from synth.problem import Rules
from synth.schedule import Transfer, check, expand, makespan
from synth.spread import spread_routes

LINE = Topology("line", 3, {(0, 1): TEN, (1, 2): TEN})


def test_the_longest_way_goes_first():
    task = problem(ring(6, TEN), broadcast(6), symmetric=False)
    plan = order_routes(task, spread_routes(task), 0, Budget())
    assert microseconds(task, makespan(task, plan)) == 30


def test_own_items_move_to_the_front():
    task = problem(LINE, gather(3, root=2), symmetric=False)
    task = replace(task, rules=Rules(own_first=frozenset({1})))
    ten = task.latencies[0][0]
    wrong = (Transfer(0, 0, 0), Transfer(ten, 0, 1), Transfer(2 * ten, 1, 1))
    assert not keeps_own_first(task, wrong)
    right = with_own_first(task, wrong)
    assert keeps_own_first(task, right)
    check(expand(task, right))
    assert [(t.item, t.start // ten) for t in right if t.link == 1] == [(1, 0), (0, 1)]
    assert with_own_first(task, right) is right


def test_without_the_rule_nothing_moves():
    task = problem(LINE, gather(3, root=2), symmetric=False)
    plan = (Transfer(0, 0, 0), Transfer(10, 0, 1), Transfer(20, 1, 1))
    assert with_own_first(task, plan) is plan
    assert not slots_own_first(task)
    assert [is_own(task, transfer) for transfer in plan] == [True, False, True]


@pytest.mark.parametrize("symmetric", [False, True])
@settings(max_examples=40, deadline=None)
@given(random_topologies(2, 6), st.sampled_from(["allgather", "alltoall", "gather"]), st.randoms(use_true_random=False))
def test_any_links_can_have_the_rule(symmetric, topology, name, chance):
    task = problem(topology, collective(name, topology.ranks, 2), symmetric=symmetric)
    links = frozenset(link for link in range(task.costs.links) if chance.random() < 0.5)
    task = replace(task, rules=Rules(own_first=links))
    plan = order_routes(task, spread_routes(task), 0, Budget(), tries=2)
    assert keeps_own_first(task, plan)
    check(expand(task, plan))
