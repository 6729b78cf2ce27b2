"""The store at which ranks meet may live in one of them: none leaves while another has yet to read there."""

from __future__ import annotations

import time
from typing import Any

import fault_campaign
import numpy as np
import pytest

from commlib.errors import DeadlineError
from commlib.runtime import launch
from commlib.runtime.shm.control import READY
from commlib.runtime.shm.rendezvous import Board
from commlib.runtime.shm.session import ShmOptions, ShmSession


class _Slow:
    """A store whose answers come late, and that knows when it was last used."""

    def __init__(self, store: Any) -> None:
        self._store, self.used = store, 0.0

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            if name == "get":
                time.sleep(0.1)
            answer = getattr(self._store, name)(*args)
            self.used = time.monotonic()
            return answer

        return call


def _open(rank: int) -> tuple[float, float]:
    store = fault_campaign.store("slow")
    given = _Slow(store) if rank == 1 else store
    with ShmSession.open(given, rank, 2, ShmOptions(lane_bytes=1 << 16), 20.0):
        return (given.used if rank == 1 else 0.0), time.monotonic()


def test_no_rank_leaves_the_store_before_all_have_done_with_it() -> None:
    (_, left), (used, _) = launch(_open, 2, (), 30)
    assert left >= used


def test_a_rank_that_never_gets_so_far_is_named() -> None:
    segments = [np.zeros(READY + 8, np.uint8) for _ in range(2)]
    with pytest.raises(DeadlineError, match=r"rank\(s\) 1 did not come"):
        Board(None, 0, 2, 0.05).leave_together(segments)
