"""Tensors that ``register_buckets`` moves to registered memory, and those that it leaves where they are."""

from __future__ import annotations

import gc
import tempfile
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from backend_ranks import run_on

from commlib.torch_backend import register_tensor
from commlib.torch_backend.group import core_of

SIZE = 100_000


def _reduced(tensor: torch.Tensor, rank: int, times: int = 3, later: bool = True) -> bool:
    """Whether sums are right, and the tensor lies elsewhere than before."""
    before = tensor.data_ptr()
    for _ in range(times):
        tensor.fill_(rank + 1.0)
        work = dist.all_reduce(tensor, async_op=later)
        if later:
            work.wait()
        assert tensor.unique().tolist() == [3.0]
    return tensor.data_ptr() != before


def _others(rank: int) -> dict[str, list[bool]]:
    """What is reduced again and again, and no bucket: whether it moved, and whether its alias has the sums."""
    array = np.zeros(SIZE, np.float32)
    owner, exported, given = torch.zeros(SIZE), torch.zeros(SIZE), torch.zeros(SIZE)
    seen_by_numpy = given.numpy()
    found = {
        "numpy": [_reduced(torch.from_numpy(array), rank), bool((array == 3).all())],
        "dlpack": [_reduced(torch.from_dlpack(owner), rank), bool((owner == 3).all())],
        "given to numpy": [_reduced(given, rank), bool((seen_by_numpy == 3).all())],
        "waited for": [_reduced(exported, rank, later=False)],
        "of two dimensions": [_reduced(torch.zeros(2, SIZE), rank)],
        "a part": [_reduced(torch.zeros(SIZE + 1)[1:], rank)],
        "shared": [_reduced(torch.zeros(SIZE).share_memory_(), rank)],
        "no bucket on one rank": [_reduced(torch.zeros(SIZE) if rank else torch.from_numpy(array), rank)],
    }
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(4 * SIZE)
        tensor = torch.from_file(file.name, shared=True, size=SIZE)
        found["file"] = [_reduced(tensor, rank), bool((np.fromfile(file.name, np.float32) == 3).all())]
    return found


def _uneven(rank: int) -> list[float]:
    """A moved tensor on one rank, in calls with an ordinary one on the other: no rank need know of the other's."""
    bucket = torch.zeros(SIZE)
    found = [float(_reduced(bucket, rank))]
    for times, later in ((1, True), (3, True), (3, False)):
        tensor = bucket if rank else torch.empty(SIZE)
        found.append(float(_reduced(tensor, rank, times, later)))
    tensor.fill_(rank + 1.0)
    for _ in range(2):
        dist.broadcast(tensor, 1)
        found.append(tensor.unique().item())
    register_tensor(bucket)
    found.append(float(core_of().reached(bucket)))
    _reduced(bucket, rank, later=False)
    return found


def _reused(rank: int) -> None:
    """Tensors come and go, on one rank less than on the other: their memory is used again, moved or not."""
    kept: list[Any] = []
    for step in range(60):
        tensor = torch.empty(SIZE + step % 3)
        _reduced(tensor, rank, 1 + step % 4, step % 5 != 0)
        if step % 7 == rank * 3:
            kept.append(tensor)
        if len(kept) > 3:
            kept.clear()
            gc.collect()


class _MovesAtOnce:
    """Has the tensor of the first allreduce moved in the middle of it."""

    def __init__(self) -> None:
        self.asked_for = 0

    def votes(self, _request: Any) -> bool:
        self.asked_for += 1
        return self.asked_for == 1

    def settle(self, core: Any, transfer: Any, _timeout: float) -> bool:
        return bool(core.register(transfer.target.line))

    def moved(self, _line: torch.Tensor) -> bool:
        return False

    def asked(self, line: torch.Tensor) -> None:
        """Nothing is remembered."""


def _moved_within(rank: int) -> list[bool]:
    """The address by which a call is remembered when it has moved its tensor."""
    core = core_of()
    core.buckets, tensor = _MovesAtOnce(), torch.full((SIZE,), rank + 1.0)
    before = tensor.data_ptr()
    dist.all_reduce(tensor)
    keys = [key[0] for key in core.hot]
    assert tensor.unique().tolist() == [3.0]
    return [before == tensor.data_ptr(), keys == [tensor.data_ptr()]]


def _all(rank: int) -> list[Any]:
    found = [_others(rank), _uneven(rank)]
    _reused(rank)
    return [*found, _moved_within(rank)]


@pytest.mark.timeout(60)
def test_only_buckets_move_and_no_sum_is_wrong() -> None:
    for rank, (others, uneven, within) in enumerate(run_on(2, _all, transport="shm", register_buckets=True)):
        assert {name: found[0] for name, found in others.items()} == dict.fromkeys(others, False)
        assert all(all(found[1:]) for found in others.values())
        assert uneven == [1.0, 0.0, 1.0 - rank, 0.0, 2.0, 2.0, 1.0]
        assert within == [False, True]
