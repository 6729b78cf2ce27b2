"""Messages over gloo: who only asks whether they are done gets to know it, too."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from backend_ranks import SECONDS, run_on, world_store

from commlib.errors import DeadlineError


def _until_done(work: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not work.is_completed() and time.monotonic() < end:
        time.sleep(0.001)
    return bool(work.is_completed())


def _asked(rank: int) -> list[Any]:
    """Both send and receive, into every second element, and only ask; then wait."""
    line = torch.zeros(20)
    received, sent = dist.irecv(line[::2], 1 - rank), dist.isend(torch.full((10,), rank + 1.0), 1 - rank)
    done = [_until_done(work, 10.0) for work in (received, sent)]
    return [*done, received.is_success(), received.wait(), sent.wait(), line.tolist()]


@pytest.mark.timeout(60)
def test_a_message_is_done_for_who_only_asks() -> None:
    for rank, (*done, line) in enumerate(run_on(2, _asked, transport="gloo")):
        assert done == [True] * 5
        assert line == [2.0 - rank, 0.0] * 10


def _in_vain(rank: int) -> list[Any]:
    """Rank 1 asks for a message that rank 0 does not send; rank 0 leaves no sooner than that is known."""
    if rank == 0:
        world_store().wait(["ended"], timedelta(seconds=SECONDS))
        return []
    group: Any = dist.group.WORLD
    group.set_timeout(timedelta(seconds=1.0))  # not before: the ranks may take longer to make the group
    work, began = dist.irecv(torch.zeros(1), 0), time.monotonic()
    early = work.is_completed() and time.monotonic() - began < 1.0
    with pytest.raises(DeadlineError, match="receive from rank 0"):
        work.wait()
    world_store().set("ended", "")
    return [early, work.is_completed(), work.is_success()]


@pytest.mark.timeout(60)
def test_a_message_that_does_not_come_ends_at_the_deadline_for_who_asked() -> None:
    assert run_on(2, _in_vain, transport="gloo")[1] == [False, True, False]
