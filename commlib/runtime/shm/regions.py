"""Registered memory: tensors in shared memory of their own, which all ranks of a session have mapped.

Ranks tell each other of their memory through the session itself, by a small table that gathers 64 bytes of each: so
that it is ordered among the other calls, and a rank that makes another call is found out as everywhere.

A region does not keep its tensor alive. When that has gone, its rank says so in the next exchange, and the others unmap
it.
"""

from __future__ import annotations

import heapq
import math
import os
import struct
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from commlib.errors import ExecutionError, SpecError
from commlib.runtime.shm.interface import Context
from commlib.runtime.shm.memory import Mapping
from commlib.runtime.shm.segment import anonymous_file, map_peer_file
from commlib.runtime.table import (
    BLOCK,
    DEPEND,
    LINK,
    MOVE,
    MOVES,
    NONE,
    OPERAND,
    OWN_INPUT,
    OWN_OUTPUT,
    OWN_SCRATCH,
    PEERS,
    SIGNAL,
    STEP,
    WAIT,
    RankTable,
)

Execute = Callable[[Any, int, int], None]
"""Runs a context's table on tensors at two addresses, as ``ShmSession.execute``."""
BLOB = 64
"""Bytes that each rank tells the others."""
_OFFER = struct.Struct("<8q")
_TOLD = 4
"""Regions that have gone of which a rank tells in one exchange; a registration, which makes one, takes two."""
_MOST = 4096
"""Regions that a rank has at once; each takes a file descriptor here, and a mapping in every process."""
_WHAT = ("register memory", "unregister memory")
_FINGERPRINT = 0x7265676973746572
"""Of the exchange of offers to register; one more for those to unregister."""


