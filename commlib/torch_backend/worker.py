"""The queue of a group: asynchronous calls run in the order in which they were made, on one thread.

The thread is made by the first asynchronous call. A synchronous call runs in its caller's thread, unless something is
queued before it: the ranks of a group must run their calls in one order. Callbacks of futures run beside the thread
(``settling``): they may make calls and wait for them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from commlib.errors import ExecutionError
from commlib.runtime.forks import FORKED, own
from commlib.torch_backend.settling import Settling
from commlib.torch_backend.work import PendingWork

GRACE = 1.0
"""Seconds that closing waits for queued calls and callbacks, which go on meanwhile; then the running call is ended."""
JOIN = 5.0
"""Seconds that closing waits for a call that was told to end."""
_LOOK = 0.002
"""Seconds between two looks whether all has ended, in closing."""


class Worker:
    """One thread, made on first use, and the calls that wait for it: ``submitted`` less ``ended`` are queued or run.

    ``grace``: seconds that closing waits for them.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.grace = GRACE
        self._waiting: deque[PendingWork] = deque()
        self._begin()
        own(self)

    def _begin(self) -> None:
        self._queue: queue.SimpleQueue[tuple[PendingWork, Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._guard = threading.RLock()
        self._settling = Settling(self._name)
        self._closed = False
        self.submitted = 0
        self.ended = 0
        self._served = 0  # what has ended, and if it has a future to be settled, is handed on

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

    @property
    def queueing(self) -> bool:
        """Whether this thread queues a call (and a signal handler asks): it must not wait for the queue now."""
        return bool(self._guard._is_owned())  # type: ignore[attr-defined]

    def submit(self, work: PendingWork, job: Callable[[], None]) -> None:
        """Queue a call; after ``close`` it runs here and now, and has the error that calls then have."""
        with self._guard:
            if not self._closed:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                    self._thread.start()
                self.submitted += 1
                self._waiting.append(work)
                self._queue.put((work, job))
                return
        work.finish(_outcome(job))

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            work, job = item
            error = _outcome(job)
            asked = work.end(error)  # first: who finds nothing queued must find this call completed
            self._waiting.popleft()
            self.ended += 1  # before callbacks, which could not wait for a call that is queued behind this
            if asked:
                self._settling.add(work)
            self._served += 1
            del item, work, job, error
        self._settling.end()

    def close(self, end: Callable[[], None]) -> None:
        """End the threads. What is queued has ``grace`` seconds; then ``end`` is called, which ends the running call.

        Calls behind it fail at once, as a group's calls do after a failure. Where it does not end nevertheless, the
        threads go on, and end when it has: the futures of all calls are settled.
        """
        if self._lasts(self.grace):
            end()
            self._lasts(JOIN)
        with self._guard:
            self._closed = True
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(0.0 if self.submitted != self.ended else JOIN)
        if thread is None or not thread.is_alive():
            self._settling.close(0.0 if self._settling.busy else self.grace)

    def _lasts(self, seconds: float) -> bool:
        """Wait for calls and callbacks, at most so long; whether calls have not ended then."""
        limit = time.monotonic() + seconds
        own = threading.current_thread() is self._thread
        while not own and (self.submitted != self._served or self._settling.busy) and time.monotonic() < limit:
            time.sleep(_LOOK)
        return not self.idle


def _outcome(job: Callable[[], None]) -> BaseException | None:
    """What a call ends with, if not well."""
    try:
        job()
    except BaseException as error:
        return error
    return None
