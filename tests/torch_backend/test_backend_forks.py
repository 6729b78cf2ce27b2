"""Processes that fork, calls within calls, and calls after a failure: each is told so at once, and harms nobody."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from backend_ranks import at_a_signal_in_a_call, gather_single, run_on, world_store

from commlib.errors import CommlibError
from commlib.runtime.shm.options import ShmOptions
from commlib.torch_backend.group import core_of

SIZE = 64


def _said(function: Callable[[], Any]) -> str:
    """What an error says; its kind, if it is not one that both commlib's and torch's users catch."""
    try:
        function()
    except BaseException as error:
        good = isinstance(error, CommlibError) and isinstance(error, dist.DistBackendError)
        return str(error) if good else f"{type(error).__name__} {error}"
    return "nothing"


def _in_child(functions: list[Callable[[], Any]]) -> list[str]:
    """What these say in a fork of this process."""
    results, report = os.pipe()
    child = os.fork()
    if not child:
        os.write(report, json.dumps([_said(function) for function in functions]).encode())
        os._exit(0)
    os.close(report)
    with os.fdopen(results, "rb") as stream:
        found: list[str] = json.loads(stream.read())
    os.waitpid(child, 0)
    return found


def _forks(rank: int) -> tuple[list[str], list[float]]:
    tensor, other, values = torch.ones(SIZE), torch.ones(3), []
    for _ in range(2):
        dist.all_reduce(tensor)
    dist.all_reduce(other, async_op=True).wait()  # its thread is not there in the child
    message = dist.irecv(torch.ones(5), src=1 - rank)
    told = _in_child(
        [
            lambda: dist.all_reduce(tensor.fill_(100.0)),
            lambda: dist.all_reduce(other, async_op=True).wait(),
            lambda: dist.send(other, 1 - rank),
            message.wait,
            dist.barrier,
            dist.destroy_process_group,
        ]
    )
    for _ in range(3):
        dist.all_reduce(tensor.fill_(rank + 1.0))
        values.append(tensor[SIZE - 1].item())
    dist.send(torch.full((5,), 7.0), 1 - rank)
    message.wait()
    return told, values


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.timeout(90)
def test_a_fork_has_no_say_in_its_parents_group(native: bool) -> None:
    for told, values in run_on(2, _forks, shm=ShmOptions(native=native)):
        assert [text if "the process was forked" in text else f"no: {text}" for text in told[:5]] == told[:5]
        assert (told[5], values) == ("nothing", [3.0, 3.0, 3.0])


def _nested(rank: int, hot: bool, handler_hot: bool) -> tuple[str, float]:
    """A signal handler of rank 0 makes a call within one to which rank 1 comes when that was refused."""
    tensor, other, told, store = torch.ones(SIZE), torch.ones(SIZE), [""], world_store()
    for _ in range(2 if hot else 0):
        dist.all_reduce(tensor.fill_(1.0))
    for _ in range(2 if handler_hot else 0):
        dist.all_reduce(other)
    dist.barrier()

    def handler(*_: Any) -> None:
        told[0] = _said(lambda: dist.all_reduce(other))
        store.set("told", "yes")

    if rank:
        store.wait(["told"])
    else:
        at_a_signal_in_a_call(handler)
    dist.all_reduce(tensor.fill_(rank + 1.0))
    values = tensor[0].item()
    dist.all_reduce(tensor.fill_(rank + 1.0))
    return told[0], values + tensor[0].item()


@pytest.mark.parametrize(("hot", "handler_hot"), [(True, True), (True, False), (False, False)])
@pytest.mark.timeout(60)
def test_a_call_within_a_call_is_refused_at_once(hot: bool, handler_hot: bool) -> None:
    (told, total), (nothing, other) = run_on(2, _nested, hot, handler_hot)
    assert "while another call of this group runs in the same thread" in told
    assert (nothing, total, other) == ("", 6.0, 6.0)


def _interrupted(rank: int) -> list[str]:
    """Rank 1 ends what it does not come to."""
    group = dist.new_group(backend="commlib")
    tensor = torch.ones(SIZE)
    for _ in range(3):
        dist.all_reduce(tensor, group=group)
    dist.barrier()  # rank 0 is through with these
    if rank:
        core_of(group).runner.interrupt()
    told = [_said(lambda: dist.all_reduce(tensor, group=group)) for _ in range(2)]
    dist.barrier()
    return told


@pytest.mark.timeout(60)
def test_a_remembered_call_after_a_failure_says_what_failed() -> None:
    for told in run_on(2, _interrupted):
        assert told[1].startswith("rank ")
        assert "this group has failed before call" in told[1]
        assert "rank 1" in told[1]


def _raises_in_a_call(rank: int) -> str:
    """Rank 1 comes when the error has come out of rank 0's call."""

    def handler(*_: Any) -> None:
        raise RuntimeError("preempted")

    tensor, store = torch.ones(SIZE), world_store()
    for _ in range(2):
        dist.all_reduce(tensor)
    if rank:
        store.set("through", "yes")
        store.wait(["raised"])
    else:
        store.wait(["through"])
        at_a_signal_in_a_call(handler)
    said = _said(lambda: dist.all_reduce(tensor))
    store.set("raised", "yes")
    return said


