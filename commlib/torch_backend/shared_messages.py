"""Send and receive over shared memory, or a mix with gloo, and the ticker that moves messages on meanwhile."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from commlib.errors import CommlibError
from commlib.runtime.forks import own
from commlib.runtime.shm.p2p import P2P, Request
from commlib.torch_backend.work import PendingWork

_FIRST, _LAST = 0.001, 0.02
"""Seconds between two looks of the ticker: at first, and after a while without news."""
_IDLE = 1.0
"""Seconds without anything under way after which the ticker sleeps until it is called."""


class Ticker:
    """A thread that moves messages on, now and then: a rank may send, and then compute or wait in a collective.

    It is made when a message is first not done at once. Who waits for a message moves it on much faster himself.
    """

    def __init__(self, p2p: P2P) -> None:
        self._p2p = p2p
        self._under_way: list[Request] = []
        self._bell = threading.Condition()
        self._thread: threading.Thread | None = None
        self._asleep = self._closed = False
        own(self)

    def disown(self) -> None:
        """See ``forks``: the thread is not there."""
        self._bell, self._thread, self._closed = threading.Condition(), None, True

    def watch(self, request: Request) -> None:
        """Move on until this is done, too."""
        with self._bell:
            self._under_way.append(request)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._tick, name="commlib-messages", daemon=True)
                self._thread.start()
            elif self._asleep:
                self._bell.notify()

    def _tick(self) -> None:
        pause, quiet = _FIRST, 0.0
        while True:
            with self._bell:
                if self._closed:  # asked here: ``close`` between a look and the wait would not be heard
                    return
                self._asleep = quiet > _IDLE
                if self._asleep and not self._under_way:
                    self._bell.wait()
                    quiet = 0.0
                else:
                    self._bell.wait(pause)
                self._asleep = False
            moved = self._move()
            pause = _FIRST if moved else min(2 * pause, _LAST)
            quiet = 0.0 if self._under_way else quiet + pause

    def _move(self) -> bool:
        if not self._under_way or self._closed:
            return False
        try:
            moved = self._p2p.progress()
        except CommlibError:  # who waits for the message meets it himself
            with self._bell:
                self._under_way.clear()
            return False
        with self._bell:  # a request that is added meanwhile must not be lost
            self._under_way = [request for request in self._under_way if not request.done]
        return moved

    def close(self) -> None:
        """End the thread."""
        with self._bell:
            self._closed = True
            self._bell.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)


class MessageWork(PendingWork):
    """One message; ``wait`` moves it on."""

    def __init__(
        self, p2p: P2P, request: Request, timeout: float, then: Callable[[], None] | None, keep: list[Any]
    ) -> None:
        super().__init__(str(request), keep)
        self._p2p, self._request, self._timeout, self._then = p2p, request, timeout, then
        self._ending = threading.Lock()

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait until the message has left or come.

        Raises:
            DeadlineError, PeerFailedError, MismatchError: it did not; the group cannot be used after the first two.
        """
        if not self._finished:
            given = timeout is not None and timeout > timedelta(0)
            limit = timeout.total_seconds() if given and timeout is not None else self._timeout
            try:
                self._p2p.wait(self._request, limit)
            except CommlibError as error:
                self._end(error)
            self._look()
        return super().wait()

    def is_completed(self) -> bool:
        """Whether the message has left or come; looks for it."""
        if not self._request.done:
            self._p2p.progress()
        return self._look()

    def _look(self) -> bool:
        if self._request.done:
            self._end(self._request.error)
        return self._finished

    def _end(self, error: CommlibError | None) -> None:
        with self._ending:
            if self._finished:
                return
            if error is None and self._then is not None:
                self._then()
            self.finish(error)

    def source_rank(self) -> int:
        """The rank that the message came from."""
        return self._request.source

    def _source_rank(self) -> int:
        return self._request.source

    def get_future(self) -> torch.futures.Future[Any]:
        """A future that is done: messages finish by waiting."""
        self.wait()
        return super().get_future()


class SharedPointToPoint:
    """Messages over rings, and where that is mixed, gloo between hosts."""

    def __init__(self, p2p: P2P) -> None:
        self._p2p = p2p
        self._ticker = Ticker(self._p2p)

    def send(self, line: torch.Tensor, peer: int, tag: int, timeout: float) -> PendingWork:
        """Begin to send."""
        size = line.numel() * line.element_size()
        request = self._p2p.isend(line.data_ptr(), size, peer, tag, _kind(line), line)
        return self._begun(request, timeout, None, line)

    def receive(
        self, line: torch.Tensor, peer: int | None, tag: int, timeout: float, then: Callable[[], None] | None
    ) -> PendingWork:
        """Begin to receive."""
        size = line.numel() * line.element_size()
        request = self._p2p.irecv(line.data_ptr(), size, peer, tag, _kind(line), line)
        return self._begun(request, timeout, then, line)

    def _begun(
        self, request: Request, timeout: float, then: Callable[[], None] | None, line: torch.Tensor
    ) -> PendingWork:
        if not request.done:
            self._ticker.watch(request)
        return MessageWork(self._p2p, request, timeout, then, [line])

    def close(self) -> None:
        """End the ticker; messages under way end with an error."""
        self._ticker.close()
        self._p2p.close()


def _kind(line: torch.Tensor) -> int:
    """A number for the element type, which both sides must agree in."""
    return zlib.crc32(str(line.dtype).encode())
