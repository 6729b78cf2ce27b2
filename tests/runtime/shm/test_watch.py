"""Why a rank of a shared-memory session is stuck, found in control areas that are plain memory, on a clock of ours."""

from __future__ import annotations

import threading
from itertools import permutations

import pytest
from shm_areas import Areas, entered, stall

from commlib.errors import DeadlineError, PeerFailedError
from commlib.runtime.shm.control import WAITS
from commlib.runtime.shm.views import (
    alarmed,
    read_view,
    write_stall,
)


def test_a_dead_process_ends_the_call_at_the_second_look_and_every_rank_hears_of_it() -> None:
    areas = entered(3)
    areas.wait(0, 5, 2)
    areas.conditions[2] = "ended"
    watch, told = areas.watch(0), list[BaseException]()
    watch.on_error = told.append
    with pytest.raises(PeerFailedError) as caught:
        stall(areas, watch, [1, 2], 1.0)
    watch.report(caught.value)
    assert told == [caught.value]
    assert areas.now == pytest.approx(1000.1)
    assert str(caught.value) == (
        "rank 0 threadblock 1 step 4 waits for a signal of rank 2 on channel 2 in call 5 (allreduce ring): rank 2 is "
        "gone: its process (102) has ended. The process group cannot be used after this; make a new one."
    )
    assert caught.value.fields == {
        "rank": 0,
        "peer": 2,
        "channel": 2,
        "threadblock": 1,
        "step": 4,
        "root": 2,
        "cause": "gone",
        "noticed_by": 0,
        "call": 5,
        "collective": "allreduce",
    }
    assert areas.rung == [1, 2]
    assert [alarmed(control) for control in areas.controls] == [True] * 3
    assert [read_view(control).state for control in areas.controls] == ["failed", "running", "running"]


def test_a_word_that_comes_before_its_sender_dies_is_no_failure() -> None:
    """The process was seen dead once, then this rank moved on; it is stuck anew for another rank."""
    areas = entered(3)
    watch = areas.watch(0)
    areas.conditions[2] = "ended"
    stall(areas, watch, [2], 0.05)
    areas.enter(0, 6)
    areas.enter(1, 6)
    stall(areas, watch, [1], 2.0)
    assert watch.cause is None


@pytest.mark.parametrize("order", list(permutations((1, 2, 3))))
def test_the_chain_of_waits_is_followed_to_the_root(order: tuple[int, ...]) -> None:
    """Each waits for the next, the last for the dead rank 0: all name 0, whoever looks first."""
    areas = entered(4)
    first, second, third = order
    for rank, peer in ((first, second), (second, third), (third, 0)):
        areas.wait(rank, 5, peer)
    areas.conditions[0] = "ended"
    watches = {rank: areas.watch(rank) for rank in order}

    def still_wait(_: float) -> None:
        areas.still_waits(second, third)
        areas.still_waits(third, 0)

    for rank, peer in ((first, second), (third, 0), (second, third)):
        with pytest.raises(PeerFailedError, match="rank 0 is gone") as caught:
            stall(areas, watches[rank], [peer], 1.0, still_wait)
        assert (caught.value.fields["root"], caught.value.fields["peer"]) == (0, peer)


def test_a_rank_that_waits_for_several_is_followed_to_all_of_them() -> None:
    """WHERE of rank 1 shows rank 0, which lives and waits for 1; another threadblock of 1 waits for the dead 2."""
    areas = entered(3)
    areas.wait(0, 5, 1)
    areas.wait(1, 5, 0)
    areas.conditions[2] = "ended"
    with pytest.raises(PeerFailedError, match="rank 2 is gone"):
        stall(areas, areas.watch(0), [1], 1.0, lambda _: write_stall(areas.controls[1], int(areas.now * 1e9), (0, 2)))


@pytest.mark.parametrize("closes", [True, False])
def test_a_rank_that_has_had_no_core_is_given_time_to_see_what_came(closes: bool) -> None:
    """Rank 2 did its part and left; rank 1, which waited for it, has had no core since to go on. Had rank 2 closed, it
    might be at work in the call until time is up."""
    areas = entered(3)
    areas.wait(1, 5, 2)
    areas.still_waits(1, 2)
    if closes:
        areas.watch(2).close()
    else:
        areas.conditions[2] = "ended"
    watch = areas.watch(0)
    stall(areas, watch, [1], 2.0)
    assert watch.cause is None
    with pytest.raises(PeerFailedError, match="rank 2 closed" if closes else "rank 2 is gone"):
        stall(areas, watch, [1], 10.0 if closes else 0.2, lambda _: areas.still_waits(1, 2))
    assert (areas.now > 1008) == closes


