"""The threads that settle futures: order, depth, callbacks that wait for one another, threads that cannot be had."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from timely import wait_until

from commlib.torch_backend import settling
from commlib.torch_backend.settling import Settling

pytestmark = pytest.mark.timeout(30)


class Call:
    """A call that has ended, whose callback is ``settle``."""

    def __init__(self, settle: Callable[[], object], depth: int = 0) -> None:
        self.settle, self.depth = settle, depth


@pytest.fixture
def settled():
    """One to use; its threads have ended afterwards."""
    made = Settling("test")
    yield made
    made.close(5.0)
    assert names() == 0


def names() -> int:
    """How many threads there are to settle and to watch."""
    return sum(thread.name == "test-callbacks" for thread in threading.enumerate())


def test_one_after_the_other_in_order(settled, monkeypatch):
    monkeypatch.setattr(settling._Lane, "held_up", False)  # a machine that is busy elsewhere is taken for that
    done: list[int] = []
    for number in range(50):
        settled.add(Call(lambda number=number: (time.sleep(0.0002), done.append(number))))
    wait_until(lambda: not settled.busy)
    assert done == list(range(50))


def test_calls_of_a_callback_are_settled_while_it_waits(settled):
    depths: list[int] = []
    inner, outer = threading.Event(), threading.Event()

    def wait() -> None:
        depths.append(settling.depth())
        settled.add(Call(lambda: (depths.append(settling.depth()), inner.set()), settling.depth()))
        inner.wait(20)
        outer.set()

    settled.add(Call(wait))
    assert outer.wait(20)
    assert depths == [1, 2]
    assert [len(lane.threads) for lane in settled._lanes] == [1, 1]  # the watch had nothing to find
    assert settling.depth() == 0


def test_callbacks_that_wait_for_later_ones_are_found(settled):
    events = [threading.Event() for _ in range(4)]
    found: list[bool] = []
    for event, after in itertools.pairwise(events):
        settled.add(Call(lambda event=event, after=after: (found.append(after.wait(20)), event.set())))
    settled.add(Call(events[-1].set))
    assert events[0].wait(20)
    wait_until(lambda: found == [True] * 3)
    wait_until(lambda: names() == 2)  # the last, and the watch


def test_a_lane_that_goes_on_by_itself_gets_no_second_thread(settled, monkeypatch):
    """The watch finds a lane held up; before it acts the callback ends, and its thread waits for more: of two that do,
    one would stay when all are to end."""
    original, finish, came = settling._Lane.go_on, threading.Event(), threading.Event()

    def go_on(lane: Any, *taken: int) -> None:
        if lane.added:  # it may be the lane's first thread
            finish.set()
            wait_until(lambda: lane.settled == 2)
        original(lane, *taken)
        if lane.added:
            came.set()

    monkeypatch.setattr(settling._Lane, "go_on", go_on)
    settled.add(Call(lambda: finish.wait(20)))
    settled.add(Call(lambda: None))
    assert came.wait(20)
    assert [len(lane.threads) for lane in settled._lanes] == [1]


def test_after_the_end_it_is_settled_at_once(settled):
    done: list[int] = []
    settled.add(Call(lambda: done.append(0)))
    wait_until(lambda: done)
    settled.close(20.0)
    settled.add(Call(lambda: done.append(threading.get_ident())))
    assert done == [0, threading.get_ident()]


def test_callbacks_that_wait_for_later_ones_are_found_after_the_end(settled):
    later, found = threading.Event(), list[bool]()
    settled.add(Call(lambda: found.append(later.wait(20))))
    settled.add(Call(later.set))
    settled.close(0.0)
    wait_until(lambda: found == [True])
    wait_until(lambda: names() == 0)


def test_without_threads_it_is_settled_at_once(settled, monkeypatch):
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        settled.add(Call(lambda: done.append(threading.get_ident())))
    assert done == [threading.get_ident()]
    settled.add(Call(lambda: done.append(0)))
    wait_until(lambda: done[1:] == [0])
