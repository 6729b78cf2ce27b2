"""Calls on a group that may fail at any point: each makes one call of its kind and says whether its result is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from backend_ranks import gather_single

scatter_single = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
"""As torch 2.13 names it."""
Made = Callable[[Any, int, int, bool], bool]
"""Of a group, the elements of all shards together, a number that the values depend on, and whether asynchronously."""


def _done(work: Any) -> None:
    if work is not None:
        work.wait()


def _whole(size: int) -> torch.Tensor:
    return torch.arange(size)


def _shards(group: Any, size: int) -> tuple[int, int, int]:
    """This rank, the ranks, and the elements of a shard."""
    ranks = dist.get_world_size(group)
    return dist.get_rank(group), ranks, max(1, size // ranks)


def allreduce(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    rank, ranks, _ = _shards(group, size)
    tensor = _whole(size) * (rank + 1) + call
    _done(dist.all_reduce(tensor, group=group, async_op=asynchronous))
    return bool(torch.equal(tensor, _whole(size) * (ranks * (ranks + 1) // 2) + ranks * call))


def queued(group: Any, size: int, call: int, asynchronous: bool) -> bool:  # noqa: ARG001
    """Three at once."""
    rank, ranks, _ = _shards(group, size)
    tensors = [torch.full((size,), rank + call + index) for index in range(3)]
    for work in [dist.all_reduce(tensor, group=group, async_op=True) for tensor in tensors]:
        work.wait()
    sums = [ranks * (ranks - 1) // 2 + ranks * (call + index) for index in range(3)]
    return all(bool((tensor == total).all()) for tensor, total in zip(tensors, sums, strict=True))


def allgather(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    rank, ranks, shard = _shards(group, size)
    output, given = torch.empty(ranks * shard, dtype=torch.int64), torch.full((shard,), rank + call)
    _done(gather_single(output, given, group=group, async_op=asynchronous))
    return bool(torch.equal(output, _whole(ranks).repeat_interleave(shard) + call))


def reducescatter(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    rank, ranks, shard = _shards(group, size)
    output, given = torch.empty(shard, dtype=torch.int64), _whole(ranks * shard) * (rank + 1) + call
    _done(scatter_single(output, given, group=group, async_op=asynchronous))
    wanted = _whole(ranks * shard)[rank * shard : (rank + 1) * shard] * (ranks * (ranks + 1) // 2) + ranks * call
    return bool(torch.equal(output, wanted))


def alltoall(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    rank, ranks, shard = _shards(group, size)
    output, given = torch.empty(ranks * shard, dtype=torch.int64), _whole(ranks).repeat_interleave(shard) * 10
    _done(dist.all_to_all_single(output, given + rank + call, group=group, async_op=asynchronous))
    return bool(torch.equal(output, _whole(ranks).repeat_interleave(shard) + 10 * rank + call))


def broadcast(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    rank, ranks, _ = _shards(group, size)
    tensor = torch.full((size,), call if rank == call % ranks else -1)
    _done(dist.broadcast(tensor, group=group, group_src=call % ranks, async_op=asynchronous))
    return bool((tensor == call).all())


def reduce(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    rank, ranks, _ = _shards(group, size)
    tensor = torch.full((size,), rank + call)
    _done(dist.reduce(tensor, group=group, group_dst=call % ranks, async_op=asynchronous))
    return rank != call % ranks or bool((tensor == ranks * (ranks - 1) // 2 + ranks * call).all())


def gather(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    rank, ranks, shard = _shards(group, size)
    root = rank == call % ranks
    outputs = [torch.empty(shard, dtype=torch.int64) for _ in range(ranks)] if root else None
    given = torch.full((shard,), rank + call)
    _done(dist.gather(given, outputs, group=group, group_dst=call % ranks, async_op=asynchronous))
    return all(bool((output == other + call).all()) for other, output in enumerate(outputs or ()))


def scatter(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    rank, ranks, shard = _shards(group, size)
    given = [torch.full((shard,), other + call) for other in range(ranks)] if rank == call % ranks else None
    output = torch.empty(shard, dtype=torch.int64)
    _done(dist.scatter(output, given, group=group, group_src=call % ranks, async_op=asynchronous))
    return bool((output == rank + call).all())


def barrier(group: Any, size: int, call: int, asynchronous: bool) -> bool:  # noqa: ARG001
    _done(dist.barrier(group=group, async_op=asynchronous))
    return True


def messages(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    """Each sends to the next, and receives from the one before."""
    rank, ranks, shard = _shards(group, size)
    after, before, tensor = (rank + 1) % ranks, (rank - 1) % ranks, torch.empty(shard, dtype=torch.int64)
    sent = dist.isend(torch.full((shard,), rank + call), group=group, group_dst=after)
    if asynchronous:
        _done(dist.irecv(tensor, group=group, group_src=before))
    else:
        dist.recv(tensor, group=group, group_src=before)
    _done(sent)
    return bool((tensor == before + call).all())


CALLS: tuple[Made, ...] = (
    *(allreduce, queued, allgather, reducescatter, alltoall, broadcast),
    *(reduce, gather, scatter, barrier, messages),
)
"""All kinds."""
