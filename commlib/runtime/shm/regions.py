"""Registered memory: tensors in shared memory of their own, which all ranks of a session have mapped.

Ranks tell each other of their memory through the session itself, by a small table that gathers 64 bytes of each: so
that it is ordered among the other calls, and a rank that makes another call is found out as everywhere.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

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
_OFFER = struct.Struct("<qqqq")
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


@dataclass
class _Own:
    """A region of this rank: its number, where it lies, and what keeps it alive."""

    number: int
    address: int
    size: int
    keeper: Any

    @property
    def stands(self) -> bool:
        """Whether the memory is still there: the user may have resized a tensor's storage, as some free memory.
        Then other tensors come to lie at these addresses."""
        kept = self.keeper
        if not isinstance(kept, torch.UntypedStorage):
            return True
        return kept.data_ptr() == self.address and kept.nbytes() >= self.size


class Regions:
    """The registered memory of all ranks, as one rank sees it."""

    def __init__(self, rank: int, pids: Sequence[int], context: Context) -> None:
        self._rank, self._ranks, self._pids, self._context = rank, len(pids), pids, context
        self._handles: list[Any] = [None, None]
        self._own: list[_Own] = []
        self._numbers = 0
        self._mapped: dict[tuple[int, int], Mapping] = {}

    def holds(self, address: int, size: int) -> bool:
        """Whether memory lies in one of this rank's regions; those that have gone are forgotten."""
        for own in [own for own in self._own if not own.stands]:
            self._own.remove(own)
            self._context.region(self._rank, own.number, 0, 0)
        return any(own.address <= address and address + size <= own.address + own.size for own in self._own)

    def close(self) -> None:
        """Forget everything; mappings go when nothing uses them."""
        self._own.clear()
        self._mapped.clear()

    def register(self, tensor: torch.Tensor, execute: Execute) -> None:
        """See ``ShmSession.register``."""
        storage = tensor.untyped_storage()
        known = self._known(storage)
        if known is not None or not storage.nbytes():
            self._share(execute, known, -1)
            return
        try:
            descriptor, size = storage._share_fd_cpu_()
        except RuntimeError as error:
            self._share(execute, None, -1, f"this tensor's storage cannot move to shared memory: {error}")
            return
        self._share(execute, self._make(storage.data_ptr(), size, storage), descriptor)

    def unregister(self, tensor: torch.Tensor, execute: Execute) -> None:
        """See ``ShmSession.unregister``."""
        own = self._known(tensor.untyped_storage())
        number = -1 if own is None else own.number
        for peer, (_, theirs, _, _) in enumerate(self._exchange(execute, (1, number, 0, 0), 1)):
            if theirs >= 0:
                self._context.region(peer, theirs, 0, 0)
                self._mapped.pop((peer, theirs), None)
        if own is not None:
            self._own.remove(own)

    def _known(self, storage: torch.UntypedStorage) -> _Own | None:
        return next((own for own in self._own if own.address == storage.data_ptr()), None)

    def _make(self, address: int, size: int, keeper: Any) -> _Own:
        """A new region; numbers are never used again."""
        self._numbers += 1
        return _Own(self._numbers, address, size, keeper)

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
            mapping = Mapping(descriptor, size)
            mapping.populate(0, size)
            mapping.enlarge_pages(0, size)
            self._share(execute, self._make(mapping.address, size, mapping), descriptor)
        finally:
            os.close(descriptor)
        return torch.from_numpy(np.asarray(mapping)).view(dtype).view(tuple(shape))

    def _share(self, execute: Execute, own: _Own | None, descriptor: int, trouble: str = "") -> None:
        """Tell all ranks of a region (or of none), map theirs, and hear whether all could."""
        offer = (1, -1, 0, 0) if own is None else (1, own.number, descriptor, own.size)
        offers = self._exchange(execute, (0, 0, 0, 0) if trouble else offer)
        mapped = trouble or self._map_all(offers)
        agreed = self._exchange(execute, (0 if mapped else 1, 0, 0, 0))
        failed = [rank for rank, answer in enumerate(agreed) if not answer[0]]
        if failed:
            why = mapped or f"rank(s) {', '.join(map(str, failed))} could not"
            raise SpecError(f"rank {self._rank}: memory was not registered: {why}", rank=self._rank, ranks=failed)
        if own is not None and own not in self._own:
            self._own.append(own)
            self._context.region(self._rank, own.number, own.address, own.size)

    def _map_all(self, offers: list[tuple[int, ...]]) -> str:
        """Map what the others offer; what went wrong, if anything did."""
        for peer, (fine, number, descriptor, size) in enumerate(offers):
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
        mine, all_ = np.zeros(BLOB, np.uint8), np.zeros(BLOB * self._ranks, np.uint8)
        mine[: _OFFER.size] = np.frombuffer(_OFFER.pack(*offer), np.uint8)
        execute(self._handles[what], mine.ctypes.data, all_.ctypes.data)
        return [_OFFER.unpack_from(all_.data, rank * BLOB) for rank in range(self._ranks)]
