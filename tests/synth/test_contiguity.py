"""TACCL's third stage: contiguous groups, and the best orders of given routes."""

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import TEN, microseconds, problem, random_topologies
from taccl_cases import us

from commlib.collectives import broadcast, collective, custom, gather
from commlib.topology import Link, Topology, ring
from synth.contiguity import groups, schedule_exactly
from synth.engine import Budget
from synth.ordering import order_routes
from synth.own_first import keeps_own_first
from synth.problem import Problem, Rules
from synth.routing import routed_time, routes_of
from synth.schedule import Transfer, check, earliest, expand, makespan
from synth.spread import spread_routes


def far(**rules) -> Problem:
    """Eight items over one pipelined link: alpha 3, beta 105."""
    links = {(0, 1): Link(3e-6, us(105), (), True)}
    task = problem(Topology("far", 2, links), broadcast(2, 8), symmetric=False)
    return replace(task, rules=Rules(**rules))


def test_a_contiguous_group_pays_alpha_once():
    task = far()
    plan = order_routes(task, dict.fromkeys(range(8), (0,)), 0, Budget())
    assert microseconds(task, makespan(task, plan)) == 3 + 8 * 105


def test_groups_end_at_the_window():
    task = far(window=6)
    plan = order_routes(task, dict.fromkeys(range(8), (0,)), 0, Budget())
    assert [len(group) for group in groups(task, plan)] == [6, 2]
    assert [len(group) for group in groups(far(window=3), plan)] == [3, 3, 2]


def test_a_pause_ends_a_group():
    task = far()
    busy = task.uses[0][0][0][1]
    plan = [Transfer(0, 0, 0), Transfer(busy, 1, 0), Transfer(2 * busy + 1, 2, 0)]
    assert [[t.item for t in group] for group in groups(task, plan)] == [[0, 1], [2]]


def test_links_that_are_not_pipelined_have_groups_of_one():
    task = problem(ring(2, TEN), broadcast(2, 3), symmetric=False)
    plan = order_routes(task, dict.fromkeys(range(3), (0,)), 0, Budget())
    assert [len(group) for group in groups(task, plan)] == [1, 1, 1]


def fork() -> tuple[Problem, list[Transfer]]:
    """Rank 0 has one item for rank 1, and one for rank 2 by way of 1, which a poor order sends last."""
    links = {(0, 1): TEN, (1, 2): TEN}
    wanted = custom("fork", [2, 0, 0], [0, 1, 1], {(1, 0): [(0, 0)], (2, 0): [(0, 1)]})
    task = problem(Topology("fork", 3, links), wanted, symmetric=False)
    ten = task.latencies[0][0]
    return task, [Transfer(0, 0, 0), Transfer(ten, 1, 0), Transfer(2 * ten, 1, 1)]


def test_a_poor_order_is_mended():
    task, poor = fork()
    assert microseconds(task, makespan(task, poor)) == 30
    plan = schedule_exactly(task, poor, 0, Budget())
    assert microseconds(task, makespan(task, plan)) == 20
    check(expand(task, plan))


def test_a_bound_that_is_met_is_not_searched_below():
    task, poor = fork()
    assert schedule_exactly(task, poor, makespan(task, poor), Budget()) == tuple(poor)


def test_the_same_twice_and_a_window_of_none_changes_no_order():
    task, poor = fork()
    assert schedule_exactly(task, poor, 0, Budget()) == schedule_exactly(task, poor, 0, Budget())
    fixed = replace(task, rules=Rules(window=0))
    assert schedule_exactly(fixed, poor, 0, Budget()) == tuple(earliest(fixed, poor))


def test_own_items_stay_first_even_where_that_costs_time():
    line = Topology("line", 4, {(0, 1): TEN, (1, 2): TEN, (2, 3): TEN})
    task = problem(line, gather(4, root=3), symmetric=False)
    task = replace(task, rules=Rules(own_first=frozenset(range(3))))
    plan = order_routes(task, spread_routes(task), 0, Budget())
    better = schedule_exactly(task, plan, 0, Budget())
    assert keeps_own_first(task, better)
    assert microseconds(task, makespan(task, better)) == 30


def best_by_all_orders(task: Problem, plan: tuple[Transfer, ...]) -> int:
    """The least makespan over all orders of the transfers; only for a few."""
    return min(
        makespan(task, earliest(task, [t._replace(start=k) for k, t in enumerate(order)]))
        for order in itertools.permutations(plan)
        if follows(task, order)
    )


def follows(task: Problem, order: tuple[Transfer, ...]) -> bool:
    reached = {(t.item, task.demand.items[t.item].origin) for t in order}
    for transfer in order:
        source, target = task.ends[transfer.link]
        if (transfer.item, source) not in reached:
            return False
        reached.add((transfer.item, target))
    return True


@settings(max_examples=25, deadline=None)
@given(random_topologies(2, 4), st.sampled_from(["broadcast", "gather", "scatter"]), st.integers(1, 2))
def test_it_finds_the_best_of_all_orders(topology, name, chunks):
    task = problem(topology, collective(name, topology.ranks, chunks), symmetric=False)
    listed = order_routes(task, spread_routes(task), 0, Budget(), tries=1)
    plan = schedule_exactly(task, listed, 0, Budget())
    check(expand(task, plan))
    assert routed_time(task, routes_of(task, plan)) <= makespan(task, plan) <= makespan(task, listed)
    if len(plan) <= 6:
        assert makespan(task, plan) == best_by_all_orders(task, plan)
