"""A group that is destroyed by a signal handler or a hook, while a call of the same thread runs: that fails, and then
all goes."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from backend_ranks import await_call, has_heard, run_on, threads_left, world_store
from timely import wait_until

from commlib.errors import PeerFailedError
from commlib.runtime import stall
from commlib.torch_backend import registered_empty
from commlib.torch_backend.group import core_of

pytestmark = pytest.mark.timeout(90)
SIZE = 1 << 18


def _destroy() -> None:
    """``destroy_process_group`` of older torch does not tell the group."""
    group: Any = dist.group.WORLD
    group.shutdown()
    dist.destroy_process_group()


def _mappings() -> int:
    gc.collect()
    with open("/proc/self/maps") as maps:
        return sum("memfd:commlib" in line for line in maps)


def _at_a_signal(act: Callable[[], None]) -> None:
    """Act in this thread once it is in a call, which holds the group's lock."""
    core = core_of()

    def wait_for_it() -> None:
        await_call(core)
        os.kill(os.getpid(), signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, lambda *_: act())
    threading.Thread(target=wait_for_it, daemon=True).start()


def _destroyed_within(rank: int, registered: bool, made_before: int) -> bool:
    """Rank 0 destroys the group in a call to which rank 1 comes later: what both are told, and what is left.

    Over gloo nobody looks if anything moves, and rank 1 comes when word of it has come.
    """
    store = world_store()
    stall.STALLED_AFTER = 1e6
    tensor = registered_empty((SIZE,)) if registered else torch.empty(SIZE)
    tensor.fill_(1.0)
    for _ in range(made_before):
        dist.all_reduce(tensor)
    if rank == 0:
        _at_a_signal(lambda: (_destroy(), store.set("destroyed", "yes")))
    else:
        store.wait(["destroyed"])
        wait_until(has_heard)
    with pytest.raises(PeerFailedError) as raised:
        dist.all_reduce(tensor)
    text = str(raised.value)
    if rank == 1:
        _destroy()
    del raised, tensor
    assert threads_left() == []
    wait_until(lambda: _mappings() == 0)
    return "rank 0 closed its group" in text


@pytest.mark.parametrize("made_before", [0, 3], ids=["new", "remembered"])
@pytest.mark.parametrize("registered", [False, True], ids=["plain", "registered"])
def test_a_signal_handler_destroys_the_group_of_its_call(registered: bool, made_before: int) -> None:
    assert run_on(2, _destroyed_within, registered, made_before) == [True] * 2


def test_a_signal_handler_destroys_the_group_of_its_call_over_gloo() -> None:
    assert run_on(2, _destroyed_within, False, 0, transport="gloo") == [True] * 2


def _closed_while_queued(rank: int) -> bool:
    """A call of the queue closes the group on rank 0, with a call behind it, to which rank 1 comes later."""
    core, store = core_of(), world_store()
    if rank == 1:
        store.wait(["closed"])
        with pytest.raises(PeerFailedError, match="rank 0 closed its group"):
            dist.all_reduce(torch.ones(4))
        return True
    with core.lock:  # no call runs meanwhile
        work = core.issue("closing", lambda _: core.close(), True, 30.0)
        behind = dist.all_reduce(torch.ones(4), async_op=True).get_future()
    work.wait()
    with pytest.raises(RuntimeError, match="rank 0"):
        behind.wait()
    assert threads_left() == []
    store.set("closed", "yes")
    return True


def test_a_queued_call_closes_its_group() -> None:
    assert run_on(2, _closed_while_queued) == [True] * 2


def _destroyed_while_it_queues(rank: int, made_before: int) -> bool:
    """A signal comes to rank 0 while it puts a call into the queue, or starts its thread; rank 1 comes later."""
    core, store = core_of(), world_store()
    for _ in range(made_before):
        dist.all_reduce(torch.ones(4), async_op=True).wait()
    if rank == 1:
        store.wait(["destroyed"])
        with pytest.raises(PeerFailedError, match="rank 0 closed its group"):
            dist.all_reduce(torch.ones(4))
        return True
    queue = core.worker._queue

    class Struck:
        """The queue, in which a signal comes first."""

        def put(self, item: object) -> None:
            core.worker._queue = queue
            signal.raise_signal(signal.SIGUSR1)
            queue.put(item)

    signal.signal(signal.SIGUSR1, lambda *_: (_destroy(), store.set("destroyed", "yes")))
    core.worker._queue = Struck() if made_before else queue
    if not made_before:
        core.worker._serve = lambda serve=core.worker._serve: (os.kill(os.getpid(), signal.SIGUSR1), serve())
    work = dist.all_reduce(torch.ones(4), async_op=True)
    with pytest.raises(PeerFailedError, match="rank 0 closed its group"):
        work.wait()
    assert threads_left() == []
    return True


@pytest.mark.parametrize("made_before", [0, 2], ids=["first", "later"])
def test_a_signal_handler_destroys_the_group_while_a_call_is_queued(made_before: int) -> None:
    assert run_on(2, _destroyed_while_it_queues, made_before) == [True] * 2
