"""Callbacks of futures that make calls and wait for them, as compression hooks do; and closing with calls pending."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from backend_ranks import await_call, begin, has_heard, run_on, threads_left, world_store
from timely import timely, wait_until
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook, quantization_hooks
from torch.nn.parallel import DistributedDataParallel

from commlib.errors import PeerFailedError
from commlib.runtime.launcher import launch
from commlib.torch_backend.group import core_of

pytestmark = pytest.mark.timeout(90)
Future = torch.futures.Future
LONG = 60
"""Seconds; whoever waits so long has waited in vain."""


def ones() -> torch.Tensor:
    """What the calls of these tests reduce."""
    return torch.ones(4)


def begun() -> Any:
    """The future of a call."""
    return dist.all_reduce(ones(), async_op=True).get_future()


def held() -> Any:
    """No call runs meanwhile: what is begun is queued, and futures get their callbacks before they are settled."""
    return core_of().lock


def by_future(_: Future[Any]) -> torch.Tensor:
    """A call of which a callback waits for the future."""
    return begun().wait()[0]


def by_work(_: Future[Any]) -> torch.Tensor:
    """A call for which a callback waits."""
    tensor = ones()
    dist.all_reduce(tensor, async_op=True).wait()
    return tensor


def at_once(_: Future[Any]) -> torch.Tensor:
    """A call that a callback makes behind one that is queued."""
    tensor = ones()
    dist.all_reduce(tensor)
    return tensor


def deep(depth: int) -> torch.Tensor:
    """Callbacks in callbacks."""
    future = begun()
    return future.wait()[0] if depth == 0 else future.then(lambda _: deep(depth - 1)).wait()


def among_others(_: int, callback: Callable[[Any], torch.Tensor]) -> dict[str, Any]:
    """The callback's call behind queued ones, and the threads after the end of the group."""
    with held():
        future = begun().then(callback)
        rest = [begun() for _ in range(3)]
    got: dict[str, Any] = {"value": future.wait().tolist(), "rest": [each.wait()[0].tolist() for each in rest]}
    dist.destroy_process_group()
    got["threads"] = threads_left()
    return got


@pytest.mark.parametrize("callback", [by_future, by_work, at_once])
def test_a_callback_makes_a_call_and_waits_for_it(callback: Callable[[Any], torch.Tensor]) -> None:
    for got in run_on(2, among_others, callback):
        assert got == {"value": [2.0] * 4, "rest": [[2.0] * 4] * 3, "threads": []}


def odd_callbacks(_: int) -> dict[str, Any]:
    """Callbacks in callbacks; one that waits for a call behind it; several that raise, and that begin calls."""
    got: dict[str, Any] = {"deep": deep(4).tolist()}
    later: list[Any] = []
    with held():
        first = begun().then(lambda _: later[0].wait())
        later.append(begun().then(lambda done: done.value()[0].tolist()))
    got["behind"] = first.wait()

    got["raised"] = []
    for error in (ValueError("boom"), KeyError("boom"), SystemExit(3), KeyboardInterrupt()):

        def callback(_: Any, error: BaseException = error) -> None:
            raise error

        future = begun()
        future.add_done_callback(callback)
        try:
            future.then(callback).wait()
        except RuntimeError as found:
            got["raised"].append(type(error).__name__ in str(found))

    order: list[int] = []
    with held():
        outer = [begun().then(lambda _, i=i: (order.append(i), begun())[1]) for i in range(5)]
    got["inner"] = [future.wait().wait()[0].tolist() for future in outer]
    got["order"] = order
    return got


def test_callbacks_of_all_kinds_end() -> None:
    for got in run_on(2, odd_callbacks):
        assert got["deep"] == got["behind"] == [2.0] * 4
        assert got["raised"] == [True] * 4
        assert (got["order"], got["inner"]) == ([0, 1, 2, 3, 4], [[2.0] * 4] * 5)


def trained(rank: int, hook: str) -> list[list[float]]:
    """The gradients of four steps under a communication hook."""
    torch.manual_seed(1)
    layers = torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 8)
    model = DistributedDataParallel(torch.nn.Sequential(*layers))
    if hook == "powerSGD":
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif hook == "quantization":
        model.register_comm_hook(dist.group.WORLD, quantization_hooks.quantization_pertensor_hook)
    else:
        model.register_comm_hook(dist.group.WORLD, default_hooks.allreduce_hook)
    torch.manual_seed(100 + rank)
    for _ in range(4):
        model(torch.randn(4, 64)).square().mean().backward()
    return [parameter.grad.flatten().tolist() for parameter in model.parameters()]


def trained_on_both(rank: int) -> list[list[list[float]]]:
    """Gradients over gloo and then over commlib, in one go: preparing torch for training takes seconds."""
    store, ranks = world_store(), dist.get_world_size()
    over_gloo = trained(rank, "powerSGD")
    dist.barrier()
    dist.destroy_process_group()
    begin(dist.PrefixStore("backend", store), rank, ranks)
    try:
        return [over_gloo, *(trained(rank, hook) for hook in ("powerSGD", "plain", "quantization"))]
    finally:
        dist.destroy_process_group()