@pytest.mark.timeout(60)
def test_what_a_signal_handler_raises_comes_out_of_the_call() -> None:
    first, second = run_on(2, _raises_in_a_call)
    assert first == "RuntimeError preempted"
    assert "preempted" in second


scatter_single = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
"""torch 2.13 gives ``reduce_scatter_tensor`` another name."""


def _coalesced(tensors: list[torch.Tensor], asynchronous: bool) -> None:
    with dist.distributed_c10d._coalescing_manager(async_ops=asynchronous) as handles:
        for tensor in tensors:
            dist.all_reduce(tensor)
    if asynchronous:
        handles.wait()


def _queued(rank: int) -> tuple[list[int], list[int]]:
    """How many calls of each kind go to the group's queue: those that wait, and those that do not."""
    one, two = torch.ones(SIZE), torch.ones(2 * SIZE)
    each, worker = list(two.clone().chunk(2)), core_of().worker
    calls: list[Callable[[bool], Any]] = [
        lambda on: dist.all_reduce(one, async_op=on),
        lambda on: dist.reduce(one, 0, async_op=on),
        lambda on: dist.broadcast(one, 0, async_op=on),
        lambda on: dist.all_gather(each, one, async_op=on),
        lambda on: gather_single(two, one, async_op=on),
        lambda on: dist.gather(one, None if rank else each, 0, async_op=on),
        lambda on: dist.scatter(one, None if rank else each, 0, async_op=on),
        lambda on: dist.reduce_scatter(one, each, async_op=on),
        lambda on: scatter_single(one, two, async_op=on),
        lambda on: dist.all_to_all(list(two.chunk(2)), each, async_op=on),
        lambda on: dist.all_to_all_single(two, two.clone(), async_op=on),
        lambda on: dist.barrier(async_op=on),
        lambda on: _coalesced([one, two], on),
    ]
    found: tuple[list[int], list[int]] = ([], [])
    for asynchronous, counts in zip((False, True), found, strict=True):
        for call in calls:
            before = worker.submitted
            work = call(asynchronous)
            counts.append(worker.submitted - before)
            if work is not None:
                work.wait()
    return found


@pytest.mark.timeout(60)
def test_what_the_caller_waits_for_runs_in_its_own_thread() -> None:
    """So that a signal handler's error, or its call, is where it belongs; torch 2.6 does not say who waits."""
    for waiting, queued in run_on(2, _queued):
        assert (waiting, queued) == ([0] * 13, [1] * 13)


def _remembered(_rank: int) -> list[int]:
    """How many calls of each kind are made from memory: of one that waits and one that does not."""
    one, two, other = torch.ones(SIZE), torch.ones(2 * SIZE), torch.ones(2 * SIZE)
    calls: list[Callable[[bool], Any]] = [
        lambda on: dist.all_reduce(one, async_op=on),
        lambda on: dist.broadcast(one, 0, async_op=on),
        lambda on: gather_single(two, one, async_op=on),
        lambda on: scatter_single(one, two, async_op=on),
        lambda on: dist.all_to_all_single(two, other, async_op=on),
    ]
    found, replay = [], core_of().replay
    for call in calls:
        call(False)
        before = replay.calls
        call(False)
        call(True).wait()
        found.append(replay.calls - before)
    return found


@pytest.mark.timeout(60)
def test_a_repeated_call_is_made_from_memory_if_its_caller_waits() -> None:
    assert run_on(2, _remembered) == [[1] * 5] * 2
