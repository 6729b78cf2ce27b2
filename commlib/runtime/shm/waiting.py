"""Waiting in pure Python: look again a few times, then yield the core, then sleep in the kernel until a bell rings.

A rank that is about to sleep adds one to the word after its bell, fences, looks once more at what it waits for, and
sleeps if the bell is as before. Who changes a word that another rank may wait for fences, and rings if that rank
sleeps. The fence keeps "my store, then my load" in order, which x86-64 alone does not; Python has none, but taking a
free lock is a locked instruction, which is one. A bell that is missed all the same costs one slice of time.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from commlib.runtime.shm.control import ALARM, BELL, DONE, WHERE, SegmentLayout
from commlib.runtime.shm.memory import LIBC, bytes_at

Blocked = tuple[int, int, int, int, int]
"""threadblock, step, kind (a ``WAITS`` index), peer, channel; -1 where there is none."""
Attempt = Callable[[], Sequence[Blocked] | None]
"""Try to go on: None if anything moved, else what is waited for."""

_FUTEX = {"x86_64": 202, "amd64": 202, "aarch64": 98}.get(platform.machine().lower())
_WAIT, _WAKE, _ALL = 0, 1, 0x7FFFFFFF
_WHERE = struct.Struct("<Qiiiiii")


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _futex_wait(address: int, seen: int, seconds: float) -> None:
    """Sleep while the u32 at the address is ``seen``; may return early."""
    if _FUTEX is None:
        time.sleep(min(seconds, 1e-4))
        return
    limit = _Time(int(seconds), int(seconds % 1 * 1e9))
    LIBC.syscall(_FUTEX, ctypes.c_void_p(address), _WAIT, ctypes.c_uint(seen), ctypes.byref(limit), None, 0)


def _futex_wake(address: int) -> None:
    if _FUTEX is not None:
        LIBC.syscall(_FUTEX, ctypes.c_void_p(address), _WAKE, _ALL, None, None, 0)


def make_fence() -> Callable[[], None]:
    """A function that is a full fence on x86-64, for one thread at a time."""
    lock = threading.Lock()
    acquire, release = lock.acquire, lock.release

    def fence() -> None:
        acquire()
        release()

    return fence


class Bells:
    """The bells of all ranks, as one rank rings and hears them. Threads of the rank may share it.

    ``halves[p]`` are the u32 words of rank p's control area.
    """

    def __init__(self, rank: int, layout: SegmentLayout, segments: Sequence[int]) -> None:
        self.rank, self.ranks, self._segments = rank, layout.ranks, tuple(segments)
        end = layout.control_end
        self.halves = [bytes_at(address, end).data.cast("I") for address in segments]
        self.asleep_at = BELL // 4 + 1
        self._guard, self._asleep, self._rings = threading.Lock(), 0, itertools.count(1)

    def ring(self, peer: int) -> None:
        """Wake a rank if it sleeps. The caller has fenced since it changed what the rank may wait for."""
        if self.halves[peer][self.asleep_at]:
            self._ring(peer)

    def _ring(self, peer: int) -> None:
        """Numbers that nobody rings with twice: a bell that two ranks ring at once never returns to an old value."""
        self.halves[peer][BELL // 4] = (next(self._rings) * self.ranks + self.rank + 1) & 0xFFFFFFFF
        _futex_wake(self._segments[peer] + BELL)

    def finished(self) -> None:
        """DONE has grown: wake those who wait for it. The caller has fenced."""
        own = self.halves[self.rank]
        if own[DONE // 4 + 2]:
            own[DONE // 4 + 2] = 0
            for peer in range(self.ranks):
                if peer != self.rank:
                    self.ring(peer)

    def arm(self) -> None:
        """A thread is about to sleep."""
        with self._guard:
            self._asleep += 1
            self.halves[self.rank][self.asleep_at] = self._asleep

    def disarm(self) -> None:
        """It sleeps no more."""
        with self._guard:
            self._asleep -= 1
            self.halves[self.rank][self.asleep_at] = self._asleep

    def heard(self) -> int:
        """The bell's word now."""
        return self.halves[self.rank][BELL // 4]

    def sleep(self, heard: int, seconds: float) -> None:
        """Sleep until the bell is no longer ``heard``, or (about) so long."""
        _futex_wait(self._segments[self.rank] + BELL, heard, seconds)


class Waiter:
    """How the call of one rank waits. ``on_stall`` is asked each ``slice_seconds`` while nothing moves."""

    def __init__(
        self, bells: Bells, spins: int, yields: int, slice_seconds: float, on_stall: Callable[[float, Any], None]
    ) -> None:
        self.bells, self.fence = bells, make_fence()
        self._spins, self._yields, self._slice, self._on_stall = range(spins), range(yields), slice_seconds, on_stall
        self._where = memoryview(bells.halves[bells.rank]).cast("B")
        self.call, self.tile = 0, 0

    def until(self, attempt: Attempt, prepare: Callable[[], None] | None = None) -> None:
        """Return when ``attempt`` has moved on; ``prepare`` is called before each look that precedes sleep."""
        for _ in self._spins:
            if attempt() is None:
                return
        for _ in self._yields:
            os.sched_yield()
            if attempt() is None:
                return
        self.bells.arm()
        try:
            self._sleep_until(attempt, prepare)
        finally:
            self.bells.disarm()
            _WHERE.pack_into(self._where, WHERE, self.call, 0, 0, 0, 0, 0, 0)

    def _sleep_until(self, attempt: Attempt, prepare: Callable[[], None] | None) -> None:
        began = asked = time.monotonic()
        bells = self.bells
        while True:
            heard = bells.heard()
            if prepare is not None:
                prepare()
            self.fence()
            blocked = attempt()
            if blocked is None:
                return
            threadblock, step, kind, peer, channel = blocked[0]
            _WHERE.pack_into(self._where, WHERE, self.call, threadblock, step, peer, channel, kind, self.tile)
            now = time.monotonic()
            if now - asked >= self._slice or bells.halves[bells.rank][ALARM // 4]:
                asked = now
                self._on_stall(now - began, blocked)
            bells.sleep(heard, self._slice)
