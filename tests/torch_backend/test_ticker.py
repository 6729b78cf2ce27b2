"""The thread that moves messages on: it ends when it is closed, wherever it is then."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from commlib.torch_backend import shared_messages
from commlib.torch_backend.shared_messages import Ticker

pytestmark = pytest.mark.timeout(30)


class Bell:
    """The ticker's own, and ``before`` is called each time before the ticker's thread takes it."""

    def __init__(self, ticker: Ticker) -> None:
        self._real, self._ticker, self.before = ticker._bell, ticker, lambda: None
        self.wait, self.notify = self._real.wait, self._real.notify

    def __enter__(self) -> bool:
        if threading.current_thread() is self._ticker._thread:
            self.before()
        return self._real.__enter__()

    def __exit__(self, *what: Any) -> None:
        self._real.__exit__(*what)


class Messages:
    """None ever moves."""

    def progress(self) -> bool:
        """Nothing does."""
        return False


class Request:
    """A message that is done after the first look."""

    done = False


def test_closing_is_heard_between_a_look_and_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_messages, "_IDLE", -1.0)  # it sleeps without a limit when nothing is under way
    messages: Any = Messages()
    ticker = Ticker(messages)
    bell: Any = Bell(ticker)
    looked, closed = threading.Event(), threading.Event()

    def before() -> None:
        """It has seen that it is to go on; it comes to its wait when it is closed."""
        if not ticker._under_way:
            looked.set()
            assert closed.wait(20)

    bell.before, ticker._bell = before, bell
    request: Any = Request()
    ticker.watch(request)
    thread = ticker._thread
    assert thread is not None
    request.done = True
    assert looked.wait(20)
    with bell:
        ticker._closed = True  # ``close``, but for its wait for the thread
        bell.notify()
    closed.set()
    thread.join(20)
    assert not thread.is_alive()
