"""Attendance: what is told of ranks that have not come, from their processes and from what others have found."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist
from timely import wait_until

from commlib.errors import DeadlineError, ExecutionError, PeerFailedError
from commlib.runtime import attendance as module
from commlib.runtime.attendance import Attendance, AttendedStore
from commlib.runtime.liveness import condition
from commlib.runtime.shm.rendezvous import Board

SHOW = (
    "from commlib.runtime.liveness import this_process; print(this_process(), flush=True); import time; time.sleep(60)"
)


class Other:
    """Another process, which is rank 1, say."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._process, self.shown = process, process.stdout.readline().strip()

    def strike(self, how: signal.Signals, becomes: str) -> None:
        """Send a signal, and wait for what becomes of the process."""
        self._process.send_signal(how)
        wait_until(lambda: condition(self.shown) == becomes)

    def end(self) -> None:
        """Kill it."""
        self.strike(signal.SIGKILL, "ended")


@pytest.fixture
def other() -> Iterator[Other]:
    """It goes with the test."""
    with subprocess.Popen([sys.executable, "-c", SHOW], stdout=subprocess.PIPE, text=True) as process:
        yield Other(process)
        process.kill()


def _three(timeout: float = 30.0) -> tuple[dist.HashStore, list[Attendance]]:
    store = dist.HashStore()
    return store, [_one(store, rank, 3, timeout) for rank in range(3)]


def _one(store: Any, rank: int, ranks: int, timeout: float = 30.0) -> Attendance:
    attendance = Attendance(rank, ranks, timeout, "test")
    attendance.show(store)
    return attendance


def test_of_ranks_that_live_or_are_unknown_nothing_is_told() -> None:
    store, (first, *_) = _three()
    first.look(lambda: [1, 2], 10.0)
    store.delete_key("process/2")
    store.set("process/1", "another machine 1 1")
    time.sleep(2 * module.LOOK)
    first.look(lambda: [1, 2], 10.0)


def test_a_process_that_has_ended_is_told_to_all(other: Other) -> None:
    store, (first, _, last) = _three()
    store.set("process/1", other.shown)
    other.end()
    time.sleep(2 * module.LOOK)
    with pytest.raises(
        PeerFailedError, match="rank 0 waits for rank 1 in opening group test: rank 1 is gone"
    ) as raised:
        first.look(lambda: [1], 10.0)
    assert (raised.value.fields["root"], raised.value.fields["noticed_by"]) == (1, 0)
    with pytest.raises(PeerFailedError, match=r"rank 1 is gone: its process has ended \(noticed by rank 0\)"):
        last.look(lambda: [0], 10.0)


def test_one_that_came_before_it_ended_is_not_missed(other: Other) -> None:
    store, (first, *_) = _three()
    store.set("process/1", other.shown)
    other.end()
    time.sleep(2 * module.LOOK)
    answers = iter([[1], []])
    first.look(lambda: next(answers), 10.0)
    assert not store.check(["lost"])


def test_who_is_stopped_is_waited_for_first(other: Other) -> None:
    store, (first, *_) = _three(timeout=2.0)
    store.set("process/1", other.shown)
    other.strike(signal.SIGSTOP, "stopped")
    assert first._judge(1) is None
    other.strike(signal.SIGCONT, "lives")
    assert first._judge(1) is None
    time.sleep(0.7)
    other.strike(signal.SIGSTOP, "stopped")
    assert first._judge(1) is None
    time.sleep(0.7)
    found = first._judge(1)
    assert found is not None
    assert (found.kind, found.text) == ("stopped", "rank 1 stopped: its process was stopped by a signal")


def test_who_was_stopped_when_nobody_waited_is_waited_for_anew(other: Other) -> None:
    store, (first, *_) = _three(timeout=2.0)
    store.set("process/1", other.shown)
    other.strike(signal.SIGSTOP, "stopped")
    assert first._judge(1) is None
    time.sleep(10 * module.LOOK + 0.1)
    assert first._judge(1) is None


def test_a_rank_that_fails_says_why() -> None:
    _, (first, second, _) = _three()
    second.fail(ValueError("no such thing"))
    time.sleep(2 * module.LOOK)
    with pytest.raises(PeerFailedError, match=r"rank 1 failed: no such thing \(noticed by rank 1\)"):
        first.look(lambda: [2], 10.0)


def test_a_rank_that_gives_up_at_the_deadline_is_not_blamed() -> None:
    _, (first, second, _) = _three()
    second.fail(DeadlineError("rank 1: rank(s) 2 did not come"))
    time.sleep(2 * module.LOOK)
    with pytest.raises(DeadlineError, match=r"rank 1: rank\(s\) 2 did not come"):
        first.look(lambda: [2], 10.0)


class _Lost:
    """A store that has gone."""

    def check(self, _keys: list[str]) -> bool:
        raise RuntimeError("Broken pipe\nstack")


def test_a_store_that_is_lost_is_told_unless_nobody_is_missing() -> None:
    _, (first, *_) = _three()
    first._store = _Lost()
    time.sleep(2 * module.LOOK)
    first.look(list, 10.0)
    time.sleep(2 * module.LOOK)
    with pytest.raises(PeerFailedError, match=r"the group's store was lost \(Broken pipe\)"):
        first.look(lambda: [1], 10.0)


def test_boards_count_members_and_attendance_ranks(other: Other) -> None:
    store, (first, *_) = _three()
    store.set("process/2", other.shown)
    other.end()
    board = Board(AttendedStore(dist.PrefixStore("board", store), first, (0, 2)), 0, 2, 20.0)
    with pytest.raises(PeerFailedError, match="rank 2 is gone"):
        board.exchange({})


def test_what_blocks_gives_its_value_or_its_error() -> None:
    _, (first, *_) = _three()
    assert first.watch(lambda: 7) == 7
    with pytest.raises(KeyError):
        first.watch(lambda: {}[1])
    with pytest.raises(ExecutionError, match="rank 0: gloo cannot connect the ranks: no route"):
        first.watch(_fail)


def _fail() -> None:
    raise RuntimeError("no route\nC++ stack")


def test_what_blocks_for_ever_is_left_at_the_deadline() -> None:
    _, (first, *_) = _three(timeout=0.3)
    with pytest.raises(DeadlineError, match="not all ranks came in time for opening group test"):
        first.watch(lambda: time.sleep(5))


def test_a_failure_to_connect_is_that_of_the_rank_that_ended(other: Other) -> None:
    store, (first, *_) = _three()
    store.set("process/1", other.shown)

    def lose() -> None:
        other.end()
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(PeerFailedError, match="rank 1 is gone"):
        first.watch(lose)


class _Held:
    """A store that nobody can ask any more."""

    def __init__(self, store: dist.HashStore) -> None:
        self._store, self.held = store, False

    def __getattr__(self, name: str) -> Any:
        assert not self.held, f"{name} would block"
        return getattr(self._store, name)


def test_a_store_that_is_held_is_not_asked(other: Other) -> None:
    store = _Held(dist.HashStore())
    first = _one(store, 0, 2)
    store.set("process/1", other.shown)

    def hold() -> None:
        store.held = True
        other.end()
        time.sleep(20)

    with pytest.raises(PeerFailedError, match="rank 1 is gone"):
        first.watch(hold, holds_store=True)
    first.fail(ValueError("it asks nobody"))


def test_who_has_opened_the_group_shows_nothing_any_more() -> None:
    store, (first, *_) = _three()
    first.leave()
    assert not store.check(["process/0"])
