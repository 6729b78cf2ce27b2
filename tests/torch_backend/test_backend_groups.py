"""Groups: subgroups, splits, several at once from several threads, destroyed and made again, and their names."""

from __future__ import annotations

import threading
from datetime import timedelta

import torch
import torch.distributed as dist
from backend_ranks import begin, run_on, threads_left, world_store
from soak_usage import STEADY, usage, usage_since

from commlib.torch_backend import flight_record


def subgroups(rank: int) -> dict[str, object]:
    """Groups of every other rank, of one rank, with another order, and a split."""
    n, got = dist.get_world_size(), {}
    halves = [dist.new_group(list(range(start, n, 2)), timeout=timedelta(seconds=20)) for start in (0, 1)]
    mine = halves[rank % 2]
    tensor = torch.full((3,), float(rank))
    dist.all_reduce(tensor, group=mine)
    got["half"] = tensor.tolist()
    got["other half"] = halves[1 - rank % 2] == dist.GroupMember.NON_GROUP_MEMBER
    alone = [dist.new_group([r]) for r in range(n)][rank]
    tensor = torch.full((3,), float(rank))
    dist.all_reduce(tensor, op=dist.ReduceOp.AVG, group=alone)
    gathered = [torch.zeros(3)]
    dist.all_gather(gathered, tensor, group=alone)
    got["alone"] = gathered[0].tolist()
    told = torch.full((2,), float(rank))
    if rank % 2:
        dist.broadcast(told, src=3, group=mine)
    got["told"] = told.tolist()
    part = dist.group.WORLD.split_group([0, 2, 3])
    if part is not None:
        tensor = torch.ones(2)
        part.allreduce([tensor]).wait()
        got["split"] = [part.rank(), part.size(), tensor.tolist()]
        part.shutdown()
    dist.destroy_process_group(mine)
    tensor = torch.ones(2)
    dist.all_reduce(tensor)
    got["after"] = tensor.tolist()
    world = dist.group.WORLD
    got["names"] = [world.name(), dist.get_backend(), world.group_name == dist.group.WORLD.group_name]
    return got


def test_subgroups():
    for rank, got in enumerate(run_on(4, subgroups)):
        assert got["half"] == [[2.0, 4.0][rank % 2]] * 3
        assert got["other half"]
        assert got["alone"] == [float(rank)] * 3
        assert got["told"] == [3.0 if rank % 2 else float(rank)] * 2
        assert got.get("split") == (None if rank == 1 else [[0, 2, 3].index(rank), 3, [3.0, 3.0]])
        assert got["after"] == [4.0, 4.0]
        assert got["names"] == ["commlib", "commlib", True]


def threads(rank: int) -> list[str]:
    """Four groups used by four threads at once, each some hundred times, synchronous and not."""
    n, wrong = dist.get_world_size(), []
    groups = [dist.new_group(list(range(n))) for _ in range(4)]

    def use(index: int) -> None:
        for turn in range(100):
            tensor = torch.full((100 * (index + 1),), float(rank + turn))
            work = dist.all_reduce(tensor, group=groups[index], async_op=turn % 3 == 0)
            if work is not None:
                work.wait()
            if not bool((tensor == n * turn + n * (n - 1) / 2).all()):
                wrong.append(f"group {index} turn {turn}: {tensor[0].item()}")

    users = [threading.Thread(target=use, args=(index,)) for index in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join(60)
    return [*wrong, *(f"{user.name} hangs" for user in users if user.is_alive())]


def test_groups_of_several_threads():
    assert run_on(2, threads) == [[], []]


def again(rank: int) -> dict[str, object]:
    """The world is made and destroyed again and again on one store; nothing is left."""
    store, n = world_store(), dist.get_world_size()
    sums = []

    def turn() -> None:
        dist.destroy_process_group()
        begin(store, rank, n)
        tensor = torch.full((10_000,), 1.0)
        dist.all_reduce(tensor, async_op=True).wait()
        dist.all_reduce(tensor)
        sums.append(tensor[0].item())

    turn()
    before = usage()
    for _ in range(3):
        turn()
    after = usage_since(before)
    dist.destroy_process_group()
    return {"sums": sums, "grown": [name for name in STEADY if after[name] > before[name]], "left": threads_left()}


def test_a_world_is_made_again_and_nothing_is_left():
    for got in run_on(2, again):
        assert got == {"sums": [4.0] * 4, "grown": [], "left": []}


def recovery(rank: int) -> list[object]:
    """After a mismatch the group is dead; another one on the same store works."""
    store, n = world_store(), dist.get_world_size()
    told: list[object] = []
    for _ in range(2):
        try:
            dist.all_reduce(torch.ones(2, dtype=torch.float32 if rank else torch.float64))
        except RuntimeError as error:
            told.append(type(error).__name__)
    dist.destroy_process_group()
    begin(store, rank, n)
    tensor = torch.ones(2)
    dist.all_reduce(tensor)
    told.append(tensor.tolist())
    told.append([call.collective for call in flight_record().calls])
    return told


def test_a_failed_group_is_destroyed_and_made_again():
    for told in run_on(2, recovery):
        assert told[0] == "TorchMismatchError"
        assert told[1] in ("TorchMismatchError", "TorchPeerFailedError")
        assert told[2] == [2.0, 2.0]
        assert "allreduce" in told[3]