def test_compression_hooks_train() -> None:
    """PowerSGD as over gloo. gloo refuses the hook that quantizes, which takes results as NCCL gives them."""
    for over_gloo, compressed, plain, quantized in launch(trained_on_both, 2, timeout=80):
        assert compressed == over_gloo != plain
        for found, exact in zip(quantized, plain, strict=True):
            near, right = torch.tensor(found), torch.tensor(exact)
            assert (near - right).abs().max() <= 0.2 * right.abs().max()


def closed(rank: int) -> dict[str, Any]:
    """Rank 0 closes its group while rank 1 waits for rank 2, which comes when the others have been told."""
    store, tensor = world_store(), torch.ones(4000)
    dist.all_reduce(tensor)
    if rank == 2:
        store.wait(["told 0", "told 1"])
        wait_until(has_heard)
        works = []
    else:
        works = [dist.all_reduce(tensor, async_op=True) for _ in range(2)]
    if rank == 0:
        dist.destroy_process_group()
    got: dict[str, Any] = {"told": []}
    for work in works or [None]:
        try:
            dist.all_reduce(tensor) if work is None else work.wait()
            got["told"].append("no error")
        except PeerFailedError as error:
            got["told"].append(str(error))
    store.set(f"told {rank}", "yes")
    got["threads"] = threads_left() if rank == 0 else []
    return got


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_closing_ends_a_call_that_waits(transport: str) -> None:
    results = run_on(3, closed, transport=transport)
    for got in results:
        assert ["rank 0 closed its group" in told for told in got["told"]] == [True] * len(got["told"])
    assert results[0]["threads"] == []


def aborted(rank: int) -> list[str]:
    """Rank 0 aborts its group while a call of it waits for rank 1, which makes its calls afterwards."""
    store, tensor = world_store(), torch.ones(4000)
    dist.all_reduce(tensor)
    core_of().worker.grace = 2 * LONG  # what abort does not wait for
    if rank == 0:
        works = [dist.all_reduce(tensor, async_op=True) for _ in range(2)]
        dist.group.WORLD.abort()
        store.set("aborted", "yes")
    else:
        store.wait(["aborted"])
        works = [dist.all_reduce(tensor, async_op=True)]
    told = []
    for work in works:
        with pytest.raises(PeerFailedError) as raised:
            work.wait()
        told.append(str(raised.value))
    core_of().worker.grace = 0.0
    return told


def ended_from_beside(rank: int) -> str:
    """Another thread closes the group while this one waits in a call of its own, to which rank 1 comes later."""
    store, tensor = world_store(), torch.ones(100_000)
    dist.all_reduce(tensor)
    if rank == 0:
        core, abort = core_of(), dist.group.WORLD.abort
        closer = threading.Thread(target=lambda: (await_call(core), abort()))
        closer.start()
    else:
        store.wait(["told"])
    with pytest.raises(PeerFailedError) as raised:
        dist.all_reduce(tensor)
    if rank == 0:
        closer.join()
        store.set("told", "yes")
    return str(raised.value)


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_abort_ends_a_call_of_another_thread(transport: str) -> None:
    for told in run_on(2, ended_from_beside, transport=transport, timeout=LONG):
        assert "rank 0 closed its group" in told


@pytest.mark.timeout(LONG)
def test_abort_does_not_wait() -> None:
    assert ["rank 0 closed its group" in text for told in run_on(2, aborted) for text in told] == [True] * 3


def left_alone(rank: int) -> list[float]:
    """The last calls are waited for by nobody; a callback makes one more."""
    tensors = [torch.full((4000,), float(rank + 1)) for _ in range(3)]
    last = ones()
    core_of().worker.grace = LONG  # the other rank may come late
    with held():
        for tensor in tensors:
            dist.all_reduce(tensor, async_op=True)
        begun().then(lambda _: (time.sleep(0.1), dist.all_reduce(last)))
    dist.group.WORLD.shutdown()  # destroy_process_group of older torch does not call it at once
    return [tensor.sum().item() for tensor in (*tensors, last)]


def test_closing_waits_for_what_goes_on() -> None:
    assert run_on(2, left_alone) == [[12000.0, 12000.0, 12000.0, 8.0]] * 2


def idle(_: int) -> float:
    """Seconds of processor time in half a second with all threads there and nothing to do."""
    deep(2)
    begun().then(lambda _: by_future(_)).wait()
    dist.barrier()
    before = time.process_time()
    time.sleep(0.5)
    used = time.process_time() - before
    child = os.fork()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert by_future(begun()).tolist() == [2.0] * 4
    return used


@timely
def test_threads_for_callbacks_cost_nothing_when_idle() -> None:
    assert max(run_on(2, idle)) < 0.05
