"""Registered memory for users of torch: asked for, or (an option of the group) for the buckets of DDP by themselves.

Ranks that pass registered tensors to a call must all do so: one that does not is told that the ranks differ. Of what
the option has moved this is not asked: before each large allreduce the ranks of such a group tell each other whether
their tensors lie in memory that all reach, and in all other calls what was moved counts as ordinary memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from commlib.errors import SpecError
from commlib.runtime.shm.regions import weakly
from commlib.runtime.shm.session import ShmSession
from commlib.torch_backend.core import LARGE, Core, Transfer
from commlib.torch_backend.operand import Operand
from commlib.torch_backend.request import Request

_SEEN = 4096
"""Storages remembered."""
_MOST = 256
"""Storages that are moved at once; each holds a file descriptor open."""


class RepeatedTensors:
    """Moves a bucket of DDP to registered memory when it is reduced for the second time.

    DDP makes its buckets anew after the first step and then keeps them. What is taken for a bucket is narrow (see
    ``_is_bucket``), for whatever knows a moved tensor's old address is parted from it.
    """

    def __init__(self, session: ShmSession) -> None:
        self._session, self._off = session, False
        self._seen: set[StorageWeakRef] = set()
        self._moved: set[StorageWeakRef] = set()

    def votes(self, request: Request) -> bool:
        """See ``Buckets``."""
        large = request.collective == "allreduce" and request.bytes >= LARGE
        return large and request.reduction != "premul_sum"

    def settle(self, core: Core, transfer: Transfer, timeout: float) -> bool:
        """See ``Buckets``; it costs an allgather of 24 bytes per rank."""
        operand = transfer.target
        line = None if operand is None else operand.line
        has = line is not None and core.runner.registered(line)
        wants = not has and operand is not None and transfer.later and self._repeats(operand)
        votes = core.exchange([has, wants, self._session.untidy], timeout, "register buckets")
        if any(untidy for _, _, untidy in votes):
            self._session.tidy()
        if line is None or not all(has or wants for has, wants, _ in votes):
            return False
        return not any(wants for _, wants, _ in votes) or self._move(core, line, wants)

    def _repeats(self, operand: Operand) -> bool:
        """Whether it is a bucket that was there before, and there is room for it."""
        if self._off or not _is_bucket(operand):
            return False
        storage = weakly(operand.tensors[0].untyped_storage())
        if storage not in self._seen:
            if len(self._seen) >= _SEEN:
                self._seen = _alive(self._seen)
            self._seen.add(storage)
            return False
        self._moved = _alive(self._moved)
        return len(self._moved) < _MOST

    def _move(self, core: Core, line: torch.Tensor, mine: bool) -> bool:
        """All ranks register theirs; whether that was done. If a rank has no memory, none tries again."""
        mine = mine or self.moved(line)
        try:
            core.register(line)
        except SpecError as error:
            self._off = True
            warnings.warn(f"buckets stay where they are: {error}", stacklevel=2)
            return False
        if mine:
            storage = weakly(line.untyped_storage())
            self._seen.discard(storage)
            self._moved.add(storage)
        return True

    def moved(self, line: torch.Tensor) -> bool:
        """See ``Buckets``."""
        return weakly(line.untyped_storage()) in self._moved

    def asked(self, line: torch.Tensor) -> None:
        """See ``Buckets``."""
        self._moved.discard(weakly(line.untyped_storage()))


def _alive(storages: set[StorageWeakRef]) -> set[StorageWeakRef]:
    """Those that have not gone; none, if that are as many as are remembered."""
    alive = {storage for storage in storages if not storage.expired()}  # type: ignore[no-untyped-call]
    return alive if len(alive) < _SEEN else set()


def _is_bucket(operand: Operand) -> bool:
    """Whether it is a tensor such as DDP makes: flat, the whole of its storage, in memory that only torch has.

    Memory of numpy, a file or another library, or which numpy has been given, is not resizable to torch.
    """
    if len(operand.tensors) != 1 or operand.line is None or operand.tensors[0].dim() != 1:
        return False
    storage = operand.tensors[0].untyped_storage()
    whole = storage.nbytes() == operand.elements * operand.dtype.itemsize
    return whole and storage.resizable() and not storage.is_shared()


def register_tensor(tensor: torch.Tensor, group: Any = None) -> bool:
    """Move a tensor's storage, in place, to memory that all ranks of a group reach; all ranks call this.

    Collectives on it then work on all ranks' memory where it lies. Views of the storage move with it; raw addresses,
    also those that another library took through DLPack, do not. It stays registered until nobody has its storage any
    more, or the group is destroyed. The other ranks let go of the memory when the next tensor is registered.

    Returns:
        False for a group that has no such memory (of one rank, or of several hosts): nothing is moved then.

    Raises:
        SpecError: on all ranks, if any rank's tensor cannot be moved (it is sparse, or its memory is numpy's, a
            file's or another library's, too), or a rank has 4096 already; no group of this backend.
    """
    core = _core(group)
    found: list[bool] = []
    core.issue("register", lambda _: found.append(core.register(tensor)), False, core.timeout)
    return found[0]


def registered_empty(shape: Sequence[int], dtype: torch.dtype = torch.float32, group: Any = None) -> torch.Tensor:
    """A new tensor, with undefined content, in memory that all ranks of a group reach; all ranks call this.

    Raises:
        SpecError: on all ranks, if any has no memory, or no group of this backend.
    """
    tensor = torch.empty(tuple(shape), dtype=dtype)
    register_tensor(tensor, group)
    return tensor


def _core(group: Any) -> Core:
    from commlib.torch_backend.group import core_of

    return core_of(group)
