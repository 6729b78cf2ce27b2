"""The monitored barrier: what it leaves in the store."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from backend_ranks import run_on

from commlib.errors import DeadlineError, PeerFailedError
from commlib.torch_backend.group import CommlibGroup


def keys() -> int:
    """How many keys the group's store has, once all have come here and nobody goes on."""
    group: Any = dist.group.WORLD
    dist.barrier()
    found = int(group._opened.store.num_keys())
    dist.barrier()
    return found


def many(rank: int) -> list[Any]:
    """Keys after one barrier, after many, and after one to which rank 1 comes when the others have given up."""
    group: Any = dist.group.WORLD
    if not isinstance(group, CommlibGroup):
        raise TypeError(type(group))
    dist.monitored_barrier()
    first = keys()
    for _ in range(50):
        dist.monitored_barrier()
    found: list[Any] = [keys() - first]
    if rank == 1:
        for peer in (0, 2):
            dist.recv(torch.zeros(1), peer)
    try:
        dist.monitored_barrier(timeout=timedelta(seconds=0.1))
    except (DeadlineError, PeerFailedError) as error:
        found.append(type(error).__name__)
    if rank != 1:
        dist.send(torch.zeros(1), 1)
    dist.monitored_barrier()
    return [*found, keys() - first]


def test_it_leaves_one_key_however_many_were_passed_and_missed() -> None:
    told = run_on(3, many)
    assert [found[0] for found in told] == [0] * 3
    assert [found[1] for found in told] == ["TorchDeadlineError", "TorchPeerFailedError", "TorchPeerFailedError"]
    assert [found[2] for found in told] == [0] * 3
