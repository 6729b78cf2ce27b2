"""Memory by address: mapped files, numpy views on addresses, and reading another process's memory."""

from __future__ import annotations

import ctypes
import os
import struct
from mmap import PAGESIZE
from typing import Any, ClassVar

import numpy as np

from commlib.errors import ExecutionError
from commlib.runtime.shm.control import PAGE
from commlib.runtime.transport import Bytes

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.munmap.restype = ctypes.c_int
LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_NO_ACCESS, _READ_WRITE = 0, 3
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS, _NO_RESERVE = 0x1, 0x2, 0x10, 0x20, 0x4000
_POPULATE_WRITE, _COLLAPSE = 23, 25
_FAILED = ctypes.c_void_p(-1).value
HUGE_PAGE = 2 << 20
"""Bytes of a huge page, on x86-64 and, with pages of 4 KB, on Arm."""


class _AllMemory:
    """The address space above its first page, as an object that numpy takes for an owner of memory.

    A slice of the one array over it is a view at an address: made in a fifth of the time and memory that an array
    with an owner of its own takes.
    """

    __array_interface__: ClassVar[dict[str, Any]] = {
        "data": (PAGE, False),
        "shape": ((1 << 56) - PAGE,),
        "typestr": "|u1",
        "version": 3,
    }


_MEMORY: Bytes = np.asarray(_AllMemory())


def bytes_at(address: int, size: int) -> Bytes:
    """The memory at an address as a flat array of bytes; it does not keep the memory alive."""
    start = address - PAGE if size else 0
    return _MEMORY[start : start + size]


def array_at(address: int, elements: int, kind: str) -> Any:
    """As ``bytes_at``, of the element type that numpy calls ``kind`` (``np.dtype(...).str``)."""
    dtype = np.dtype(kind)
    return bytes_at(address, elements * dtype.itemsize).view(dtype)


class Mapping:
    """A file of shared memory in this process's address space, until nobody refers to this object any more.

    ``np.asarray(mapping)`` is its bytes, and keeps it alive. No file descriptor stays open for it.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.address, self.size = 0, size
        if size:
            place = _aligned_place(size)
            kind = _SHARED if place is None else _SHARED | _FIXED
            found = LIBC.mmap(place, size, _READ_WRITE, kind, descriptor, 0)
            if found in (None, _FAILED):
                code = ctypes.get_errno()
                if place is not None:
                    LIBC.munmap(place, size)
                raise OSError(code, f"cannot map {size} bytes of shared memory: {os.strerror(code)}")
            self.address = found

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"data": (self.address, False), "shape": (self.size,), "typestr": "|u1", "version": 3}

    def populate(self, start: int, size: int) -> bool:
        """Have all pages of a range present and writable; False where the kernel cannot (before Linux 5.14)."""
        low = (self.address + start) // PAGE * PAGE
        return bool(LIBC.madvise(low, self.address + start + size - low, _POPULATE_WRITE) == 0)

    def enlarge_pages(self, start: int, size: int) -> bool:
        """Put a range, which is populated, on huge pages as far as it has whole ones; whether that was done.

        A page of 4 KB costs a walk through the page tables that the reading of large memory waits for. Linux has this
        since 6.1, whatever the administrator said of huge pages for shared memory, which by default is "never".
        """
        low = -(-(self.address + start) // HUGE_PAGE) * HUGE_PAGE
        high = (self.address + start + size) // HUGE_PAGE * HUGE_PAGE
        return high > low and bool(LIBC.madvise(low, high - low, _COLLAPSE) == 0)

    def __del__(self, unmap: Any = LIBC.munmap) -> None:
        if self.address:
            unmap(self.address, self.size)


def _aligned_place(size: int) -> int | None:
    """Address space for a mapping that begins on a huge page, taken; None: too small for one, or there is no space."""
    if size < HUGE_PAGE:
        return None
    found = LIBC.mmap(None, size + HUGE_PAGE, _NO_ACCESS, _PRIVATE | _ANONYMOUS | _NO_RESERVE, -1, 0)
    if found in (None, _FAILED):
        return None
    begin, end = -(-found // HUGE_PAGE) * HUGE_PAGE, found + size + HUGE_PAGE
    place_end = -(-(begin + size) // PAGESIZE) * PAGESIZE
    if begin > found:
        LIBC.munmap(found, begin - found)
    if end > place_end:
        LIBC.munmap(place_end, end - place_end)
    return int(begin)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


def read_process(pid: int, remote: int, local: int, size: int) -> None:
    """Copy ``size`` bytes at address ``remote`` of process ``pid`` to ``local`` (process_vm_readv(2)).

    Raises:
        ExecutionError: the kernel refuses, or the process has no such memory.
    """
    while size:
        here, there = _Vector(local, size), _Vector(remote, size)
        count = LIBC.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
        if count <= 0:
            code = ctypes.get_errno()
            raise ExecutionError(f"cannot read {size} bytes of process {pid}: {os.strerror(code)}", pid=pid, errno=code)
        local, remote, size = local + count, remote + count, size - count


def can_read(pid: int, remote: int, wanted: int) -> bool:
    """Whether the u64 at an address of another process can be read and is ``wanted``."""
    word = ctypes.c_uint64(0)
    try:
        read_process(pid, remote, ctypes.addressof(word), 8)
    except (ExecutionError, AttributeError):
        return False
    return word.value == wanted


def unpack_at(form: struct.Struct, address: int) -> tuple[Any, ...]:
    """Read a struct at an address."""
    return form.unpack(ctypes.string_at(address, form.size))
