"""A session that is closed while a call of it runs, by its own thread or another: the call keeps the memory it has."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from onesided_cases import shared
from runtime_algorithms import ring_allreduce
from shm_cases import PYTHON, SMALL, open_session
from timely import wait_until

from commlib.collectives import Placement
from commlib.errors import CommlibError, PeerFailedError
from commlib.runtime.launcher import launch
from commlib.runtime.shm.options import ShmOptions
from commlib.runtime.shm.session import ShmSession

pytestmark = pytest.mark.timeout(60)
BOTH = pytest.mark.parametrize("options", [PYTHON, SMALL], ids=["python", "default"])
SIZE = 5000


def _mappings() -> int:
    gc.collect()
    with open("/proc/self/maps") as maps:
        return sum("memfd:commlib" in line for line in maps)


def _when_it_waits(session: ShmSession, act: Callable[[], None]) -> None:
    """Act within the call, once nothing moves: where Python runs signal handlers, too."""
    stalled, left = session.watch.on_stall, [act]

    def on_stall(seconds: float, waits: Any) -> None:
        while left:
            left.pop()()
        stalled(seconds, waits)

    session.watch.on_stall = on_stall  # type: ignore[method-assign]


def _from_beside(act: Callable[[], None]) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def _closed_within(
    rank: int, options: ShmOptions, registered: bool, planned: bool, beside: bool, pause: float = 0.0
) -> list[Any]:
    """Rank 0 closes its session in a call to which rank 1 comes later. See ``_close_within``."""
    found = _close_within(open_session(rank, 2, options), registered, planned, beside, pause)
    wait_until(lambda: _mappings() == 0)
    return found


def _close_within(session: ShmSession, registered: bool, planned: bool, beside: bool, pause: float) -> list[Any]:
    """How many mappings are gone when it is closed, how the call ended, and how many are gone then. After it has closed
    rank 0 pauses."""
    store: Any = dist.distributed_c10d._get_default_store()
    call, tensor = _call(session, registered, planned)
    found, before = list[Any](), _mappings()

    def close() -> None:
        _from_beside(session.close) if beside else session.close()
        found.append(before - _mappings())
        store.set("closed", "yes")
        time.sleep(pause)

    if session.rank == 0:
        _when_it_waits(session, close)
    else:
        store.wait(["closed"])
    call()
    found += [tensor[0].item(), before - _mappings()]
    if session.rank == 0:
        with pytest.raises(RuntimeError if planned else CommlibError):
            call()
    return found


def _call(session: ShmSession, registered: bool, planned: bool) -> tuple[Callable[[], None], torch.Tensor]:
    """An allreduce of rank + 1, and its tensor."""
    algorithm = shared(2) if registered else ring_allreduce(2)
    tensor = session.empty((SIZE,)) if registered else torch.empty(SIZE)
    tensor.fill_(session.rank + 1.0)
    prepared = session.prepare(algorithm, Placement.IN, SIZE, torch.float32, "sum")
    addresses = (tensor.data_ptr(), tensor.data_ptr())
    return session.planned(prepared, *addresses) if planned else lambda: session.run(prepared, *addresses), tensor


@BOTH
@pytest.mark.parametrize("beside", [False, True], ids=["handler", "thread"])
@pytest.mark.parametrize("planned", [False, True], ids=["run", "planned"])
def test_a_call_on_registered_memory_keeps_it(options: ShmOptions, planned: bool, beside: bool) -> None:
    """That of the other rank goes with the call, before the session does; a planned one is there until dropped."""
    gone = 0 if planned else 1
    assert launch(_closed_within, 2, (options, True, planned, beside)) == [[0, 3.0, gone], [3.0, 0]]


@BOTH
def test_a_call_on_segments_keeps_them(options: ShmOptions) -> None:
    assert launch(_closed_within, 2, (options, False, False, False)) == [[0, 3.0, 0], [3.0, 0]]


@BOTH
@pytest.mark.parametrize("planned", [False, True], ids=["run", "planned"])
def test_a_rank_that_closes_within_a_call_is_waited_for_there(options: ShmOptions, planned: bool) -> None:
    found = launch(_closed_within, 2, (options, False, planned, False, 0.7))
    assert found == [[0, 3.0, 0], [3.0, 0]]


def _failed_within(rank: int, options: ShmOptions, planned: bool) -> int:
    """A call in which rank 0 closes and gives up: mappings that are gone as long as its error is there."""
    session, store = open_session(rank, 2, options), dist.distributed_c10d._get_default_store()
    call, tensor = _call(session, True, planned)
    before = _mappings()

    def give_up() -> None:
        session.close()
        raise KeyboardInterrupt

    if rank == 0:
        _when_it_waits(session, give_up)
    else:
        store.wait(["given up"])
    with pytest.raises((KeyboardInterrupt, PeerFailedError)) as kept:
        call()
    del call
    gone = before - _mappings()
    store.set("given up", "yes")
    del kept, tensor
    return gone


@BOTH
@pytest.mark.parametrize("planned", [False, True], ids=["run", "planned"])
def test_an_error_keeps_no_memory(options: ShmOptions, planned: bool) -> None:
    assert launch(_failed_within, 2, (options, planned)) == [1, 0]