@pytest.mark.parametrize("closes", [True, False])
def test_who_had_no_core_hides_nobody_that_this_rank_waits_for_itself(closes: bool) -> None:
    """The dead rank 2 is found through rank 1, which has had no core; rank 3 left this rank itself in the lurch."""
    areas = entered(4)
    areas.wait(1, 5, 2)
    areas.still_waits(1, 2)
    areas.conditions[2] = "ended"
    if closes:
        areas.enter(3, 4)
        areas.watch(3).close()
    else:
        areas.conditions[3] = "stopped"
    with pytest.raises(PeerFailedError, match="rank 3 closed" if closes else "rank 3 stopped"):
        stall(areas, areas.watch(0), [1, 3], 0.3 if closes else 3.5)


def test_a_suspicion_does_not_outlive_the_wait() -> None:
    """Rank 2 was seen dead, its word came all the same; the next wait has lasted as long when the watch is told."""
    areas = entered(3)
    watch, waits = areas.watch(0), [(0, 4, WAITS.index("signal"), 2, 2)]
    areas.conditions[2] = "ended"
    for _ in range(3):
        areas.now += 0.05
        watch.on_stall(0.02, waits)
    assert watch.cause is None


def test_what_a_rank_waited_for_long_ago_does_not_count() -> None:
    areas = entered(3)
    areas.wait(1, 5, 0)
    areas.conditions[2] = "ended"
    write_stall(areas.controls[1], int((areas.now - 5) * 1e9), (0, 2))
    stall(areas, areas.watch(0), [1], 2.0)


def test_a_rank_that_moved_on_since_it_was_stuck_is_not_followed() -> None:
    areas = entered(3)
    areas.conditions[2] = "ended"
    stall(areas, areas.watch(0), [1], 2.0, lambda _: write_stall(areas.controls[1], int(areas.now * 1e9), (2,)))


def test_a_dead_rank_that_nobody_waits_for_harms_nobody() -> None:
    areas = entered(3)
    areas.conditions[2] = "ended"
    watch = areas.watch(0)
    stall(areas, watch, [1], 8.0)
    assert watch.cause is None


def test_a_stopped_process_gets_time_to_go_on() -> None:
    areas = entered(2)
    areas.conditions[1] = "stopped"
    stall(areas, areas.watch(0, timeout=10.0), [1], 2.9)
    with pytest.raises(PeerFailedError, match=r"rank 1 stopped: its process \(101\) was stopped by a signal") as caught:
        stall(areas, areas.watch(0, timeout=10.0), [1], 3.5)
    assert caught.value.fields["cause"] == "stopped"


def test_a_process_that_goes_on_is_waited_for() -> None:
    areas = entered(2)
    areas.conditions[1] = "stopped"
    watch = areas.watch(0)
    stall(areas, watch, [1], 2.0)
    areas.conditions.clear()
    stall(areas, watch, [1], 6.0)
    assert watch.cause is None


def test_time_in_which_this_rank_was_stopped_itself_does_not_count_for_others() -> None:
    """A whole job is stopped and goes on, this rank first: the others get time to follow."""
    areas = entered(2)
    areas.conditions[1] = "stopped"
    watch = areas.watch(0, timeout=100.0)
    watch.on_stall(0.05, [(0, 0, 1, 1, 0)])
    areas.now += 60
    watch.on_stall(60.05, [(0, 0, 1, 1, 0)])
    watch.on_stall(60.10, [(0, 0, 1, 1, 0)])
    assert watch.cause is None


@pytest.mark.parametrize(("timeout", "seconds"), [(10.0, 9.0), (1.0, 0.8), (2000.0, 1999.0)])
def test_a_late_rank_is_waited_for_until_shortly_before_the_deadline(timeout: float, seconds: float) -> None:
    areas = entered(2)
    areas.enter(0, 6)
    watch = areas.watch(0, timeout)
    watch.on_stall(0.05, [(0, 0, 1, 1, 0)])
    areas.now += seconds - 0.1
    watch.on_stall(seconds - 0.05, [(0, 0, 1, 1, 0)])
    areas.now += 0.06
    text = "rank 1 never came to call 6: it is alive, and its last call was 5"
    with pytest.raises(PeerFailedError, match=text) as caught:
        watch.on_stall(seconds + 0.01, [(0, 0, 1, 1, 0)])
    assert caught.value.fields["cause"] == "absent"


def test_a_late_rank_is_named_by_all_that_wait_for_it_indirectly() -> None:
    areas = entered(3)
    for rank in (1, 2):
        areas.enter(rank, 6)
    areas.wait(2, 6, 1)
    areas.wait(1, 6, 0)
    for rank, peer in ((2, 1), (1, 0)):
        with pytest.raises(PeerFailedError, match="rank 0 never came to call 6"):
            stall(areas, areas.watch(rank), [peer], 10.0)


def test_a_call_that_moves_now_and_then_has_a_deadline_all_the_same() -> None:
    areas = entered(2)
    watch = areas.watch(0, timeout=4.0)
    for _ in range(2):
        stall(areas, watch, [1], 1.5)
    with pytest.raises(DeadlineError, match="rank 1 is alive, in call 5, and waits for nobody: it is slow") as caught:
        stall(areas, watch, [1], 1.5)
    assert areas.now == pytest.approx(1003.2, abs=0.06)
    assert (caught.value.fields["root"], caught.value.fields["cause"]) == (1, "deadline")


