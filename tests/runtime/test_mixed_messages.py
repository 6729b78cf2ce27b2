"""Messages over several hosts: what one thread finds or ends is not mistaken by another one."""

from __future__ import annotations

import threading
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from commlib.errors import ExecutionError, PeerFailedError
from commlib.runtime import mixed_messages
from commlib.runtime.mixed_messages import MixedP2P, MixedWatch
from commlib.runtime.shm.options import ShmOptions
from commlib.runtime.shm.p2p import HEADER, Incoming


class _Watched:
    """A watch over rank 1, which has closed, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        near: Any = SimpleNamespace(peers=(1,), standing=lambda peer: "closed")
        monitor: Any = SimpleNamespace(cause=None, report=lambda cause: cause)
        self._now, self._watch = 100.0, MixedWatch(0, near, monitor)
        monkeypatch.setattr(mixed_messages, "time", SimpleNamespace(monotonic=lambda: self._now))

    def look(self, now: float, began: float) -> None:
        """Of a thread that waits since then."""
        self._now = now
        self._watch.on_ring_stall(now - began, [1], "a receive", 30.0)

    def look_elsewhere(self, now: float, began: float) -> None:
        """In another thread."""
        thread = threading.Thread(target=self.look, args=(now, began))
        thread.start()
        thread.join()


def test_a_thread_gives_up_at_its_own_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = _Watched(monkeypatch)
    watched.look_elsewhere(100.0, 90.0)
    watched.look(100.025, 100.0)  # suspects for the first time
    watched.look_elsewhere(100.046, 100.0)
    with pytest.raises(PeerFailedError, match="rank 1 closed its group"):
        watched.look(100.05, 100.0)  # although another has just looked


def test_a_wait_does_not_give_up_for_what_the_one_before_suspected(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = _Watched(monkeypatch)
    watched.look(100.0, 99.9)
    watched.look(100.05, 100.03)
    with pytest.raises(PeerFailedError):
        watched.look(100.08, 100.03)


class _Memory:
    """What a user's tensor stands for."""


class _Group:
    """Rank 1 sends a header and then 10000 bytes; ``alive``: whether there was still somewhere to write them."""

    def __init__(self, memory: weakref.ref[_Memory]) -> None:
        self._memory, self.alive = memory, list[bool]()

    def recv(self, tensors: list[torch.Tensor], _peer: int, _tag: int) -> Any:
        """As gloo's."""
        if len(tensors[0]) == 10_000:
            self.alive.append(self._memory() is not None)
        else:
            header = bytearray(HEADER.pack(0, 10_000, 0, 0))
            tensors[0][: HEADER.size] = torch.frombuffer(header, dtype=torch.uint8)
        return SimpleNamespace(wait=lambda limit: None)


class _Overtaken(MixedP2P):
    """As soon as a message has begun to come, all requests fail."""

    def begins(self, peer: int, header: tuple[int, int, int, int]) -> tuple[Incoming, Any]:
        begun = super().begins(peer, header)
        self._fail(ExecutionError("the group has failed"))
        return begun


def test_memory_lives_while_a_message_comes_whose_receive_has_failed() -> None:
    near: Any = SimpleNamespace(rank=0, peers=(), members=(0,), wake=lambda: None)
    monitor: Any = SimpleNamespace(cause=None)
    memory, place = _Memory(), np.zeros(10_000, np.uint8)
    group = _Group(weakref.ref(memory))
    p2p = _Overtaken(group, 2, near, monitor, ShmOptions(), 5.0)
    request = p2p.irecv(place.ctypes.data, 10_000, 1, keep=memory)
    lives = weakref.ref(memory)
    del memory
    p2p._far[1]._threads["receives"].join(10)
    assert group.alive == [True]
    assert lives() is None, "and no longer"
    assert str(request.error) == "the group has failed"
