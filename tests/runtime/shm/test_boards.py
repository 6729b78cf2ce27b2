"""Ranks whose boards show different calls under one number: a mismatch, told alike by all."""

from __future__ import annotations

import pytest
from shm_areas import Areas, entered, stall

from commlib.errors import MismatchError


def test_another_call_under_the_same_number_is_a_mismatch_and_the_fewest_are_blamed() -> None:
    areas = entered(4)
    areas.enter(2, 5, "broadcast tree", 12)
    for rank in (0, 1, 2, 3):
        with pytest.raises(MismatchError) as caught:
            stall(areas, areas.watch(rank), [(rank + 1) % 4], 1.0)
        text = "rank 2 is in call 5 (broadcast tree), rank 0 in call 5 (allreduce ring)"
        assert text in str(caught.value)
        assert caught.value.fields["root"] == 2
    assert areas.now <= 1000.21


@pytest.mark.parametrize("me", [0, 1])
def test_two_ranks_that_differ_judge_alike(me: int) -> None:
    areas = entered(2)
    areas.enter(1, 5, "allreduce ring", 12)
    with pytest.raises(MismatchError, match="differ in what the names do not show") as caught:
        areas.watch(me).on_mismatch(1 - me)
    assert (caught.value.fields["root"], caught.value.fields["peer"]) == (1, 1 - me)


def test_a_mismatch_that_the_board_shows_no_more_names_the_peer() -> None:
    areas = entered(2)
    areas.enter(1, 9)
    with pytest.raises(MismatchError, match="rank 1 makes another call than rank 0"):
        areas.watch(0).on_mismatch(1)


@pytest.mark.parametrize("told", [False, True])
def test_a_mismatch_in_the_call_before_that_this_rank_did_not_meet_is_found(told: bool) -> None:
    """The root of a broadcast waits for nobody; it goes on, and is stuck one call later."""
    areas = entered(2)
    areas.enter(1, 5, "allreduce ring", 12)
    areas.enter(0, 6)
    watch = areas.watch(0)
    with pytest.raises(MismatchError, match=r"rank 1 is in call 5 .*, rank 0 in call 5") as caught:
        watch.on_mismatch(1) if told else stall(areas, watch, [1], 1.0)
    assert caught.value.fields["call"] == 6


def test_entries_of_other_calls_are_no_mismatch() -> None:
    areas = Areas(2)
    areas.enter(1, 1, "allreduce ring", 12)
    areas.enter(0, 1, "allreduce ring", 12)
    areas.enter(0, 5, "allreduce tree", 13)
    watch = areas.watch(0)
    stall(areas, watch, [1], 5.0)
    assert watch.cause is None


def test_with_two_minds_and_ranks_yet_to_come_the_judgement_waits_for_them() -> None:
    areas = Areas(4)
    areas.enter(0, 5)
    areas.enter(1, 5, "broadcast tree", 12)
    watch = areas.watch(1)

    def others_come(seconds: float) -> None:
        if seconds > 0.12:
            areas.enter(3, 5)

    with pytest.raises(MismatchError) as caught:
        stall(areas, watch, [0], 1.0, others_come)
    assert caught.value.fields["root"] == 1
    assert areas.now == pytest.approx(1000.15)


@pytest.mark.parametrize("told", [False, True])
def test_the_judgement_does_not_wait_for_long(told: bool) -> None:
    areas = Areas(4)
    areas.enter(0, 5)
    areas.enter(1, 5, "broadcast tree", 12)
    watch = areas.watch(0)
    with pytest.raises(MismatchError) as caught:
        watch.on_mismatch(1) if told else stall(areas, watch, [1], 1.0)
    assert caught.value.fields["root"] == 1
    assert areas.now <= 1000.36


def test_a_group_that_failed_by_a_mismatch_refuses_with_one() -> None:
    areas = entered(2)
    areas.enter(1, 5, "broadcast tree", 12)
    with pytest.raises(MismatchError):
        areas.watch(0).on_mismatch(1)
    with pytest.raises(MismatchError, match="this group has failed before call 6: rank 1 is in call 5"):
        areas.watch(1).refuse()
