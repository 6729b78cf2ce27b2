"""Flow control of the gloo transport: frames and their pools, and the credit of both sides of a link."""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any, NamedTuple

import torch

from commlib.runtime.plan import Link
from commlib.runtime.transport import Bytes
from commlib.runtime.wire import Header


class Buffer(NamedTuple):
    """A frame's memory, as the tensor that gloo takes and as the array that the engine writes."""

    tensor: torch.Tensor
    array: Bytes


class Pool:
    """Frames of one size, used again."""

    def __init__(self, size: int) -> None:
        self.size, self._free = size, list[Buffer]()

    def take(self) -> Buffer:
        """A free frame, or a new one."""
        try:
            return self._free.pop()
        except IndexError:
            tensor = torch.empty(self.size, dtype=torch.uint8)
            return Buffer(tensor, tensor.numpy())

    def give(self, buffer: Buffer) -> None:
        """Take a frame back."""
        self._free.append(buffer)


class Sent(NamedTuple):
    """A send under way: its Work, and the memory that must live until it is done, then goes back to its pool."""

    work: Any
    buffer: Buffer
    pool: Pool

    def finish(self, limit: timedelta) -> None:
        """Wait until it is done."""
        self.work.wait(limit)
        self.pool.give(self.buffer)


class CreditPlan(NamedTuple):
    """Flow control of one link: ``initial`` messages need no credit, each of ``frames`` credits is for ``batch``."""

    initial: int
    batch: int
    frames: int


def credit_plan(messages: int, fifo_depth: int) -> CreditPlan:
    """Credits in batches of half a FIFO; the sender begins with so many more that it always has a whole FIFO."""
    batch = max(1, fifo_depth // 2)
    initial = fifo_depth + batch - 1
    return CreditPlan(initial, batch, max(0, -(-(messages - initial) // batch)))


class Outgoing:
    """The sending side of a link. ``granted`` is written by the peer's thread only, the rest by the engine's."""

    def __init__(self, link: Link, fifo_depth: int) -> None:
        self.link, self.credit = link, credit_plan(link.messages, fifo_depth)
        self.granted, self.count, self.reaped = 0, 0, 0
        self.sent: deque[Sent] = deque()

    @property
    def has_room(self) -> bool:
        """Whether one more message may be sent."""
        return self.count < self.credit.initial + self.granted * self.credit.batch


class Incoming:
    """The receiving side of a link: what has come, and how many messages were taken."""

    def __init__(self, link: Link, fifo_depth: int) -> None:
        self.link, self.credit = link, credit_plan(link.messages, fifo_depth)
        self.inbox: deque[tuple[Header, Buffer]] = deque()
        self.arrived, self.taken, self.returned = 0, 0, 0
