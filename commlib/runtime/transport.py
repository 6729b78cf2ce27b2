"""What the engine asks of a transport: messages on links, in order, with a bounded number in flight.

An *endpoint* is one rank's side of one launch. ``try_send`` and ``try_recv`` never wait; ``wait_any`` does. A frame
is a piece of the transport's own memory: the engine writes a message into the frame that ``try_send`` gave, and
reads one from the frame that ``try_recv`` gave. Every message of a link arrives once, whole, in the order sent.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


@dataclass(slots=True)
class Frame:
    """A message's memory: ``payload`` is exactly as many bytes as the message has."""

    payload: Bytes
    keeper: Any = None
    """The transport's own: what the memory belongs to."""


@dataclass(frozen=True)
class Wait:
    """What a threadblock waits for, for messages and for the watch: its step and, if it is a message, the peer."""

    threadblock: int
    step: int
    what: str
    peer: int | None = None
    channel: int | None = None


class Endpoint(Protocol):
    """One rank's side of one launch. Links are indices into the plan's ``sends`` and ``receives``."""

    def try_send(self, link: int, size: int) -> Frame | None:
        """A frame for the next message of ``size`` bytes, or None while ``fifo_depth`` messages are in flight."""
        ...

    def commit(self, link: int, frame: Frame) -> None:
        """Send the frame that ``try_send`` gave and the engine has filled."""
        ...

    def try_recv(self, link: int, size: int) -> Frame | None:
        """Take the next message, or None if it has not arrived.

        Raises:
            MismatchError: it is not ``size`` bytes, or comes from another call than this one.
        """
        ...

    def release(self, link: int, frame: Frame) -> None:
        """Give the memory of a received message back."""
        ...

    def wait_any(self, deadline: float, waits: list[Wait]) -> None:
        """Return when something may have changed for one of ``waits``; ``deadline`` is in ``time.monotonic`` seconds.

        Raises:
            DeadlineError: the deadline passed.
            PeerFailedError: a peer that this rank depends on has failed.
        """
        ...


class Bell(Protocol):
    """Wakes the engine's thread; a ring before it waits is not lost."""

    def ring(self) -> None:
        """Something may have changed; any thread may ring."""
        ...

    def wait(self, seconds: float) -> bool:
        """Whether it was rung (or something changed) within so many seconds; all rings until now count as one."""
        ...


class QueueBell:
    """A bell for the threads of one process."""

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        """Ring it."""
        self._rings.put(None)

    def wait(self, seconds: float) -> bool:
        """Wait for a ring."""
        try:
            self._rings.get(timeout=seconds)
        except queue.Empty:
            return False
        while not self._rings.empty():
            self._rings.get()
        return True
