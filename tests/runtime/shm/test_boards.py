"""Ranks whose boards show different calls under one number: a mismatch, told alike by all."""

from __future__ import annotations

import pytest
from shm_areas import Areas, entered, stall

from commlib.errors import MismatchError, PeerFailedError
from commlib.runtime.shm.views import read_view


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


@pytest.mark.parametrize("end", ["ended", "closed", "late"])
def test_a_rank_that_another_group_left_in_the_lurch_is_named_with_what_happened_there(end: str) -> None:
    ours, theirs = entered(2), entered(3)
    ours.enter(0, 6)
    watch = ours.watch(1)
    theirs.watch(2).report(ValueError("no more room"))
    assert read_view(ours.controls[1]).state == "running"
    if end == "ended":
        ours.conditions[1] = "ended"
    if end == "closed":
        watch.close()
    with pytest.raises(PeerFailedError) as caught:
        stall(ours, ours.watch(0), [1], 10.0)
    assert caught.value.fields["root"] == 1
    trouble = "before that, another group of its process failed: rank 2 failed: no more room (rank 2 of 3 was in that"
    assert trouble in str(caught.value)


def test_a_failure_in_another_group_does_not_end_this_one() -> None:
    ours, theirs = entered(2), entered(3)
    watches = [ours.watch(0), ours.watch(1)]
    theirs.watch(2).report(ValueError("no more room"))
    stall(ours, watches[0], [1], 5.0)
    watches[1].refuse()
    watches[1].report(ValueError("and here"))
    with pytest.raises(PeerFailedError, match="rank 1 failed: and here"):
        stall(ours, watches[0], [1], 1.0)
