"""Far: messages to and from one rank of another host, over gloo, each as a frame with its header and what fits.

gloo's messages are done only when someone waits for them, and a wait that times out closes the connection. So a thread
waits for what was sent, another for what comes; each is made on first use. The second receives only while a receive is
posted that the peer may serve: gloo keeps what it was not asked for with the sender.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import torch

from commlib.runtime.shm.memory import bytes_at
from commlib.runtime.shm.p2p import HEADER, SMALL, Incoming, Request

TAG = 0x0C0B0E00
"""Of all frames."""
_NEVER_SENT = 1 << 29
"""A bit of the tag that no message has."""
_FOREVER = timedelta(days=20)
"""Whoever waits for a message has a deadline; the threads have none (gloo counts milliseconds in 31 bits)."""
_JOIN = 0.3


class Inbox(Protocol):
    """Where a line puts what comes; all may be called from its threads."""

    def wants(self, peer: int) -> bool:
        """Wait until a receive is posted that this peer may serve; False: no more are."""

    def begins(self, peer: int, header: tuple[int, int, int, int]) -> tuple[Incoming, Any]:
        """A message begins to come; its ``address`` is where it goes. And what must live until it has landed."""

    def landed(self, message: Incoming) -> None:
        """A message is there."""

    def sent(self, request: Request) -> None:
        """A message has left."""

    def lost(self, peer: int, why: str) -> None:
        """The connection is gone."""


@dataclass(frozen=True, eq=False)
class _Sending:
    """What gloo sends, and what must live until it has."""

    request: Request
    works: tuple[Any, ...]
    keep: Any


class FarLine:
    """The messages of one rank to and from one peer, in order.

    ``group`` is a gloo group on which nobody else uses ``TAG``. ``send`` is called by one thread at a time.
    """

    def __init__(self, group: Any, peer: int, inbox: Inbox) -> None:
        self._group, self._peer, self._inbox = group, peer, inbox
        self._sending: queue.SimpleQueue[_Sending | None] = queue.SimpleQueue()
        self._unsent: dict[Request, None] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._closed = False

    def send(self, request: Request, first: np.ndarray, rest: int) -> None:
        """Begin to send the first piece, and then ``rest`` bytes from where the request has them."""
        self._unsent[request] = None
        try:
            works = [self._group.send([_tensor_at(int(first.ctypes.data), len(first))], self._peer, TAG)]
            if rest:
                works.append(self._group.send([_tensor_at(request.address, rest)], self._peer, TAG))
        except RuntimeError as error:
            self._inbox.lost(self._peer, str(error))
            return
        self._sending.put(_Sending(request, tuple(works), (first, request.keep)))
        self._thread("sends", self._see_off)

    def expect(self) -> None:
        """A receive was posted that this peer may serve."""
        self._thread("receives", self._receive)

    def pending(self) -> Iterator[Request]:
        """The sends under way here."""
        yield from (request for request in [*self._unsent] if not request.done)

    def close(self) -> None:
        """End the threads; one that waits for the peer is freed by closing the connection, gloo's only way."""
        self._closed = True
        self._sending.put(None)
        for thread in self._threads.values():
            if thread.is_alive() and thread is not threading.current_thread():
                with contextlib.suppress(RuntimeError):
                    cut = self._group.recv([torch.empty(1, dtype=torch.uint8)], self._peer, TAG | _NEVER_SENT)
                    cut.wait(timedelta(milliseconds=1))
                thread.join(_JOIN)

    def _thread(self, what: str, work: Callable[[], None]) -> None:
        if what not in self._threads and not self._closed:
            name = f"commlib-{what}-{self._peer}"
            self._threads[what] = threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            self._threads[what].start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except RuntimeError as error:
            if not self._closed:
                self._inbox.lost(self._peer, str(error))

    def _see_off(self) -> None:
        while (sending := self._sending.get()) is not None:
            for work in sending.works:
                work.wait(_FOREVER)
            self._unsent.pop(sending.request, None)
            self._inbox.sent(sending.request)
            del sending, work

    def _receive(self) -> None:
        frame = np.empty(HEADER.size + SMALL, np.uint8)
        while self._inbox.wants(self._peer):
            self._take(frame)
            header: tuple[int, int, int, int] = HEADER.unpack(frame[: HEADER.size].tobytes())
            message, keep = self._inbox.begins(self._peer, header)
            if 0 < message.size <= SMALL:
                ctypes.memmove(message.address, int(frame.ctypes.data) + HEADER.size, message.size)
            elif message.size:
                self._take(bytes_at(message.address, message.size))
            self._inbox.landed(message)
            del message, keep

    def _take(self, place: np.ndarray) -> None:
        self._group.recv([torch.from_numpy(place)], self._peer, TAG).wait(_FOREVER)


def _tensor_at(address: int, size: int) -> torch.Tensor:
    return torch.from_numpy(bytes_at(address, size))
