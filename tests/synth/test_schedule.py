"""The checker of schedules refuses what is wrong; timing and expansion keep what is right."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import TEN, problem, random_topologies

from commlib.collectives import allgather, alltoall, broadcast
from commlib.topology import Link, Resource, Topology, ring
from synth.compose import transfers
from synth.engine import Budget
from synth.errors import ScheduleError
from synth.greedy import greedy
from synth.schedule import Transfer, check, earliest, expand, in_order, makespan, order_of


def line(middle: Link = TEN) -> Topology:
    return Topology("line", 3, {(0, 1): TEN, (1, 2): middle})


LINE = problem(line(), broadcast(3))


def test_a_right_schedule_passes_and_prints():
    schedule = expand(LINE, [Transfer(0, 0, 0), Transfer(1, 0, 1)])
    check(schedule)
    assert (schedule.ticks, schedule.seconds) == (2, 20e-6)
    assert schedule.text() == "0 -> 1  item 0: 0 -> 1\n1 -> 2  item 0: 1 -> 2\n"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([(0, 0, 0), (0, 0, 1)], "item 0 leaves rank 1 for 2 at tick 0, before it is there"),
        ([(-1, 0, 0), (1, 0, 1)], "item 0 leaves rank 0 for 1 at tick -1, before it is there"),
        ([(0, 0, 0)], "item 0 never reaches rank 2"),
        ([(0, 0, 0), (1, 0, 0), (2, 0, 1)], "item 0 arrives on rank 1 twice"),
    ],
)
def test_wrong_schedules_are_refused(plan, message):
    with pytest.raises(ScheduleError, match=message):
        check(expand(LINE, [Transfer(*row) for row in plan]))


def test_two_transfers_cannot_take_one_resource():
    shared = Link(0.0, TEN.beta, ("bus",))
    posed = problem(
        Topology("bus", 3, {(0, 1): shared, (0, 2): shared}, {"bus": Resource()}), broadcast(3), symmetric=False
    )
    check(expand(posed, [Transfer(0, 0, 0), Transfer(1, 0, 1)]))
    with pytest.raises(ScheduleError, match="bus is taken when item 0 wants it at tick 0"):
        check(expand(posed, [Transfer(0, 0, 0), Transfer(0, 0, 1)]))


def test_a_pipelined_link_overlaps_its_latencies():
    posed = problem(Topology("pipe", 2, {(0, 1): Link(3e-6, TEN.beta, pipelined=True)}), broadcast(2, 2))
    schedule = expand(posed, [Transfer(0, 0, 0), Transfer(10, 1, 0)])
    assert posed.costs.tick == 1e-6
    check(schedule)
    assert schedule.ticks == 23
    with pytest.raises(ScheduleError, match="link 0 -> 1 is taken"):
        check(expand(posed, [Transfer(0, 0, 0), Transfer(9, 1, 0)]))


def test_expansion_repeats_a_plan_for_every_image():
    posed = problem(ring(4, TEN), allgather(4))
    link = posed.actions.link_number
    plan = [Transfer(0, 0, int(link[0, 1])), Transfer(0, 0, int(link[0, 3])), Transfer(1, 0, int(link[1, 2]))]
    schedule = expand(posed, plan)
    check(schedule)
    assert (len(schedule), schedule.ticks) == (12, 2)


def test_transfers_that_take_no_time_come_in_order():
    free = problem(line(Link()), broadcast(3))
    plan = [Transfer(1, 0, 1), Transfer(0, 0, 0)]
    assert in_order(free, plan) == sorted(plan)
    nothing = problem(Topology("free", 3, {(0, 1): Link(), (1, 2): Link()}), broadcast(3))
    assert [t.link for t in in_order(nothing, [Transfer(0, 0, 1), Transfer(0, 0, 0)])] == [0, 1]


@settings(max_examples=60, deadline=None)
@given(random_topologies(), st.integers(1, 2), st.integers(0, 50))
def test_moving_transfers_earlier_keeps_a_schedule_right(topology, chunks, gap):
    posed = problem(topology, allgather(topology.ranks, chunks), symmetric=False)
    plan = greedy(posed, Budget(), tries=1)
    late = [Transfer(t.start * 2 + gap, t.item, t.link) for t in plan]
    check(expand(posed, late))
    moved = earliest(posed, late)
    check(expand(posed, moved))
    assert makespan(posed, moved) <= makespan(posed, plan)


def test_relays_are_not_destinations():
    posed = problem(ring(4, TEN), alltoall(4))
    assert greedy(posed, Budget()) is None


@settings(max_examples=20, deadline=None)
@given(random_topologies(2, 6), st.sampled_from([allgather, alltoall]), st.booleans())
def test_the_order_on_columns_is_that_of_records(topology, collective, free):
    """Also where links cost nothing, so that all transfers start at once."""
    if free:
        topology = Topology("free", topology.ranks, dict.fromkeys(topology.links, Link()))
    asked = problem(topology, collective(topology.ranks, 2))
    plan = greedy(asked, Budget())
    schedule = expand(asked, plan or ())
    rows = transfers(schedule)
    assert [rows[row] for row in order_of(schedule).tolist()] == in_order(asked, rows)
