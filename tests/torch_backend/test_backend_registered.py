"""Registered memory under torch.distributed, and the calls that a group remembers by the addresses of their tensors."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.distributed as dist
from backend_ranks import run_on

from commlib.torch_backend import registered_empty
from commlib.torch_backend.group import core_of

SIZE = 1 << 18


def _where_others_lay(rank: int) -> list[float]:
    """Tensors that were reduced go, on rank 0 only; registered ones come, where those lay."""
    gone = [torch.ones(SIZE).share_memory_() for _ in range(6)]
    for tensor in gone * 2:
        dist.all_reduce(tensor)
    kept = gone if rank else []
    del gone, tensor
    gc.collect()
    found = []
    for _ in range(3):
        tensor = registered_empty((SIZE,))
        found.append(float(len(core_of().hot)))
        for _ in range(2):
            tensor.fill_(rank + 1.0)
            dist.all_reduce(tensor)
            found.append(tensor[SIZE - 1].item())
    assert len(kept) == 6 * rank
    return found


@pytest.mark.timeout(60)
def test_calls_remembered_by_address_are_forgotten_when_memory_is_registered() -> None:
    assert run_on(2, _where_others_lay) == [[0.0, 3.0, 3.0] * 3] * 2


def _where_a_registered_one_lay(_rank: int) -> list[float]:
    """A registered tensor's memory is freed by resizing its storage; ordinary tensors mostly come to lie there."""
    large = registered_empty((40 * SIZE,))
    for _ in range(3):
        large.fill_(1.0)
        dist.all_reduce(large)
    place = (large.data_ptr(), 4 * large.numel())
    found = [float(core_of().runner.reaches([place]))]
    large.untyped_storage().resize_(0)
    found.append(float(core_of().runner.reaches([place])))
    tensors = [torch.empty(9 * SIZE) for _ in range(4)]
    for tensor in tensors * 2:
        tensor.fill_(dist.get_rank() + 1.0)
        dist.all_reduce(tensor)
        found.append(tensor.unique().item())
    return found


@pytest.mark.timeout(60)
def test_memory_that_a_resized_storage_has_left_is_registered_no_more() -> None:
    assert run_on(2, _where_a_registered_one_lay) == [[1.0, 0.0] + [3.0] * 8] * 2
