"""Threads that share the messages of a rank: each moment at which another one may act, forced."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from native_world import World, needs_core

from commlib.errors import ExecutionError, PeerFailedError
from commlib.runtime.shm.control import SegmentLayout
from commlib.runtime.shm.p2p import P2P, Request

KINDS = pytest.mark.parametrize("kind", ["python", pytest.param("native", marks=needs_core)])


class _Strict:
    """A watch that gives up at its first look. It keeps the memory that contexts only point to."""

    def __init__(self, world: World) -> None:
        self._world = world

    def refuse(self) -> None:
        """Nothing has failed."""

    def on_ring_stall(self, _seconds: float, peers: Sequence[int], what: str, _timeout: float) -> None:
        """Nothing moves."""
        raise PeerFailedError(f"{what}: rank {peers[0]} closed its group")


def _pair(kind: str, make: type[Any] = P2P) -> list[Any]:
    world = World(kind, SegmentLayout(2, 4096, 64, 1, 4096))
    options = SimpleNamespace(slice_seconds=0.001)
    places: list[Any] = [
        SimpleNamespace(rank=rank, ranks=2, context=context, watch=_Strict(world), timeout=5.0, options=options)
        for rank, context in enumerate(world.contexts)
    ]
    return [make(place) for place in places]


@KINDS
def test_a_thread_looks_into_the_rings_before_it_gives_up_while_the_one_that_leads_has_no_core(kind: str) -> None:
    mine, others = _pair(kind)
    given, taken = np.arange(8, dtype=np.uint8), np.zeros(8, np.uint8)
    request = mine.irecv(taken.ctypes.data, 8, 1)
    others.isend(given.ctypes.data, 8, 0)  # and rank 1 closes: the watch says so at once
    with mine._leading:
        mine.wait(request)
    assert taken.tolist() == given.tolist()


@KINDS
def test_a_thread_gives_up_if_no_message_lies_there(kind: str) -> None:
    mine, _ = _pair(kind)
    with mine._leading, pytest.raises(PeerFailedError, match="receive from rank 1"):
        mine.wait(mine.irecv(np.zeros(8, np.uint8).ctypes.data, 8, 1))


class _Overtaken(P2P):
    """Once a request has been let in, another thread closes the messages as soon as it can."""

    closing: threading.Thread

    def _request(self, *args: Any) -> Request:
        request = super()._request(*args)
        self.closing = threading.Thread(target=self.close)
        self.closing.start()
        self.closing.join(0.2)  # it may have to wait until the request is queued
        return request


@KINDS
@pytest.mark.parametrize("what", ["isend", "irecv"])
def test_a_request_that_is_made_while_the_messages_end_ends_with_them(kind: str, what: str) -> None:
    data = np.zeros(100_000, np.uint8)
    mine, _ = _pair(kind, _Overtaken)
    request = getattr(mine, what)(data.ctypes.data, len(data), 1)
    mine.closing.join(20)  # or this thread may give up first, for what the watch says
    with pytest.raises(ExecutionError, match="its sends and receives were closed"):
        mine.wait(request)


class _Flooded(P2P):
    """Something always moves."""

    def progress(self) -> bool:
        super().progress()
        return True


def test_what_always_moves_puts_no_deadline_off() -> None:
    data, (mine, _) = np.zeros(8, np.uint8), _pair("python", _Flooded)
    with pytest.raises(PeerFailedError, match="receive from rank 1"):
        mine.wait(mine.irecv(data.ctypes.data, len(data), 1), 0.3)
