"""Interrupts: a solver searches in a thread of its own, so that Ctrl-C reaches the program meanwhile.

Python handles signals between two of its own instructions on the main thread. A solver's native code that runs there
holds Ctrl-C back until it returns, and CP-SAT's own handler takes it for itself and keeps quiet about it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")
_PAUSE = 0.1
"""Seconds between two looks at whether a signal came in."""
_GRACE = 5.0
"""Seconds that a solver has to heed a stop. One that does not is left behind: its thread keeps no program alive."""


def interruptible(search: Callable[[], _T], stop: Callable[[], None]) -> _T:
    """What ``search`` returns or raises; it should let go of the interpreter's lock while it runs.

    When the handler of a signal raises meanwhile (Ctrl-C: KeyboardInterrupt), ``stop`` is called, until the search has
    ended or 5 s are over, and what the handler raised goes on. Off the main thread, where no signal is handled, the
    search simply runs.
    """
    if threading.current_thread() is not threading.main_thread():
        return search()
    running = _Search(search)
    try:
        running.start()
        while not running.over.wait(_PAUSE):
            pass
    except BaseException:
        _end(running, stop)
        raise
    return running.result()


def _end(running: _Search[_T], stop: Callable[[], None]) -> None:
    """Ask a search to stop, again and again: it may not have begun when it is asked first. One whose thread has not, it
    never will."""
    running.dropped = True
    until = time.monotonic() + _GRACE
    while running.begun and not running.over.is_set() and time.monotonic() < until:
        stop()
        running.over.wait(_PAUSE)


class _Search(threading.Thread, Generic[_T]):
    """A thread that keeps what its search returned or raised.

    ``over`` says when it has: Python 3.11 takes a thread for ended when a signal interrupts the wait for its end.
    """

    def __init__(self, search: Callable[[], _T]) -> None:
        super().__init__(name="solver", daemon=True)
        self.over = threading.Event()
        self.begun = self.dropped = False
        self._search = search
        self._found: list[_T] = []
        self._raised: BaseException | None = None

    def run(self) -> None:
        """Search."""
        self.begun = True  # first: who drops the search looks at this last
        if self.dropped:
            return
        try:
            self._found.append(self._search())
        except BaseException as error:  # it is the caller's, whatever it is
            self._raised = error
        finally:
            self.over.set()

    def result(self) -> _T:
        """What the search returned; raises what it raised."""
        if self._raised is not None:
            raise self._raised
        return self._found[0]
