"""A rank's segment: anonymous shared memory, private to the user, which peers map through /proc/<pid>/fd.

It has no name that could be left behind: a memfd, or, where the kernel has none, a file of mode 0600 in /dev/shm that
is unlinked as soon as it is open. When the last process that maps it ends, however it ends, the memory is free.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile

import numpy as np

from commlib.errors import ExecutionError
from commlib.runtime.liveness import start_time
from commlib.runtime.shm.control import HEADER, MAGIC, PAGE, VERSION, SegmentLayout
from commlib.runtime.shm.memory import Mapping, unpack_at

_HEADER = struct.Struct("<QIIIIQQ")
_ADD_SEALS, _SEAL_SHRINK, _SEAL_GROW = 1033, 2, 4


def anonymous_file(size: int) -> int:
    """The descriptor of new shared memory of ``size`` bytes without a name; nobody can make it smaller.

    Raises:
        OSError: there is no memory or no descriptor left.
    """
    if not hasattr(os, "memfd_create"):
        descriptor, path = tempfile.mkstemp(prefix="commlib-", dir="/dev/shm")
        os.unlink(path)
        os.ftruncate(descriptor, size)
        return descriptor
    descriptor = os.memfd_create("commlib", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.fchmod(descriptor, 0o600)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, _ADD_SEALS, _SEAL_SHRINK | _SEAL_GROW)
    return descriptor


def map_peer_file(pid: int, descriptor: int, size: int) -> Mapping:
    """Map the shared memory that process ``pid`` has open as ``descriptor``.

    Raises:
        OSError: it cannot be opened or mapped. ExecutionError: it is smaller than ``size``.
    """
    opened = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
    try:
        found = os.fstat(opened).st_size
        if found < size:
            raise ExecutionError(f"the shared memory of process {pid} has {found} bytes, not {size}", pid=pid)
        return Mapping(opened, size)
    finally:
        os.close(opened)


def create_segment(layout: SegmentLayout, rank: int) -> tuple[Mapping, int]:
    """Make this rank's segment, write its header, touch control area and lanes; the mapping and the descriptor.

    The caller closes the descriptor when all peers have mapped it.

    Raises:
        OSError: there is no memory or no descriptor left.
    """
    descriptor = anonymous_file(layout.size)
    try:
        mapping = Mapping(descriptor, layout.size)
    except OSError:
        os.close(descriptor)
        raise
    touch(mapping, layout)
    pid = os.getpid()
    header = _HEADER.pack(MAGIC, VERSION, rank, layout.ranks, pid, start_time(pid), layout.size)
    np.asarray(mapping)[HEADER : HEADER + _HEADER.size] = np.frombuffer(header, np.uint8)
    return mapping, descriptor


def attach_segment(layout: SegmentLayout, rank: int, pid: int, descriptor: int) -> Mapping:
    """Map the segment of a peer, and check its header.

    Raises:
        OSError: it cannot be opened or mapped. ExecutionError: it is not what it should be.
    """
    mapping = map_peer_file(pid, descriptor, layout.size)
    found = unpack_at(_HEADER, mapping.address + HEADER)
    wanted = (MAGIC, VERSION, rank, layout.ranks, pid)
    if found[:5] != wanted or found[6] != layout.size:
        raise ExecutionError(
            f"the segment of rank {rank} says {found}, not {wanted} and {layout.size} bytes", rank=rank
        )
    mapping.populate(0, layout.fifo(0, 0))
    return mapping


def touch(mapping: Mapping, layout: SegmentLayout) -> None:
    """Have control area and lanes in memory: the first touch of a page is slow."""
    if not mapping.populate(0, layout.fifo(0, 0)):
        np.asarray(mapping)[: layout.fifo(0, 0) : PAGE] = 0
    mapping.enlarge_pages(0, layout.fifo(0, 0))
