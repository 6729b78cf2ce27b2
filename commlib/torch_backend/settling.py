"""Settling: the futures of asynchronous calls are settled, and their callbacks run, beside the thread that runs calls.

A callback may make a call of its own and wait for it (compression hooks of DistributedDataParallel do). So the thread
that runs a group's calls never runs a callback. Futures are settled in the order of their calls, one after the other;
but those of calls that a callback made have a thread of their own, one for each depth of callbacks in callbacks: the
callback that made them may wait for them. A callback that waits for something else which is settled later (the future
of a call that another thread made) is found by a watch, which has another thread go on after ``PATIENCE``.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from typing import Protocol

PATIENCE = 0.2
"""Seconds that the callbacks of one call may take while other futures are to be settled, before another thread settles
those: they may be what the callbacks wait for."""


class _Here(threading.local):
    depth = 0


_here = _Here()


def depth() -> int:
    """How deep in callbacks this thread is: 0 in none, 1 in one of a call that was made in none, and so on."""
    return _here.depth


class Ended(Protocol):
    """A call that has ended; ``depth`` is that of the thread that made it."""

    depth: int

    def settle(self) -> None:
        """Settle the future, which runs its callbacks."""


class _Lane:
    """The calls of one depth. Its last thread settles them; those before it end when their callbacks do.

    ``added`` less ``taken`` are queued, ``taken`` less ``settled`` are settled now. For each that is queued, and for
    the end, a token wakes a thread; one that has nothing to take leaves it to the next, so that all come to an end.
    """

    def __init__(self, depth: int, name: str) -> None:
        self._depth, self._name = depth, name
        self._queue: deque[Ended] = deque()
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.added = self.taken = self.settled = 0
        self._start()

    def add(self, work: Ended) -> bool:
        """Queue a call; whether another has yet to be settled."""
        with self._guard:
            self.added += 1
            self._queue.append(work)
        self._tokens.put(None)
        return self.added - self.settled > 1

    @property
    def queued(self) -> bool:
        """Whether calls are queued."""
        return self.added > self.taken

    @property
    def held_up(self) -> bool:
        """Whether calls are queued while callbacks run."""
        return self.queued and self.taken > self.settled

    def go_on(self, taken: int) -> None:
        """Have a new thread settle what is queued, if it is held up and no call was taken after the first ``taken``.

        Raises:
            RuntimeError: the system has no thread left, or the process ends.
        """
        with self._guard:  # so that of two threads one knows that it is not the last, and takes nothing
            if self.held_up and self.taken == taken:
                self._start()

    def _start(self) -> None:
        before = [each for each in self.threads if each.is_alive()]
        thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
        self.threads = [*before, thread]
        try:
            thread.start()
        except RuntimeError:
            self.threads = before
            raise

    def _serve(self) -> None:
        _here.depth = self._depth + 1
        mine, last = threading.current_thread(), True
        while last and (work := self._take(mine)) is not None:
            work.settle()
            del work
            with self._guard:
                self.settled += 1
                last = self.threads[-1] is mine

    def _take(self, mine: threading.Thread) -> Ended | None:
        """The next call. None: another thread has taken over, or this is the end."""
        self._tokens.get()
        with self._guard:
            if self._queue and self.threads[-1] is mine:
                self.taken += 1
                return self._queue.popleft()
        self._tokens.put(None)
        return None

    def end(self) -> None:
        """Have the threads end, after what is queued."""
        self._tokens.put(None)


class Settling:
    """The threads that settle the futures of one group's calls, made on first need, and the watch over them."""

    def __init__(self, name: str) -> None:
        self._name = f"{name}-callbacks"
        self._guard = threading.Lock()
        self._lanes: list[_Lane] = []
        self._behind = threading.Event()
        self._ended = False
        self._watch: threading.Thread | None = None

    def add(self, work: Ended) -> None:
        """Settle the future of a call, after those of the calls of its depth before it; one thread calls this.

        It is settled here and now if no thread can be had, and after ``end``.
        """
        with self._guard:
            lane = None if self._ended else self._lane(work.depth)
            if lane is not None and lane.add(work) and not self._behind.is_set():
                self._behind.set()
        if lane is None:
            work.settle()

    def _lane(self, depth: int) -> _Lane | None:
        try:
            while len(self._lanes) <= depth:
                self._lanes.append(_Lane(len(self._lanes), self._name))
            if self._watch is None:
                self._watch = self._watching()
        except RuntimeError:
            return None
        return self._lanes[depth]

    def _watching(self) -> threading.Thread:
        watch = threading.Thread(target=self._look, name=self._name, daemon=True)
        watch.start()
        return watch

    def _look(self) -> None:
        """Replace the thread of each lane that has taken nothing for a while though calls are queued."""
        while self._behind.wait() and (self._queued or not self._ended):
            self._behind.clear()
            seen = [(lane, lane.taken) for lane in tuple(self._lanes)]
            time.sleep(PATIENCE)
            for lane, taken in seen:
                with contextlib.suppress(RuntimeError):
                    lane.go_on(taken)
            if self._queued or self._ended:
                self._behind.set()

    @property
    def _queued(self) -> bool:
        return any(lane.queued for lane in tuple(self._lanes))

    @property
    def busy(self) -> bool:
        """Whether any future is to be settled, but for that whose callback calls this."""
        mine = threading.current_thread()
        return any(lane.added - lane.settled > (mine in lane.threads) for lane in tuple(self._lanes))

    def end(self) -> None:
        """Have the threads end, after what is queued."""
        with self._guard:
            self._ended = True
            for lane in self._lanes:
                lane.end()
        self._behind.set()

    def close(self, seconds: float) -> None:
        """End the threads; wait at most so long for callbacks that still run."""
        self.end()
        limit = time.monotonic() + seconds
        threads = [thread for lane in self._lanes for thread in lane.threads]
        for thread in [*threads, self._watch]:
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, limit - time.monotonic()))
