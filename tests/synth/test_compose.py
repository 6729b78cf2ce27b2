"""Inversion and composition: the moves are right by the slow check, and take as long as they should."""

import numpy as np
import pytest
from hypothesis import given, settings
from synth_cases import MIB, TEN, problem, random_topologies
from synth_moves import allreduce, schedule, several

from commlib import collectives
from commlib.topology import Link, Resource, Topology, cost_table, fully_connected, line, ring
from synth.compose import allreduce_moves, copying, moves_of, reducing
from synth.errors import ScheduleError, SynthesisError
from synth.moves import Move, Moves, Parcel, check_moves
from synth.retiming import in_sequence, is_reversible, listed, turned
from synth.schedule import Transfer, expand
from synth.trees import tree_allreduce

ONE = Link(0.0, 1e-6 / MIB)


@settings(max_examples=12, deadline=None)
@given(random_topologies())
def test_moves_of_every_collective_are_right_on_random_topologies(topology):
    for collective in several(topology.ranks):
        found = schedule(topology, collective)
        moves = moves_of(found)
        check_moves(moves)
        assert len(moves) == len(found)
        if not found.problem.demand.reduces or is_reversible(found.problem.costs):
            assert moves.ticks <= found.ticks


@settings(max_examples=12, deadline=None)
@given(random_topologies())
def test_allreduce_is_right_and_at_most_as_long_as_its_halves(topology):
    scatter, gather = (schedule(topology, make(topology.ranks, 2)) for make in HALVES)
    moves = allreduce_moves(scatter, gather)
    check_moves(moves)
    assert moves.ticks <= released(reducing(scatter)) + gather.ticks
    assert moves.collective == collectives.allreduce(topology.ranks, 2 * topology.ranks)


def released(moves: Moves) -> int:
    """When all has arrived and all resources are free again: some are slower than the links that take them."""
    last = moves.ticks
    for start, link in zip(moves.start.tolist(), moves.link.tolist(), strict=True):
        uses = moves.costs.use_ticks[moves.costs.use_start[link] : moves.costs.use_start[link + 1], 0]
        last = max(last, start + int(uses.max()))
    return last


HALVES = (collectives.reducescatter, collectives.allgather)


@settings(max_examples=12, deadline=None)
@given(random_topologies())
def test_trees_are_right_on_random_topologies(topology):
    costs = cost_table(topology, [MIB])
    for chunks in (1, 3):
        moves = tree_allreduce(costs, chunks)
        check_moves(moves)
        assert moves.ticks <= tree_allreduce(costs, chunks, roots=1).ticks


def test_a_reduction_is_the_mirror_image_of_its_schedule():
    posed = problem(Topology("line", 3, {(0, 1): TEN, (1, 2): ONE}), collectives.reduce(3))
    moves = reducing(expand(posed, [Transfer(0, 0, 0), Transfer(10, 0, 1)]))
    check_moves(moves)
    assert moves.text() == "0 -> 1  parcel 0: 2 -> 1 +\n1 -> 11  parcel 0: 1 -> 0 +\n"


def test_a_sum_waits_for_all_its_contributions():
    star = Topology("star", 4, {(0, 1): TEN, (1, 2): TEN, (1, 3): ONE})
    posed = problem(star, collectives.reduce(4))
    moves = reducing(expand(posed, [Transfer(0, 0, 0), Transfer(10, 0, 1), Transfer(10, 0, 2)]))
    last = [move for move in zip(moves.start.tolist(), moves.rows(), strict=True) if move[1].source == 1]
    assert last == [(10, Move(0, 1, 0, True))]


def test_allreduce_of_a_ring_takes_twice_an_allgather():
    moves = allreduce(ring(4), 2)
    check_moves(moves)
    assert moves.seconds == pytest.approx(2 * schedule(ring(4), collectives.allgather(4, 2)).seconds)


