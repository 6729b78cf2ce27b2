"""Registered memory for users of torch: asked for, or (an option of the group) for the buckets of DDP by themselves.

Ranks that pass registered tensors to a call must all do so: one that does not is told that the ranks differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from commlib.torch_backend.core import LARGE, Core
from commlib.torch_backend.runner import Line

_SEEN = 4096
"""Addresses remembered."""


class RepeatedTensors:
    """Moves a large tensor to registered memory when it is reduced for the second time at the same address.

    DDP makes its buckets anew after the first step and then keeps them. The ranks ask each other before, with each
    large tensor that is not registered: their allocators need not give the same addresses.
    """

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def settle(self, core: Core, line: Line, timeout: float) -> None:
        """See ``Buckets``."""
        if line is None or line.numel() * line.element_size() < LARGE or core.runner.registered(line):
            return
        if len(self._seen) >= _SEEN:
            self._seen.clear()
        times = self._seen[line.data_ptr()] = self._seen.get(line.data_ptr(), 0) + 1
        votes = core.exchange([int(times > 1 and _movable(line))], timeout, "register buckets")
        if all(vote[0] for vote in votes):
            self._seen.pop(line.data_ptr())
            core.register(line)


def _movable(line: torch.Tensor) -> bool:
    """Not a small part of a large storage, which would be moved as a whole."""
    return line.untyped_storage().nbytes() <= 2 * line.numel() * line.element_size()


def register_tensor(tensor: torch.Tensor, group: Any = None) -> bool:
    """Move a tensor's storage, in place, to memory that all ranks of a group reach; all ranks call this.

    Collectives on it then work on all ranks' memory where it lies. Views of the storage move with it. It stays
    registered, and its memory taken, until the group is destroyed.

    Returns:
        False for a group that has no such memory (of one rank, or of several hosts): nothing is moved then.

    Raises:
        SpecError: on all ranks, if any rank's tensor cannot be moved, or no group of this backend.
    """
    core = _core(group)
    found: list[bool] = []
    core.issue("register", lambda _: found.append(core.register(tensor.detach())), False, core.timeout)
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
