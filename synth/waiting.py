"""Waiting: the queue of list scheduling. What could start first goes first, among equals what has priority.

Looking at everything that waits for a resource whenever that is free again takes quadratic time; only the first is
looked at here, and what is started when is the same.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

Uses = Sequence[Sequence[tuple[int, int]]]
"""For each job the (slot, ticks) that it takes; no ticks are 0."""


class Queue:
    """Jobs that may start at some time, and slots that each of them takes for some ticks.

    Complexity: O(log jobs) for a job and slot, and again each time that a job waited for more than one slot.
    """

    def __init__(self, uses: Uses) -> None:
        self._uses = uses
        self._free: dict[int, int] = {}
        self._ready: list[tuple[int, float, int]] = []
        # Those that wait for a slot, but for the one that is called, which is in _ready for when the slot is free. So
        # are any that were called before it.
        self._behind: dict[int, list[tuple[float, int]]] = {}
        self._called: dict[int, tuple[float, int]] = {}
        self._caller: dict[int, int] = {}

    def push(self, at: int, rank: float, job: int) -> None:
        """A job may start from now on; the lowest rank goes first, then the lowest number."""
        heapq.heappush(self._ready, (at, rank, job))

    def pop(self) -> tuple[int, int] | None:
        """(start, job) of the next, which takes its slots; None when there is none."""
        while self._ready:
            at, rank, job = heapq.heappop(self._ready)
            caller = self._caller.pop(job, None)
            if caller is not None and self._called.get(caller) == (rank, job):
                del self._called[caller]
            until, slot = max(((self._free.get(slot, 0), slot) for slot, _ in self._uses[job]), default=(0, -1))
            starts = until <= at
            if starts:
                self._free.update((slot, at + ticks) for slot, ticks in self._uses[job])
            else:
                heapq.heappush(self._behind.setdefault(slot, []), (rank, job))
                self._call(slot, at)
            if caller is not None:
                self._call(caller, at)
            if starts:
                return at, job
        return None

    def _call(self, slot: int, now: int) -> None:
        """See that the first of those that wait for a slot is looked at when it is free."""
        behind = self._behind.get(slot)
        if not behind or self._called.get(slot, (math.inf, 0)) < behind[0]:
            return
        rank, job = heapq.heappop(behind)
        self._called[slot], self._caller[job] = (rank, job), slot
        heapq.heappush(self._ready, (max(now, self._free[slot]), rank, job))
