"""What becomes of a rank's failure in a shared-memory session: who hears of it, who refuses, and whose cause stays."""

from __future__ import annotations

import pytest
from shm_areas import entered, stall

from commlib.errors import PeerFailedError
from commlib.runtime.cause import Cause
from commlib.runtime.shm.views import (
    read_view,
    write_failure,
    write_state,
)


def test_a_rank_that_failed_is_named_by_those_that_depend_on_it_with_its_own_words() -> None:
    areas = entered(4)
    areas.watch(3).report(KeyboardInterrupt())
    areas.wait(1, 5, 2)
    areas.wait(2, 5, 3)
    with pytest.raises(PeerFailedError, match="rank 3 failed: KeyboardInterrupt \\(noticed by rank 3\\)"):
        stall(areas, areas.watch(1), [2], 1.0, lambda _: areas.still_waits(2, 3))
    watch = areas.watch(0)
    areas.wait(1, 5, None)
    write_state(areas.controls[1], "running")
    stall(areas, watch, [1], 2.0)
    assert watch.cause is None


def test_a_process_that_failed_and_then_ended_is_named_for_why_it_failed() -> None:
    areas = entered(3)
    write_failure(areas.controls[1], Cause("gone", 2, "rank 2 is gone", 1), 5)
    areas.conditions[1] = areas.conditions[2] = "ended"
    with pytest.raises(PeerFailedError, match="rank 2 is gone") as caught:
        stall(areas, areas.watch(0), [1], 1.0)
    assert caught.value.fields["root"] == 2


def test_a_rank_that_has_not_come_to_a_failed_group_will_not_come() -> None:
    areas = entered(3, 4)
    areas.enter(0, 5)
    areas.watch(2).report(ValueError("no more room"))
    with pytest.raises(PeerFailedError, match="rank 2 failed: no more room"):
        stall(areas, areas.watch(0), [1], 1.0)


def test_a_rank_that_is_at_work_in_a_failed_group_is_waited_for() -> None:
    """It may finish what this rank waits for: who does not depend on the lost rank gets its right result."""
    areas = entered(3)
    areas.watch(2).report(ValueError("no more room"))
    stall(areas, areas.watch(0), [1], 5.0)


def test_after_a_failure_each_rank_refuses_its_next_call_and_says_so() -> None:
    areas = entered(3)
    areas.conditions[2] = "ended"
    with pytest.raises(PeerFailedError):
        stall(areas, areas.watch(0), [2], 1.0)
    watch = areas.watch(1)
    for refuse in (watch.refuse, lambda: watch.on_stall(0.0, ())):
        with pytest.raises(PeerFailedError, match="this group has failed before call 6: rank 2 is gone") as caught:
            refuse()
        assert (caught.value.fields["root"], caught.value.fields["noticed_by"]) == (2, 0)
    assert read_view(areas.controls[1]).state == "failed"


def test_nothing_is_refused_before_a_failure() -> None:
    areas = entered(2)
    watch = areas.watch(0)
    watch.refuse()
    watch.on_stall(0.0, ())
    assert areas.rung == []


def test_a_rank_that_closed_is_named() -> None:
    areas = entered(2)
    areas.watch(1).close()
    areas.enter(0, 6)
    with pytest.raises(PeerFailedError, match="rank 1 closed its session after call 5"):
        stall(areas, areas.watch(0), [1], 1.0)


def test_a_rank_that_closes_after_it_failed_stays_failed() -> None:
    areas = entered(2)
    watch = areas.watch(1)
    watch.report(ValueError("no more room"))
    watch.close()
    assert read_view(areas.controls[1]).state == "failed"


def test_an_interrupt_goes_through_and_the_others_hear_of_it() -> None:
    areas = entered(2)

    def interrupted(_pid: int, _start: int) -> str:
        raise KeyboardInterrupt

    watch = areas.watch(0)
    watch._condition = interrupted  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        stall(areas, watch, [1], 1.0)
    found = read_view(areas.controls[0]).failure
    assert found is not None
    assert found.cause == Cause("failed", 0, "rank 0 failed: KeyboardInterrupt", 0)


def test_the_first_cause_stays() -> None:
    areas, told = entered(3), list[BaseException]()
    watch = areas.watch(0)
    watch.on_error = told.append
    watch.report(ValueError("first"))
    watch.report(ValueError("second"))
    assert [str(error) for error in told] == ["first"]
    assert watch.cause == Cause("failed", 0, "rank 0 failed: first", 0)
    assert areas.rung == [1, 2]
