"""The threads that settle futures: order, depth, callbacks that wait for one another, threads that cannot be had."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

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
    assert not [thread.name for thread in threading.enumerate() if thread.name == "test-callbacks"]


def until(condition: Callable[[], bool]) -> bool:
    """Whether this comes true within 5 s."""
    limit = time.monotonic() + 5
    while not condition() and time.monotonic() < limit:
        time.sleep(0.005)
    return condition()


def test_one_after_the_other_in_order(settled):
    done: list[int] = []
    for number in range(50):
        settled.add(Call(lambda number=number: (time.sleep(0.0002), done.append(number))))
    assert until(lambda: not settled.busy)
    assert done == list(range(50))


def test_calls_of_a_callback_are_settled_while_it_waits(settled):
    depths: list[int] = []
    inner, outer = threading.Event(), threading.Event()

    def wait() -> None:
        depths.append(settling.depth())
        settled.add(Call(lambda: (depths.append(settling.depth()), inner.set()), settling.depth()))
        inner.wait(5)
        outer.set()

    begun = time.monotonic()
    settled.add(Call(wait))
    assert outer.wait(5)
    assert time.monotonic() - begun < settling.PATIENCE
    assert depths == [1, 2]
    assert settling.depth() == 0


def test_callbacks_that_wait_for_later_ones_are_found(settled):
    events = [threading.Event() for _ in range(4)]
    found: list[bool] = []
    for event, after in itertools.pairwise(events):
        settled.add(Call(lambda event=event, after=after: (found.append(after.wait(5)), event.set())))
    settled.add(Call(events[-1].set))
    assert events[0].wait(5)
    assert until(lambda: found == [True] * 3)
    time.sleep(2 * settling.PATIENCE)
    assert sum(thread.name == "test-callbacks" for thread in threading.enumerate()) == 2  # the last, and the watch


def test_without_threads_it_is_settled_at_once(settled, monkeypatch):
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        settled.add(Call(lambda: done.append(threading.get_ident())))
    assert done == [threading.get_ident()]
    settled.add(Call(lambda: done.append(0)))
    assert until(lambda: done[1:] == [0])