def exchange_table(rank: int, ranks: int) -> RankTable:
    """A table that gathers ``BLOB`` bytes of every rank: put mine into my scratch, signal, wait, read the others'."""
    peers = [peer for peer in range(ranks) if peer != rank]
    steps: list[tuple[int, int, int, int]] = [(MOVE, NONE, 0, 2)]
    steps += [(SIGNAL, peer, 0, 0) for peer in peers]
    steps += [(WAIT, peer, 0, 0) for peer in peers]
    steps += [(MOVE, NONE, 2 + at, 3 + at) for at in range(len(peers))]
    rows = np.array(
        [(kind, at, NONE, NONE, peer, 0, low, high, 0, 0, 0) for at, (kind, peer, low, high) in enumerate(steps)], STEP
    )
    places = [(OWN_INPUT, 0), (OWN_SCRATCH, 0), (OWN_INPUT, 0), (OWN_OUTPUT, rank * BLOB)]
    for peer in peers:
        places += [(PEERS + 3 * peer + OWN_SCRATCH, 0), (OWN_OUTPUT, peer * BLOB)]
    operands = np.array([(base, 0, offset, 0) for base, offset in places], OPERAND)
    moves = np.array([(2 * at, 2 * at + 1, 2 * at + 2, 0, BLOB) for at in range(len(places) // 2)], MOVES)
    blocks = np.array([(0, len(rows))], BLOCK)
    none = np.zeros(0, LINK)
    return RankTable(
        rank, ranks, rows, moves, operands, np.zeros(0, DEPEND), blocks, none, none, BLOB, 1, 1, "uint8", None,
        False, False, True, (0,),
    )  # fmt: skip


def weakly(storage: torch.UntypedStorage) -> StorageWeakRef:
    """A weak reference to a storage, equal to every other to it; no other storage is, as long as one is held."""
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]


@dataclass(eq=False)
class _Own:
    """A region of this rank: its number, where it lies, and a weak reference to what it belongs to."""

    number: int
    address: int
    size: int
    owner: StorageWeakRef | weakref.ref[Mapping]

    @property
    def stands(self) -> bool:
        """Whether the memory is still there: the tensor may have gone, or the user resized its storage, as some do to
        free memory. Then other tensors come to lie at these addresses."""
        if isinstance(self.owner, weakref.ref):
            return self.owner() is not None
        storage = torch.UntypedStorage._new_with_weak_ptr(self.owner.cdata)
        return storage is not None and storage.data_ptr() == self.address and storage.nbytes() >= self.size


class Regions:
    """The registered memory of all ranks, as one rank sees it."""

    def __init__(self, rank: int, pids: Sequence[int], context: Context) -> None:
        self._rank, self._ranks, self._pids, self._context = rank, len(pids), pids, context
        self._handles: list[Any] = [None, None]
        self._own: list[_Own] = []
        self._gone: list[int] = []
        self._free = list(range(1, _MOST + 1))
        self._mapped: dict[tuple[int, int], Mapping] = {}

    @property
    def mapped(self) -> object:
        """What keeps the others' memory mapped. Who makes a call has it as long as that runs, a planned call as long
        as it is there: ``close`` may come meanwhile, from another thread or a signal handler."""
        return self._mapped

    def holds(self, address: int, size: int) -> bool:
        """Whether memory lies in one of this rank's regions; one that has gone is forgotten."""
        for own in [own for own in self._own if own.address <= address and address + size <= own.address + own.size]:
            if own.stands:
                return True
            self._retire(own)
        return False

    @property
    def untold(self) -> bool:
        """Whether this rank has regions that have gone, of which the others do not know."""
        for own in [own for own in self._own if not own.stands]:
            self._retire(own)
        return bool(self._gone)

    def close(self) -> None:
        """Forget everything; mappings go at once, or with the calls that have them (see ``mapped``)."""
        self._own.clear()
        self._mapped = {}

    def register(self, tensor: torch.Tensor, execute: Execute) -> None:
        """See ``ShmSession.register``."""
        own, descriptor, trouble = None, -1, ""
        try:
            storage = tensor.untyped_storage()
            own = self._known(storage)
            if own is None and storage.nbytes():
                descriptor, size = _move(storage)
                own = self._make(storage.data_ptr(), size, weakly(storage))
        except (RuntimeError, TypeError, AttributeError, OSError, SpecError) as error:
            trouble = f"this tensor's storage cannot move to shared memory: {error}"
        self._share(execute, own, descriptor, trouble)

    def unregister(self, tensor: torch.Tensor, execute: Execute) -> None:
        """See ``ShmSession.unregister``."""
        with suppress(RuntimeError, TypeError, AttributeError):
            own = self._known(tensor.untyped_storage())
            if own is not None:
                self._retire(own)
        self.tidy(execute)

    def tidy(self, execute: Execute) -> None:
        """Tell all ranks of regions that have gone, the latest of them first, and unmap theirs."""
        self._exchange(execute, (1, -1, 0, 0), 1)

    def _known(self, storage: torch.UntypedStorage) -> _Own | None:
        return next((own for own in self._own if own.address == storage.data_ptr() and own.stands), None)

    def _make(self, address: int, size: int, owner: StorageWeakRef | weakref.ref[Mapping]) -> _Own:
        """A new region. A number is used again when all ranks have heard that the region before has gone."""
        if not self._free:
            raise SpecError(f"rank {self._rank} has {_MOST} registered tensors, as many as there can be")
        return _Own(heapq.heappop(self._free), address, size, owner)

    def _retire(self, own: _Own) -> None:
        if own in self._own:
            self._own.remove(own)
        self._context.region(self._rank, own.number, 0, 0)
        self._gone.insert(0, own.number)

    def empty(self, shape: Sequence[int], dtype: torch.dtype, execute: Execute) -> torch.Tensor:
        """See ``ShmSession.empty``."""
        size = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
        if not size:
            self._share(execute, None, -1)
            return torch.empty(tuple(shape), dtype=dtype)
        try:
            descriptor = anonymous_file(size)
        except OSError as error:
            self._share(execute, None, -1, f"there is no shared memory of {size} bytes: {error}")
            raise
        try:
            mapping, own, trouble = self._mapping(descriptor, size)
            self._share(execute, own, descriptor, trouble)
        finally:
            os.close(descriptor)
        return torch.from_numpy(np.asarray(mapping)).view(dtype).view(tuple(shape))

    def _mapping(self, descriptor: int, size: int) -> tuple[Mapping, _Own | None, str]:
        """New memory, mapped; or why there is none."""
        try:
            mapping = Mapping(descriptor, size)
            own = self._make(mapping.address, size, weakref.ref(mapping))
        except (OSError, SpecError) as error:
            return Mapping(-1, 0), None, str(error)
        mapping.populate(0, size)
        mapping.enlarge_pages(0, size)
        return mapping, own, ""

    def _share(self, execute: Execute, own: _Own | None, descriptor: int, trouble: str = "") -> None:
        """Tell all ranks of a region (or of none), map theirs, and hear whether all could."""
        known = own is None or own in self._own
        offer = (1, -1, 0, 0) if own is None else (1, own.number, descriptor, own.size)
        offers = self._exchange(execute, (0, 0, 0, 0) if trouble else offer)
        mapped = trouble or self._map_all(offers)
        agreed = self._exchange(execute, (0 if mapped else 1, 0, 0, 0))
        failed = [rank for rank, answer in enumerate(agreed) if not answer[0]]
        if failed and own is not None and not known:
            self._retire(own)
        if failed:
            why = mapped or f"rank(s) {', '.join(map(str, failed))} could not"
            raise SpecError(f"rank {self._rank}: memory was not registered: {why}", rank=self._rank, ranks=failed)
        if own is not None and not known:
            self._own.append(own)
            self._context.region(self._rank, own.number, own.address, own.size)

    def _map_all(self, offers: list[tuple[int, ...]]) -> str:
        """Map what the others offer; what went wrong, if anything did."""
        for peer, (fine, number, descriptor, size, *_) in enumerate(offers):
            if peer == self._rank or not fine or number < 0 or (peer, number) in self._mapped:
                continue
            try:
                mapping = map_peer_file(self._pids[peer], descriptor, size)
            except (OSError, ExecutionError) as error:
                return f"the memory of rank {peer} cannot be mapped: {error}"
            self._mapped[peer, number] = mapping
            self._context.region(peer, number, mapping.address, size)
        return ""

    def _exchange(self, execute: Execute, offer: tuple[int, int, int, int], what: int = 0) -> list[tuple[int, ...]]:
        if self._handles[what] is None:
            table = exchange_table(self._rank, self._ranks)
            self._handles[what] = self._context.table(table, _FINGERPRINT + what, _WHAT[what].encode(), 0)
        told = self._gone[:_TOLD] if self.untold else []
        mine, all_ = np.zeros(BLOB, np.uint8), np.zeros(BLOB * self._ranks, np.uint8)
        packed = _OFFER.pack(*offer, *told, *[0] * (_TOLD - len(told)))
        mine[:] = np.frombuffer(packed, np.uint8)
        execute(self._handles[what], mine.ctypes.data, all_.ctypes.data)
        answers = [_OFFER.unpack_from(all_.data, rank * BLOB) for rank in range(self._ranks)]
        self._forget(told, answers)
        return answers

    def _forget(self, told: list[int], answers: list[tuple[int, ...]]) -> None:
        """Drop the regions of all ranks of which they have told that they are gone."""
        self._gone = [number for number in self._gone if number not in told]
        for number in told:
            heapq.heappush(self._free, number)
        for peer, answer in enumerate(answers):
            for number in filter(None, answer[-_TOLD:]):
                self._context.region(peer, number, 0, 0)
                self._mapped.pop((peer, number), None)


def _move(storage: torch.UntypedStorage) -> tuple[int, int]:
    """Move a storage, in place, to shared memory, unless it lies in such: the file's descriptor and size.

    Raises:
        SpecError: the memory is not torch's own: numpy, a file or another library has it, and would not come along.
        RuntimeError: torch cannot.
    """
    if not storage.resizable() and not storage.is_shared():
        raise SpecError("torch does not own its memory alone (it is numpy's, a file's or another library's, too)")
    descriptor, size = storage._share_fd_cpu_()
    if descriptor < 0:
        raise SpecError("it lies in shared memory without a file that others could open")
    return descriptor, size
