"""The native wait for rings: what is written while it looks ends it."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time
from typing import Any

import pytest
from native_world import CONTEXTS, needs_core, on_stall

from commlib.runtime.shm.control import SegmentLayout

pytestmark = needs_core
RANKS = 16_000
"""So many that a look at all rings takes long enough to write in the midst of it."""
SECONDS = 10.0


class _Two:
    """Ranks 0 and 1 of many, who share a segment in which nothing happens. They sleep as soon as they have looked."""

    def __init__(self) -> None:
        layout = SegmentLayout(RANKS, 64, 64, 1, 64)
        self._maps = [mmap.mmap(-1, layout.size) for _ in range(3)]
        addresses = [ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in self._maps]
        segments = (*addresses, *[addresses[2]] * (RANKS - 3))
        make: Any = CONTEXTS["native"]
        self.contexts = [make(rank, RANKS, layout, segments, 0, 0, 0.02, on_stall, 8) for rank in range(2)]
        self._byte = ctypes.create_string_buffer(1)

    def look(self) -> float:
        """Seconds that one look takes."""
        self.contexts[0].wait_rings(0)
        began = time.perf_counter()
        self.contexts[0].wait_rings(0)
        return time.perf_counter() - began

    def waits(self, delay: float) -> bool:
        """Whether rank 0's wait ends by what rank 1 writes so many seconds after it has begun."""
        begun, changed = threading.Event(), list[bool]()

        def wait() -> None:
            begun.set()
            changed.append(self.contexts[0].wait_rings(SECONDS))

        thread = threading.Thread(target=wait)
        thread.start()
        begun.wait()
        end = time.perf_counter() + delay
        while time.perf_counter() < end:
            pass
        self.contexts[1].ring_write(0, ctypes.addressof(self._byte), 1)
        thread.join()
        self.contexts[0].ring_read(1, ctypes.addressof(self._byte), 1)
        return changed[0]


@pytest.mark.timeout(60)
def test_what_is_written_between_two_looks_ends_the_wait() -> None:
    """Of the many moments at which it is written some are in the second look, after which the thread would sleep."""
    two = _Two()
    look = two.look()
    for at in range(500):
        assert two.waits(look * (at % 50) / 10), f"write {at} was lost"
