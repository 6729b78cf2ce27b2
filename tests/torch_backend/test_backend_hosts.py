"""The backend on several (emulated) hosts: all calls are exact over the mix, and a lost rank is named across hosts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import backend_ranks
import pytest
import torch
import torch.distributed as dist

import commlib.torch_backend  # noqa: F401 (loaded once, before ranks are forked)
from commlib.runtime.launcher import launch, launch_outcomes


def _on_host(rank: int, hosts: list[int], function: Callable[..., Any], *args: Any) -> Any:
    os.environ["COMMLIB_HOST"] = str(hosts[rank])
    return backend_ranks._be(rank, function, args, {"timeout": 10.0})


def _everything(rank: int) -> list[Any]:
    ranks, found = dist.get_world_size(), list[Any]()
    for elements in (3, 60_000):
        total = torch.full((elements,), rank + 1)
        dist.all_reduce(total)
        every = torch.zeros(ranks * 2, dtype=torch.int64)
        backend_ranks.gather_single(every, torch.tensor([rank, rank + 10]))
        mean = torch.full((elements,), float(rank))
        dist.all_reduce(mean, op=dist.ReduceOp.AVG, async_op=True).wait()
        found += [total.unique().tolist(), every.tolist(), mean.unique().tolist()]
    rooted = torch.tensor([rank * 5])
    dist.broadcast(rooted, ranks - 1)
    sizes = [[(s + d) % 3 for d in range(ranks)] for s in range(ranks)]
    taken = torch.zeros(sum(sizes[s][rank] for s in range(ranks)), dtype=torch.int64)
    given = torch.full((sum(sizes[rank]),), rank)
    dist.all_to_all_single(taken, given, [sizes[s][rank] for s in range(ranks)], sizes[rank])
    wanted = [s for s in range(ranks) for _ in range(sizes[s][rank])]
    dist.barrier()
    return [*found, rooted.item(), taken.tolist() == wanted]


@pytest.mark.parametrize("hosts", [[0, 0, 1], [0, 1, 0, 2, 0]])
def test_collectives_over_several_hosts(hosts: list[int]) -> None:
    ranks = len(hosts)
    total, mean = ranks * (ranks + 1) // 2, (ranks - 1) / 2
    every = [value for rank in range(ranks) for value in (rank, rank + 10)]
    expected = [[total], every, [mean]] * 2 + [5 * (ranks - 1), True]
    assert launch(_on_host, ranks, (hosts, _everything), 60) == [expected] * ranks


def _messages(rank: int) -> list[float]:
    """Around a ring of all, from any rank, and a sum in a group of one host and in one of two."""
    ranks = dist.get_world_size()
    came, mine = torch.zeros(70_000), torch.full((70_000,), float(rank))
    works = [dist.isend(mine, (rank + 1) % ranks), dist.irecv(came, (rank - 1) % ranks)]
    for work in works:
        work.wait()
    found = [came.unique().item()]
    if rank == 0:
        parts = [torch.zeros(1) for _ in range(ranks - 1)]
        sources = [dist.recv(part) for part in parts]
        found.append(sum(part.item() for part in parts))
        found.append(float(sorted(sources) == list(range(1, ranks))))
    else:
        dist.send(torch.tensor([float(rank)]), 0)
    for members in ([0, 1], [1, 2]):
        group = dist.new_group(members)
        if rank in members:
            total = torch.full((9,), float(rank))
            dist.all_reduce(total, group=group)
            found.append(total[0].item())
    return found


def test_messages_and_groups_over_several_hosts() -> None:
    found = launch(_on_host, 4, ([0, 0, 1, 1], _messages), 60)
    assert found == [[3.0, 6.0, 1.0, 1.0], [0.0, 1.0, 3.0], [1.0, 3.0], [2.0]]


def _loses(rank: int, victim: int) -> str:
    tensor = torch.ones(1000)
    dist.all_reduce(tensor)
    if rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError) as caught:
        _repeat(tensor)
    return str(caught.value)


def _repeat(tensor: torch.Tensor) -> None:
    """A rank that is done before it hears of the loss fails in a later call."""
    for _ in range(3):
        dist.all_reduce(tensor)


@pytest.mark.parametrize("victim", [1, 2])
def test_a_killed_rank_is_named_on_its_host_and_the_other(victim: int) -> None:
    outcomes = launch_outcomes(_on_host, 4, ([0, 0, 1, 1], _loses, victim), timeout=40)
    for outcome in outcomes:
        if outcome.rank != victim:
            assert outcome.error is None, outcome.error
            assert f"rank {victim} is gone" in outcome.value
