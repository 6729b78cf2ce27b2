"""A group of contexts, native or Python, as threads of one process over anonymous memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from commlib.native import core
from commlib.runtime.shm.context import PythonContext
from commlib.runtime.shm.control import BELL, CORE, DONE, HEADER, LINE, STALL, WHERE, SegmentLayout
from commlib.runtime.table import RankTable

needs_core = pytest.mark.skipif(core is None, reason="the native core is not built")
CONTEXTS = {"python": PythonContext, "native": None if core is None else core.Context}
DEADLINE = 20.0


class StuckError(Exception):
    """Raised by ``on_stall`` at the deadline."""


def on_stall(seconds: float, waits: Sequence[tuple[int, ...]]) -> None:
    if seconds > DEADLINE:
        raise StuckError(waits)


class World:
    """The segments of a group, and a context of one kind on each."""

    def __init__(self, kind: str, layout: SegmentLayout, stall: Callable[..., None] = on_stall, slice_s: float = 0.02):
        self.layout, self.ranks = layout, layout.ranks
        self.maps = [mmap.mmap(-1, layout.size) for _ in range(layout.ranks)]
        self.segments = tuple(ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in self.maps)
        for rank, memory in enumerate(self.maps):
            memory[HEADER + 12 : HEADER + 24] = struct.pack("<III", rank, layout.ranks, os.getpid())
        make: Any = CONTEXTS[kind]
        self.contexts = [
            make(rank, layout.ranks, layout, self.segments, 20, 10, slice_s, stall, 8) for rank in range(layout.ranks)
        ]
        self.regions = 0

    def register(self, arrays: Sequence[np.ndarray]) -> None:
        """Array p is memory of rank p that all may reach."""
        for context in self.contexts:
            for peer, array in enumerate(arrays):
                context.region(peer, self.regions, array.ctypes.data, array.nbytes)
        self.regions += 1

    def take(self, tables: Sequence[RankTable], fingerprint: int = 7, reach: int = 0) -> list[Any]:
        pairs = zip(self.contexts, tables, strict=True)
        return [context.table(table, fingerprint, b"a test", reach) for context, table in pairs]

    def call(self, tables: Sequence[Any], inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """One call by all ranks; the first error of any."""

        def one(rank: int) -> None:
            self.contexts[rank].run(tables[rank], inputs[rank].ctypes.data, outputs[rank].ctypes.data, 5.0)

        self.each(one)

    def each(self, work: Callable[[int], None]) -> None:
        """Do ``work(rank)`` in a thread per rank; the first error of any."""
        errors: list[BaseException] = []

        def guarded(rank: int) -> None:
            try:
                work(rank)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * DEADLINE)
        if errors:
            raise errors[0]

    def memory(self) -> list[bytes]:
        """All segments, without the words that depend on who was late: bells, sleepers, where, stalls, core, header."""
        masked = []
        for memory in self.maps:
            copy = bytearray(memory)
            for low, size in (
                *((word, LINE) for word in (HEADER, BELL, WHERE, STALL)),
                (CORE, 4),
                (DONE + 8, LINE - 8),
            ):
                copy[low : low + size] = bytes(size)
            masked.append(bytes(copy))
        return masked
