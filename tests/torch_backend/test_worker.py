"""The thread that runs queued calls, and their handles: what is told of a call when, and what closing leaves behind."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from typing import Any

import pytest
from timely import wait_until

from commlib.errors import ExecutionError
from commlib.torch_backend import work as handles
from commlib.torch_backend import worker as queues
from commlib.torch_backend.work import PendingWork
from commlib.torch_backend.worker import Worker

pytestmark = pytest.mark.timeout(60)
LONG = 20
"""Seconds; whoever waits so long has waited in vain."""


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """One that does not wait for calls in closing; its threads have ended afterwards."""
    monkeypatch.setattr(queues, "JOIN", 0.0)
    made = Worker("test-worker")
    made.grace = 0.0
    yield made
    made.close(lambda: None)
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("test-worker")])


class Watched(PendingWork):
    """Notes whether its worker is idle when it ends."""

    def __init__(self, worker: Worker) -> None:
        super().__init__("watched")
        self.worker, self.found = worker, list[bool]()

    def end(self, error: BaseException | None) -> bool:
        """As in ``PendingWork``."""
        self.found.append(self.worker.idle)
        return super().end(error)


def test_a_call_has_ended_before_others_pass_it(worker: Worker) -> None:
    """A synchronous call runs here and now if the worker is idle: all calls before it are completed then."""
    work = Watched(worker)
    worker.submit(work, lambda: None)
    wait_until(lambda: worker.idle)
    assert work.is_completed()
    assert work.found == [False]


def test_a_call_has_ended_when_callbacks_find_the_worker_idle(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread for them they run on the worker's: a call in them would wait for its own thread."""
    work, found, begin = PendingWork("work"), list[bool](), threading.Event()
    work.get_future().add_done_callback(lambda _: found.append(worker.idle))
    worker.submit(work, lambda: begin.wait(LONG))

    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    begin.set()
    wait_until(lambda: found)
    assert found == [True]


def _queued(worker: Worker, first: Callable[[], object]) -> list[Any]:
    """The futures of three calls. The callback of the second waits for the third's."""
    works = [PendingWork(f"work {number}") for number in range(3)]
    futures = [work.get_future() for work in works]
    futures[1] = futures[1].then(lambda _: futures[2].wait())
    for work, job in zip(works, (first, lambda: None, lambda: None), strict=True):
        worker.submit(work, job)  # type: ignore[arg-type]
    return futures


def test_closing_under_a_call_that_goes_on_settles_the_futures_behind_it(worker: Worker) -> None:
    goes_on, told = threading.Event(), list[bool]()
    futures = _queued(worker, lambda: goes_on.wait(LONG))
    worker.close(lambda: told.append(True))
    assert told == [True]
    assert not any(future.done() for future in futures)
    goes_on.set()
    wait_until(lambda: all(future.done() for future in futures))


def test_closing_from_a_call_settles_the_futures_behind_it(worker: Worker) -> None:
    queued = threading.Event()
    futures = _queued(worker, lambda: (queued.wait(LONG), worker.close(lambda: None)))
    queued.set()
    wait_until(lambda: all(future.done() for future in futures))


class Interrupted(BaseException):
    """As Ctrl-C, where it hurts most."""


def test_an_interrupted_wait_leaves_the_others_theirs() -> None:
    """Of two threads that wait the first that goes on is interrupted at once."""
    work, left, came = PendingWork("work"), [True], list[str]()
    began = [threading.Event(), threading.Event()]

    def wait(number: int) -> None:
        def at_each_line(frame: FrameType, _event: str, _value: object) -> Any:
            inside = frame.f_code is PendingWork._await.__code__
            if inside:
                began[number].set()
            if inside and work._finished and left:
                left.clear()
                raise Interrupted
            return at_each_line if frame.f_code.co_filename == handles.__file__ else None

        sys.settrace(at_each_line)
        try:
            work.wait()
            came.append("well")
        except Interrupted:
            came.append("interrupted")
        finally:
            sys.settrace(None)

    threads = [threading.Thread(target=wait, args=(number,), daemon=True) for number in range(2)]
    for thread, event in zip(threads, began, strict=True):
        thread.start()
        assert event.wait(LONG)
    work.finish()
    for thread in threads:
        thread.join(LONG)
    assert sorted(came) == ["interrupted", "well"]


def test_a_wait_that_is_over_is_forgotten() -> None:
    work = PendingWork("work")
    for _ in range(3):
        with pytest.raises(RuntimeError):
            work._await(timedelta(milliseconds=1))
    assert work._bells == []
    work.finish()
    assert work.wait()


def test_a_call_that_has_ended_is_not_abandoned() -> None:
    ended, other = PendingWork("ended"), PendingWork("other")
    ended.finish()
    for work in (ended, other):
        work.abandon(ExecutionError("the process was forked"))
    assert ended.wait()
    with pytest.raises(ExecutionError, match="forked"):
        other.wait()
