"""Interrupting a call: it ends at its next wait, at once, though its rank never asks whether anything moves."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest
import torch
from process_cases import WIRINGS, wire
from runtime_algorithms import chain
from timely import wait_until

from commlib.errors import PeerFailedError
from commlib.runtime import Communicator, launch, stall
from commlib.runtime.agreement import Meeting
from commlib.runtime.carriers import TableCarrier

pytestmark = pytest.mark.timeout(90)
SECONDS = 40.0
"""More than rank 0 holds its message back, less than the test may take."""


def _told(comm: Communicator, store: Any) -> str:
    """What this rank is told in its call, and that it comes at once; rank 1 says when it has ended."""
    begun = time.monotonic()
    try:
        comm.run(chain("broadcast", comm.ranks), torch.full((64,), float(comm.rank)), in_place=True)
    except PeerFailedError as error:
        return error.message
    finally:
        if comm.rank == 1:
            store.set("ended", "yes")
        comm.close()
        assert time.monotonic() - begun < SECONDS / 2
    return "done"


def _interrupted(rank: int, wiring: str, waits: bool) -> str:
    """Rank 0 holds its message back until rank 1, which waits for it, has been interrupted and has ended.

    That is before its first step, or ``waits``: some time after.
    """
    wire(rank, WIRINGS[wiring])
    comm = Communicator(timeout=10 * SECONDS, transport=WIRINGS[wiring].transport)
    comm.connect()
    if rank == 1:
        stall.STALLED_AFTER = SECONDS
    store: Any = torch.distributed.PrefixStore("test", torch.distributed.distributed_c10d._get_default_store())
    main = threading.main_thread().ident

    def hold_back(*_: int) -> None:
        wait_until(lambda: store.check(["ended"]), SECONDS / 2)

    def strike(*_: int) -> None:
        threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGUSR1)).start()

    def interrupt(*_: Any) -> None:
        comm.interrupt("rank 1 was interrupted")

    signal.signal(signal.SIGUSR1, interrupt)
    if rank < 2:
        comm.hook = hold_back if rank == 0 else strike if waits else interrupt
    return _told(comm, store)


@pytest.mark.parametrize("waits", [False, True], ids=["before", "waiting"])
@pytest.mark.parametrize("wiring", ["gloo", "two hosts", "shm", "python"])
def test_an_interrupted_call_ends_at_once_and_the_others_hear_why(wiring: str, waits: bool) -> None:
    told = launch(_interrupted, 3, (wiring, waits), 60.0)
    assert all("rank 1 was interrupted" in text for text in told[1:]), told
    assert told[0] == "done" or "rank 1 was interrupted" in told[0]


def _interrupted_while_it_connects(rank: int, after: str) -> str:
    """Rank 1 is interrupted in its first call, before the ranks have met, or when its session has just been opened."""
    comm, place = Communicator(timeout=10 * SECONDS), Meeting if after == "hosts" else TableCarrier
    act = getattr(place, after)

    def interrupt(*given: Any) -> Any:
        found = None if after == "hosts" else act(*given)
        comm.interrupt("rank 1 was interrupted")
        return act(*given) if after == "hosts" else found

    store: Any = torch.distributed.PrefixStore("test", torch.distributed.distributed_c10d._get_default_store())
    if rank == 1:
        setattr(place, after, interrupt)
    elif rank == 0:
        comm.hook = lambda *_: wait_until(lambda: store.check(["ended"]), SECONDS / 2)
    return _told(comm, store)


@pytest.mark.parametrize("after", ["hosts", "open"])
def test_a_first_call_is_interrupted_while_it_connects(after: str) -> None:
    told = launch(_interrupted_while_it_connects, 3, (after,), 60.0)
    assert all("rank 1 was interrupted" in text for text in told[1:]), told
    assert told[0] == "done" or "rank 1 was interrupted" in told[0]
