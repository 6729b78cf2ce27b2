"""What is built on collectives: DistributedDataParallel, FSDP2, DTensor, functional collectives, the profiler."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed as dist
from backend_ranks import gather_single, run_on, world_store
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from commlib.torch_backend import register_tensor, registered_empty
from commlib.torch_backend.group import core_of


def _model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).double()


def _data(rank: int) -> torch.Tensor:
    return torch.linspace(-1, 1, 32, dtype=torch.float64).view(4, 8) + rank


def _trained(ranks: int) -> list[list[float]]:
    """The parameters after three steps on all ranks' data, in one process."""
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack([model(_data(rank)).pow(2).mean() for rank in range(ranks)]).mean().backward()
        optimizer.step()
    return [parameter.detach().flatten().tolist() for parameter in model.parameters()]


def _steps(model: nn.Module, rank: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(_data(rank)).pow(2).mean().backward()
        optimizer.step()


def _close(found: list[list[float]], wanted: list[list[float]]) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(torch.allclose(torch.tensor(a), torch.tensor(b), rtol=1e-9, atol=1e-12) for a, b in pairs)


def data_parallel(rank: int, **options: object) -> dict[str, object]:
    """DDP with small buckets, with a communication hook too."""
    got = {}
    for name, hooked in (("plain", False), ("hook", True)):
        model = DistributedDataParallel(_model(), bucket_cap_mb=0.0005, **options)
        if hooked:
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

            model.register_comm_hook(None, allreduce_hook)
        _steps(model, rank)
        got[name] = [parameter.detach().flatten().tolist() for parameter in model.parameters()]
    return got


def test_data_parallel_trains_as_one_process_does():
    wanted = _trained(2)
    for got in run_on(2, data_parallel):
        assert _close(got["plain"], wanted)
        assert _close(got["hook"], wanted)


def registered(rank: int) -> dict[str, object]:
    """DDP whose buckets move to registered memory, and tensors that are registered by hand."""
    model = nn.Linear(700, 500)
    torch.nn.init.constant_(model.weight, 0.01)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    norms = []
    for step in range(4):
        parallel.zero_grad()
        parallel(torch.full((2, 700), float(rank + step))).sum().backward()
        norms.append([float(model.weight.grad.sum()), float(model.weight.grad.min())])
    core = core_of()
    moved = core.runner.registered(model.weight.grad.view(-1))
    tensor = torch.full((100_000,), float(rank))
    by_hand = [register_tensor(tensor), core.runner.registered(tensor)]
    ours = registered_empty((200_000,))
    for _ in range(3):
        tensor.fill_(rank + 1.0)
        dist.all_reduce(tensor)
        gather_single(ours, tensor)
    return {"norms": norms, "moved": moved, "hand": by_hand, "sum": float(tensor.sum()), "all": float(ours.sum())}


def test_buckets_in_registered_memory():
    for got in run_on(2, registered, transport="shm", register_buckets=True):
        assert got["norms"] == [[700 * 500 * 2 * (step + 0.5), 2 * (step + 0.5)] for step in range(4)]
        assert got["moved"] is True
        assert got["hand"] == [True, True]
        assert (got["sum"], got["all"]) == (300_000.0, 600_000.0)


def sharded(rank: int) -> dict[str, object]:
    """FSDP2, DTensor and the functional collectives."""
    warnings.simplefilter("ignore")
    from torch.distributed._functional_collectives import (
        all_gather_tensor,
        all_reduce,
        all_to_all_single,
        broadcast,
        reduce_scatter_tensor,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    n, got = dist.get_world_size(), {}
    mesh = init_device_mesh("cpu", (n,))
    if hasattr(torch.cpu.Stream, "record_event"):  # FSDP2 of older torch needs a device with streams
        model = _model()
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        _steps(model, rank)
        got["sharded"] = [parameter.full_tensor().detach().flatten().tolist() for parameter in model.parameters()]

    whole = torch.arange(12.0).view(6, 2)
    table = distribute_tensor(whole, mesh, [Shard(0)])
    got["table"] = [
        torch.equal(table.redistribute(mesh, [Shard(1)]).full_tensor(), whole),
        torch.equal(
            (table @ distribute_tensor(whole.t().contiguous(), mesh, [Replicate()])).full_tensor(), whole @ whole.t()
        ),
        float(table.sum().full_tensor()),
    ]
    group = dist.group.WORLD
    ones = torch.full((n,), rank + 1.0)
    got["functional"] = [
        (all_reduce(ones, "sum", group) + 0).tolist(),
        (all_gather_tensor(ones[:1], 0, group) + 0).tolist(),
        (reduce_scatter_tensor(ones, "sum", 0, group) + 0).tolist(),
        (all_to_all_single(ones, [1] * n, [1] * n, group) + 0).tolist(),
        (broadcast(ones, 1, group) + 0).tolist(),
    ]
    with dist._coalescing_manager(async_ops=True) as manager:
        several = [torch.full((4,), float(rank + i)) for i in range(3)]
        for tensor in several:
            dist.all_reduce(tensor)
    manager.wait()
    got["coalesced"] = [tensor[0].item() for tensor in several]
    return got


def test_sharded_training_and_functional_collectives():
    wanted = _trained(2)
    for rank, got in enumerate(run_on(2, sharded)):
        assert "sharded" not in got or _close(got["sharded"], wanted)
        assert got["table"] == [True, True, 66.0]
        assert got["functional"] == [[3.0, 3.0], [1.0, 2.0], [3.0], [1.0, 2.0], [2.0, 2.0]]
        assert got["coalesced"] == [1.0, 3.0, 5.0], rank


def calls_in(profile: torch.profiler.profile) -> list[str]:
    """The calls that a profiler saw; a wait is seen only if the call was not done by then."""
    names = [event.name for event in profile.events() if event.name.startswith("commlib:")]
    return sorted(name for name in names if not name.endswith(" wait"))


def profiled(rank: int) -> list[str]:
    """The ranges that the profiler sees."""
    with torch.profiler.profile() as profile:
        tensor = torch.ones(100)
        for _ in range(2):
            dist.all_reduce(tensor)
        dist.all_reduce(tensor, async_op=True).wait()
        dist.broadcast(tensor, 0)
        dist.barrier()
        if rank == 0:
            dist.send(tensor, 1)
            dist.isend(tensor, 1).wait()
        else:
            dist.recv(tensor, 0)
            dist.recv(tensor)
    return calls_in(profile)


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_the_profiler_shows_calls_by_name(transport: str):
    wanted = ["commlib:all_reduce"] * 3 + ["commlib:barrier", "commlib:broadcast"]
    sends, receives = ["commlib:send"] * 2, ["commlib:recv", "commlib:recv_anysource"]
    assert run_on(2, profiled, transport=transport) == [wanted + sends, wanted + receives]


ROUNDS = 20


def outlives(rank: int) -> list[str]:
    """Calls that end when the profiler has stopped, or another runs: its memory of them is gone then."""
    store, value = world_store(), torch.ones(100)
    waits = []
    for turn in range(ROUNDS):
        if rank == 0:
            with torch.profiler.profile() as first:
                work = dist.all_reduce(value, async_op=True)
            assert calls_in(first) == ["commlib:all_reduce"]
            with torch.profiler.profile() as second:
                store.set(f"begun {turn}", "yes")
                work.wait()
            waits += [event.name for event in second.events() if "commlib" in event.name]
        else:
            store.wait([f"begun {turn}"])
            dist.all_reduce(value, async_op=True).wait()
        value /= 2
    assert int(value.sum()) == 100
    return waits


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_a_call_may_end_after_the_profiler(transport: str):
    waits, _ = run_on(2, outlives, transport=transport)
    assert set(waits) == {"commlib:all_reduce wait"}


def waits_and_stops(rank: int) -> int:  # noqa: ARG001
    """Calls that end just before the profiler does."""
    value = torch.ones(100)
    for _ in range(ROUNDS):
        with torch.profiler.profile() as profile:
            dist.all_reduce(value, async_op=True).wait()
        assert calls_in(profile) == ["commlib:all_reduce"]
        value /= 2
    return int(value.sum())


def test_the_profiler_may_stop_as_soon_as_a_call_was_waited_for():
    assert run_on(2, waits_and_stops) == [100, 100]
