"""Moves: the checker refuses what is wrong, the text says what happens, lengths and steps are counted."""

from dataclasses import replace

import numpy as np
import pytest
from synth_cases import TEN

from commlib import collectives
from commlib.topology import Link, Resource, Topology, cost_table
from synth.errors import ScheduleError
from synth.moves import Move, Moves, Parcel, check_moves, timed

MIB = float(1 << 20)
LINE = Topology("line", 3, {(0, 1): TEN, (1, 2): TEN, (1, 0): TEN, (2, 1): TEN})
COSTS = cost_table(LINE, [MIB])
EVERYONE = dict.fromkeys(range(3), (0,))


def broadcast(*rows: tuple[int, int, int]) -> Moves:
    """(start, source, target) of a chunk that begins on rank 0."""
    parcels = (Parcel({0: (0,)}, EVERYONE),)
    moves = [Move(0, source, target, False) for _, source, target in rows]
    return timed(collectives.broadcast(3), COSTS, parcels, [row[0] for row in rows], moves)


def allreduce(*rows: tuple[int, int, int, bool]) -> Moves:
    """(start, source, target, reduces) of a sum of three contributions."""
    moves = [Move(0, *row[1:]) for row in rows]
    return timed(collectives.allreduce(3), COSTS, (Parcel(EVERYONE, EVERYONE),), [row[0] for row in rows], moves)


SUMS = ((0, 0, 1, True), (0, 2, 1, True), (1, 1, 0, False), (1, 1, 2, False))


def test_right_moves_pass_and_print():
    moves = allreduce(*SUMS)
    check_moves(moves)
    assert (moves.ticks, moves.seconds, moves.steps, len(moves)) == (2, 20e-6, 2, 4)
    assert moves.text() == (
        "0 -> 1  parcel 0: 0 -> 1 +\n0 -> 1  parcel 0: 2 -> 1 +\n1 -> 2  parcel 0: 1 -> 0\n1 -> 2  parcel 0: 1 -> 2\n"
    )


def test_moves_are_sorted_by_start_and_keep_the_order_of_dependences():
    moves = broadcast((1, 1, 2), (0, 0, 1))
    assert (moves.start.tolist(), moves.target.tolist()) == ([0, 1], [1, 2])
    free = cost_table(Topology("free", 3, {(0, 1): Link(), (1, 2): Link()}), [MIB])
    instant = replace(broadcast((0, 0, 1), (0, 1, 2)), costs=free)
    check_moves(instant)
    assert instant.ticks == 0


@pytest.mark.parametrize(
    ("moves", "message"),
    [
        (broadcast((0, 0, 1), (0, 1, 2)), "parcel 0 leaves rank 1 for 2 at tick 0, before it is there"),
        (broadcast((-1, 0, 1), (1, 1, 2)), "parcel 0 leaves rank 0 for 1 at tick -1"),
        (broadcast((0, 0, 2)), "there is no link 0 -> 2"),
        (broadcast((0, 0, 1)), "output chunk 0 of rank 2 does not get what broadcast wants there"),
        (allreduce(*SUMS[1:]), "output chunk 0 of rank 0 does not get what allreduce wants there"),
        (allreduce(*SUMS[:2], (1, 1, 0, True), SUMS[3]), "rank 0 has a contribution to parcel 0 already that 1 brings"),
        (allreduce(SUMS[0], (1, 2, 1, True), *SUMS[2:]), "output chunk 0 of rank 0 does not get"),
        (allreduce(SUMS[0], (0, 2, 1, False), *SUMS[2:]), "output chunk 0 of rank 0 does not get"),
    ],
)
def test_wrong_moves_are_refused(moves, message):
    with pytest.raises(ScheduleError, match=message):
        check_moves(moves)


def test_two_moves_cannot_take_one_resource():
    shared = Link(0.0, TEN.beta, ("bus",))
    bus = Topology("bus", 3, {(0, 1): shared, (0, 2): shared}, {"bus": Resource()})
    clash = replace(broadcast((0, 0, 1), (0, 0, 2)), costs=cost_table(bus, [MIB]))
    with pytest.raises(ScheduleError, match="bus is taken when parcel 0 wants it at tick 0"):
        check_moves(clash)
    check_moves(replace(clash, start=np.array([0, 1])))


def test_a_pipelined_link_is_free_before_its_message_has_arrived():
    pipe = cost_table(Topology("pipe", 2, {(0, 1): Link(3e-6, TEN.beta, pipelined=True)}), [MIB])
    parcels = tuple(Parcel({0: (k,)}, {0: (k,), 1: (k,)}) for k in range(2))
    rows = [Move(k, 0, 1, False) for k in range(2)]
    moves = timed(collectives.broadcast(2, 2), pipe, parcels, [0, 10], rows)
    check_moves(moves)
    assert moves.arrival.tolist() == [13, 23]
    with pytest.raises(ScheduleError, match="link 0 -> 1 is taken when parcel 1 wants it at tick 9"):
        check_moves(timed(collectives.broadcast(2, 2), pipe, parcels, [0, 9], rows))