def test_gathering_starts_before_the_last_sum_is_complete():
    slow = Topology("slow", 3, {**ring(3, link=ONE).links, (0, 2): TEN, (2, 0): TEN})
    scatter, gather = (schedule(slow, make(3, 1)) for make in HALVES)
    moves = allreduce_moves(scatter, gather)
    check_moves(moves)
    last_sum = int(moves.arrival[moves.reduces].max())
    first_copy = int(moves.start[~moves.reduces].min())
    assert first_copy <= last_sum
    assert moves.ticks <= reducing(scatter).ticks + gather.ticks


def test_a_tree_on_a_switch_is_binomial():
    port = Topology("switch", 8, {pair: Link(0.0, TEN.beta, ()) for pair in fully_connected(8).links})
    moves = tree_allreduce(cost_table(port, [MIB]), 1)
    assert moves.ticks == 2  # nothing is shared: a star
    chain = tree_allreduce(cost_table(line(5, link=TEN), [MIB]), 1)
    assert (chain.ticks, chain.steps) == (4, 4)  # the root is the middle
    pipeline = tree_allreduce(cost_table(line(5, link=TEN), [MIB]), 4)
    assert pipeline.ticks == 4 + 3


def test_no_root_is_told():
    one_way = cost_table(Topology("one way", 2, {(0, 1): TEN}), [MIB])
    with pytest.raises(SynthesisError, match="an allreduce has no root"):
        tree_allreduce(one_way, 1)


def test_schedules_that_do_not_fit_are_refused():
    gather = schedule(ring(3), collectives.allgather(3))
    with pytest.raises(ScheduleError, match="allreduce is reducescatter and allgather, not allgather and allgather"):
        allreduce_moves(gather, gather)
    with pytest.raises(ScheduleError, match="ranks or chunks differ"):
        allreduce_moves(schedule(ring(3), collectives.reducescatter(3, 2)), gather)
    with pytest.raises(ScheduleError, match="solved for links of different cost"):
        allreduce_moves(schedule(ring(3, link=ONE), collectives.reducescatter(3)), gather)
    with pytest.raises(ScheduleError, match="its schedule runs forwards"):
        reducing(gather)
    with pytest.raises(ScheduleError, match="its schedule runs backwards"):
        copying(schedule(ring(3), collectives.reduce(3)))


@settings(max_examples=20, deadline=None)
@given(random_topologies())
def test_turning_costs_is_reversing_the_topology_and_its_own_inverse(topology):
    costs = cost_table(topology, [MIB, 3 * MIB])
    back, reversed_costs = turned(costs), cost_table(topology.reversed(), [MIB, 3 * MIB])
    for one, other in ((back, reversed_costs), (turned(back), costs)):
        assert one.resource_names == other.resource_names
        for name in ("source", "target", "latency", "use_start", "use_resource", "use_ticks"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_what_shares_a_resource_for_different_rests_cannot_be_mirrored():
    fast, slow = Link(1e-6, 1e-6, ("bus",), pipelined=True), Link(2e-6, 1e-6, ("bus",), pipelined=True)
    links = {(0, 1): fast, (1, 0): slow}
    bus = Topology("bus", 2, links, {"bus": Resource()})
    assert not is_reversible(cost_table(bus, [1.0]))
    assert is_reversible(cost_table(ring(4), [1.0]))


def test_list_scheduling_takes_the_longest_way_first():
    costs = cost_table(line(4, link=TEN), [MIB])
    parcels = (Parcel({0: (0,)}, {1: (0,)}), Parcel({0: (1,)}, {3: (0,)}))
    rows = [Move(0, 0, 1, False), Move(1, 0, 1, False), Move(1, 1, 2, False), Move(1, 2, 3, False)]
    anything = collectives.custom("two", [2, 0, 0, 0], [0, 1, 0, 1], {(1, 0): [(0, 0)], (3, 0): [(0, 1)]})
    assert in_sequence(anything, costs, parcels, rows).ticks == 4
    best = listed(anything, costs, parcels, rows)
    check_moves(best)
    assert best.ticks == 3
