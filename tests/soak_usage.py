"""What a process uses: memory of several kinds, segments, descriptors, threads.

glibc keeps what is freed, up to 64 MB at the top of each of its arenas (8 a core, for threads that are many at once).
Tensors of a few MB come and go in a soak, in a thread of each group, so a process would grow for long, differently on
each rank. ``return_memory`` has glibc give back what it can at once; then a leak shows.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from pathlib import Path

_LIBC = ctypes.CDLL(None)
_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

STEADY = ("segments", "descriptors", "threads", "tasks", "names")
"""What may not be more than before. Some fall: gloo closes the launcher's first connections when it can."""


class _Heap(ctypes.Structure):
    """mallinfo2(3)."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS.split()]


def return_memory() -> None:
    """Have malloc give memory back early, and map what is large (mallopt(3): M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)."""
    if hasattr(_LIBC, "mallinfo2"):  # as old as glibc 2.33
        _LIBC.mallopt(-1, 128 << 10)
        _LIBC.mallopt(-3, 128 << 10)


def usage() -> dict[str, int]:
    """After a collection of garbage.

    KiB: ``held`` by the process itself, ``own`` of it when the heap is trimmed, ``live`` of that in use by malloc,
    ``peak`` of all, ``shared`` memory. Numbers: Python's ``blocks``, ``segments`` that are mapped, ``descriptors``,
    ``threads`` of Python, ``tasks`` of the kernel, ``names`` in /dev/shm.
    """
    gc.collect()
    held = _status("RssAnon")
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)
    return {
        "held": held,
        "own": _status("RssAnon"),
        "live": _live() >> 10,
        "peak": _status("VmHWM"),
        "shared": _status("RssShmem"),
        "blocks": sys.getallocatedblocks(),
        "segments": Path("/proc/self/maps").read_text().count("memfd:commlib"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": len(os.listdir("/proc/self/task")),
        "names": sum(name.startswith("commlib") for name in os.listdir("/dev/shm")),
    }


def usage_since(before: dict[str, int], seconds: float = 10.0) -> dict[str, int]:
    """Usage once nothing of ``STEADY`` is more than before, or after so long.

    What has been closed may not have ended: the kernel's task outlives ``Thread.join`` by a moment.
    """
    end = time.monotonic() + seconds
    while any((found := usage())[name] > before[name] for name in STEADY) and time.monotonic() < end:
        time.sleep(0.01)
    return found


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _live() -> int:
    """Bytes in use by malloc; 0 where it does not say."""
    if not hasattr(_LIBC, "mallinfo2"):
        return 0
    _LIBC.mallinfo2.restype = _Heap
    heap = _LIBC.mallinfo2()
    return int(heap.uordblks + heap.hblkhd)
