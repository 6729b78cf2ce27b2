"""What the engine asks of a transport: messages on links, in order, with a bounded number in flight.

An *endpoint* is one rank's side of one launch. ``try_send`` and ``try_recv`` never wait; ``wait_any`` does. A frame
is a piece of the transport's own memory: the engine writes a message into the frame that ``try_send`` gave, and
reads one from the frame that ``try_recv`` gave. Every message of a link arrives once, whole, in the order sent.
"""

from __future__ import annotations

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
