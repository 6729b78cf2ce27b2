"""Asynchronous calls: one order for all, handles, futures, time-outs, and messages between two ranks."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from backend_ranks import gather_single, run_on

from commlib.errors import CommlibError

TRANSPORTS = ("shm", "gloo")


def queued(rank: int) -> dict[str, object]:
    """Calls that are queued and calls that are not, in turn."""
    n, got = dist.get_world_size(), {}
    total = n * (n + 1) // 2
    tensors = [torch.full((1000 * (i + 1),), float(rank + 1)) for i in range(6)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors[:5]]
    dist.all_reduce(tensors[5])
    got["done"] = [bool((tensors[5] == total).all()), *(work.is_completed() for work in works)]
    got["waits"] = [work.wait() for work in works]
    got["sums"] = [float(tensor.sum()) for tensor in tensors] == [total * 1000.0 * (i + 1) for i in range(6)]
    got["fine"] = [work.is_success() and work.exception() is None for work in works]

    out = torch.zeros(n)
    work = gather_single(out, torch.tensor([float(rank)]), async_op=True)
    future = work.get_future().then(lambda done: float(done.value()[0].sum()))
    got["future"] = future.wait()
    got["later"] = work.get_future().wait()[0].tolist()
    got["barrier"] = dist.barrier(async_op=True).wait(timedelta(seconds=20))
    got["sequence"] = dist.group.WORLD._get_sequence_number_for_group()
    got["threads"] = sum(thread.name.startswith("commlib") for thread in threading.enumerate())
    return got


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_async_calls_keep_one_order(transport):
    for got in run_on(2, queued, transport=transport):
        assert got["done"] == [True] * 6
        assert got["waits"] == got["fine"] == [True] * 5
        assert got["sums"]
        assert got["future"] == 1.0
        assert got["later"] == [0.0, 1.0]
        assert got["barrier"] is True
        assert got["sequence"] == 8
        assert got["threads"] >= 1


def late(rank: int) -> str:
    """Rank 1 comes late to rank 0's call, which a short wait does not await."""
    tensor = torch.ones(4)
    if rank == 1:
        dist.recv(torch.zeros(1), 0)
        dist.all_reduce(tensor)
        return str(tensor.tolist())
    work = dist.all_reduce(tensor, async_op=True)
    try:
        work.wait(timedelta(milliseconds=50))
        told = "no error"
    except RuntimeError as error:
        told = f"{type(error).__name__} {isinstance(error, CommlibError)}"
    dist.send(torch.zeros(1), 1)
    work.wait()
    return f"{told} {tensor.tolist()}"


def test_a_wait_that_ends_early_leaves_the_call_going():
    assert run_on(2, late) == ["TorchDeadlineError True [2.0, 2.0, 2.0, 2.0]", "[2.0, 2.0, 2.0, 2.0]"]


def failing(rank: int) -> list[str]:
    """Ranks that differ: the queued call's handle and future have the error, and so has the next call."""
    work = dist.all_reduce(torch.ones(4 + rank), async_op=True)
    told = []
    for attempt in (work.wait, lambda: dist.all_reduce(torch.ones(3))):
        try:
            attempt()
            told.append("no error")
        except RuntimeError as error:
            told.append(type(error).__name__)
    told.append(f"{work.is_completed()} {work.is_success()} {type(work.exception()).__name__}")
    try:
        work.get_future().wait()
    except RuntimeError as error:
        told.append("Mismatch" if "TorchMismatchError" in str(error) else str(error))
    return told


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_error_of_a_queued_call(transport):
    for told in run_on(2, failing, transport=transport):
        assert told[0] == "TorchMismatchError"
        assert told[1] in ("TorchMismatchError", "TorchPeerFailedError")
        assert told[2:] == ["True False TorchMismatchError", "Mismatch"]


def messages(rank: int) -> dict[str, object]:
    """Tags, any source, strides, sizes beyond the rings, and sends that nobody waits for."""
    n, got = dist.get_world_size(), {}
    if rank == 0:
        works = [dist.isend(torch.full((3,), float(tag)), 1, tag=tag) for tag in (5, 6, 7)]
        got["sent"] = [work.wait() for work in works]
    if rank == 1:
        tensors = {tag: torch.zeros(3) for tag in (7, 5, 6)}
        works = [dist.irecv(tensor, 0, tag=tag) for tag, tensor in tensors.items()]
        got["received"] = [work.wait() for work in works]
        got["tags"] = {str(tag): tensor.tolist() for tag, tensor in tensors.items()}
    dist.barrier()
    if rank == 2:
        tensors = [torch.zeros(2) for _ in range(n - 1)]
        sources = [dist.recv(tensor, tag=4) for tensor in tensors]
        got["any"] = sorted((source, *tensor.tolist()) for source, tensor in zip(sources, tensors, strict=True))
    else:
        dist.send(torch.tensor([rank, 10.0 * rank]), 2, tag=4)  # one may go on before the other sends

    large = torch.arange(1_000_000) + rank
    other = torch.zeros(1_000_000, dtype=torch.int64)
    sends = dist.isend(large, (rank + 1) % n)
    dist.recv(other, (rank - 1) % n)
    sends.wait()
    got["ring"] = bool(torch.equal(other, torch.arange(1_000_000) + (rank - 1) % n))

    square = torch.zeros(4, 4)
    if rank == 0:
        square[:, 1] = 3.0
        work = dist.isend(square[:, 1], 1)
        big = dist.isend(torch.ones(2_000_000), 1)
        dist.barrier()
        work.wait()
        big.wait()
    elif rank == 1:
        dist.recv(square[2], 0)
        big = torch.zeros(2_000_000)
        dist.recv(big, 0)
        dist.barrier()
        got["strided"], got["big"] = square.tolist(), float(big.sum())
    else:
        dist.barrier()
    operations = [
        dist.P2POp(dist.isend, torch.tensor([float(rank)]), (rank + 1) % n),
        dist.P2POp(dist.irecv, torch.zeros(1), (rank - 1) % n),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    got["batch"] = operations[1].tensor.item()
    return got


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_messages_between_two_ranks(transport):
    got = run_on(3, messages, transport=transport)
    assert got[0]["sent"] == got[1]["received"] == [True] * 3
    assert got[1]["tags"] == {str(tag): [float(tag)] * 3 for tag in (5, 6, 7)}
    assert got[2]["any"] == [[0, 0.0, 0.0], [1, 1.0, 10.0]]
    assert [one["ring"] for one in got] == [True] * 3
    assert got[1]["strided"] == [[0.0] * 4, [0.0] * 4, [3.0] * 4, [0.0] * 4]
    assert got[1]["big"] == 2_000_000.0
    assert [one["batch"] for one in got] == [2.0, 0.0, 1.0]
