"""What a process uses: memory of several kinds, segments, descriptors, threads.

glibc keeps what is freed. Tensors of a few MB come and go in a soak, so its heap grows to twice what is in use and
more, differently on each rank. What tells a leak is what stays after the heap is trimmed, and the bytes in use.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from pathlib import Path

_LIBC = ctypes.CDLL(None)
_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _Heap(ctypes.Structure):
    """mallinfo2(3)."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS.split()]


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
