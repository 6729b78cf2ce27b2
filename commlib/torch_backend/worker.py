"""The queue of a group: asynchronous calls run in the order in which they were made, on one thread.

The thread is made by the first asynchronous call. A synchronous call runs in its caller's thread, unless something is
queued before it: the ranks of a group must run their calls in one order.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable

from commlib.errors import ExecutionError
from commlib.runtime.forks import FORKED, own
from commlib.torch_backend.work import PendingWork

_JOIN = 5.0
"""Seconds that closing waits for a call that still runs."""


class Worker:
    """One thread, made on first use, and the calls that wait for it: ``submitted`` less ``ended`` are queued or run."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: deque[PendingWork] = deque()
        self._begin()
        own(self)

    def _begin(self) -> None:
        self._queue: queue.SimpleQueue[tuple[PendingWork, Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()
        self.submitted = 0
        self.ended = 0

    def disown(self) -> None:
        """See ``forks``: the thread is not there, and what it was to do is done elsewhere."""
        self._begin()
        for work in self._waiting:
            work.abandon(ExecutionError(FORKED))
        self._waiting.clear()

    @property
    def idle(self) -> bool:
        """Whether every call that was queued has ended."""
        return self.submitted == self.ended

    def submit(self, work: PendingWork, job: Callable[[], None]) -> None:
        """Queue a call."""
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                self._thread.start()
            self.submitted += 1
            self._waiting.append(work)
            self._queue.put((work, job))

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            work, job = item
            error = None
            try:
                job()
            except BaseException as raised:
                error = raised
            self._waiting.popleft()
            self.ended += 1
            work.finish(error)
            del item, work, job, error

    def close(self) -> None:
        """End the thread, after what is queued."""
        with self._guard:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN)