def test_each_call_has_a_deadline_of_its_own() -> None:
    areas = Areas(2)
    watch = areas.watch(0, timeout=4.0)
    for call in range(1, 9):
        areas.enter(0, call)
        areas.enter(1, call)
        stall(areas, watch, [1], 3.0)
    assert watch.cause is None


def test_ranks_that_wait_for_each_other_reach_the_deadline() -> None:
    areas = entered(2)
    areas.wait(1, 5, 0)
    with pytest.raises(DeadlineError, match="ranks 0, 1 wait for each other"):
        stall(areas, areas.watch(0), [1], 10.0)


def test_what_a_rank_waits_for_is_told_in_words() -> None:
    areas = entered(2)
    watch = areas.watch(1)
    assert watch.waits() == ""
    areas.wait(1, 5, 0)
    assert watch.waits() == "for a signal of rank 0 on channel 1 (threadblock 0 step 3)"


@pytest.mark.parametrize(
    ("condition", "text", "seconds"),
    [("ended", "rank 1 is gone", 0.15), ("lives", "rank 1 is alive, but did not send or receive", 8.1)],
)
def test_waits_outside_of_calls_are_judged_too(condition: str, text: str, seconds: float) -> None:
    areas = Areas(2)
    areas.enter(1, 3, "broadcast", 5)
    areas.conditions[1] = condition  # type: ignore[assignment]
    watch, begun = areas.watch(0), areas.now

    def receive() -> None:
        while areas.now < begun + 20:
            areas.now += 0.05
            watch.on_ring_stall(areas.now - begun, [1], "a receive from rank 1 (tag 5)", 9.0)

    with pytest.raises(PeerFailedError, match=text) as caught:
        receive()
    assert areas.now - begun <= seconds
    assert str(caught.value).startswith("rank 0 waits for rank 1 in a receive from rank 1 (tag 5): rank 1 ")


def test_a_guard_is_described() -> None:
    areas = entered(2)
    areas.conditions[1] = "ended"
    watch = areas.watch(0)
    guard = [(-1, -1, WAITS.index("guard"), 1, -1)]
    watch.on_stall(0.05, guard)
    with pytest.raises(PeerFailedError, match=r"^rank 0 waits for rank 1 to finish the call before the last in call 5"):
        watch.on_stall(0.1, guard)


def test_a_look_costs_little() -> None:
    """Told all the time that nothing moves, the watch looks at the others ever less often."""
    areas = entered(8)
    watch = areas.watch(0)
    looks: list[float] = []
    looked_at = watch._sights

    def counted() -> object:
        looks.append(areas.now)
        return looked_at()

    watch._sights = counted  # type: ignore[method-assign,assignment]
    waits, begun = [(0, 0, 1, 1, 0)], areas.now
    while areas.now < begun + 8:
        areas.now += 0.01
        watch.on_stall(areas.now - begun, waits)
    assert 10 < len(looks) < 60


def test_a_rank_that_is_late_because_it_receives_from_a_late_rank_is_followed_when_time_is_up() -> None:
    areas = entered(3)
    areas.enter(0, 6)
    receives = areas.watch(1, timeout=100.0)

    def still_receives(seconds: float) -> None:
        receives.on_ring_stall(seconds, [2], "a receive from rank 2 (tag 5)", 100.0)

    with pytest.raises(PeerFailedError, match="rank 2 never came to call 6") as caught:
        stall(areas, areas.watch(0), [1], 10.0, still_receives)
    assert caught.value.fields["peer"] == 1


def test_threads_that_wait_outside_of_calls_do_not_disturb_each_other() -> None:
    """One began 8 s ago, one just now; their peer dies: both must see it twice in a row."""
    areas = Areas(2)
    watch, turn, ended = areas.watch(0, timeout=50.0), threading.Barrier(2, timeout=20), list[str]()

    def receive(began: float) -> None:
        for step in range(4):
            turn.wait()
            try:
                watch.on_ring_stall(areas.now - began + step / 10, [1], f"a receive since {began}", 50.0)
            except PeerFailedError as error:
                ended.append(f"{step} {error}"[:11])
                return

    areas.conditions[1] = "ended"
    threads = [threading.Thread(target=receive, args=(areas.now - before,)) for before in (8.0, 0.1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [text.split()[0] for text in ended] == ["1", "1"]


def test_each_wait_outside_of_calls_has_a_deadline_of_its_own() -> None:
    """A thread waits for a moment; minutes later it waits again, for a little longer: that is another wait."""
    areas = Areas(2)
    areas.enter(1, 3, "broadcast", 5)
    watch = areas.watch(0)
    watch.on_ring_stall(0.05, [1], "a receive from rank 1 (tag 5)", 9.0)
    areas.now += 300.0
    watch.on_ring_stall(0.06, [1], "a receive from rank 1 (tag 6)", 9.0)
    assert watch.cause is None
