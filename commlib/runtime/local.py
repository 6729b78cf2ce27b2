"""The local transport: ranks are threads of one process, messages are copies in queues. For tests and as a model."""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from commlib.collectives import Buffer
from commlib.errors import DeadlineError, MismatchError, PeerFailedError
from commlib.runtime.plan import RankPlan
from commlib.runtime.transport import Bytes, Frame, Wait


@dataclass
class LocalNetwork:
    """The queues between the ranks of one launch; ``fifo_depth`` messages fit each connection."""

    ranks: int
    fifo_depth: int = 8
    failure: str | None = None
    queues: dict[tuple[int, int, int], deque[Bytes]] = field(default_factory=dict)
    memory: dict[tuple[int, Buffer], Bytes] = field(default_factory=dict)
    """What one-sided steps reach, by (rank, buffer); complete before any rank begins."""
    signals: dict[tuple[int, int, int], int] = field(default_factory=dict)
    """Signals so far on (sender, receiver, channel); each written by its sender only."""

    def __post_init__(self) -> None:
        self.bells = [queue.SimpleQueue[None]() for _ in range(self.ranks)]

    def queue(self, sender: int, receiver: int, channel: int) -> deque[Bytes]:
        """The queue of a connection."""
        return self.queues.setdefault((sender, receiver, channel), deque())

    def fail(self, reason: str) -> None:
        """A rank has failed: everyone who waits ends with an error."""
        self.failure = self.failure or reason
        for bell in self.bells:
            bell.put(None)


class LocalEndpoint:
    """One rank's side of one launch on a LocalNetwork, one-sided steps included. A bell rung before a rank waits
    is not lost."""

    def __init__(self, network: LocalNetwork, plan: RankPlan) -> None:
        self._network, self._rank = network, plan.rank
        self._sends, self._receives = plan.sends, plan.receives
        self._out = [network.queue(plan.rank, link.peer, link.channel) for link in plan.sends]
        self._waited = Counter[tuple[int, int]]()
        self._in = [network.queue(link.peer, plan.rank, link.channel) for link in plan.receives]

    def try_send(self, link: int, size: int) -> Frame | None:
        """A fresh frame, if the queue has room."""
        if len(self._out[link]) >= self._network.fifo_depth:
            return None
        return Frame(np.empty(size, dtype=np.uint8))

    def commit(self, link: int, frame: Frame) -> None:
        """Append the frame to the queue."""
        self._out[link].append(frame.payload)
        self._network.bells[self._sends[link].peer].put(None)

    def try_recv(self, link: int, size: int) -> Frame | None:
        """Pop the queue."""
        if not self._in[link]:
            return None
        payload = self._in[link].popleft()
        peer = self._receives[link].peer
        self._network.bells[peer].put(None)
        if len(payload) != size:
            raise MismatchError(
                f"rank {self._rank}: a message of {len(payload)} bytes came from rank {peer}, not of {size}",
                rank=self._rank,
                peer=peer,
            )
        return Frame(payload)

    def release(self, link: int, frame: Frame) -> None:
        """Nothing to do: the frame's memory is its own."""

    def signal(self, peer: int, channel: int) -> None:
        """Count up, then wake the peer."""
        key = (self._rank, peer, channel)
        self._network.signals[key] = self._network.signals.get(key, 0) + 1
        self._network.bells[peer].put(None)

    def try_wait(self, peer: int, channel: int) -> bool:
        """Whether the peer has signalled once more than this rank has waited."""
        if self._network.signals.get((peer, self._rank, channel), 0) <= self._waited[peer, channel]:
            return False
        self._waited[peer, channel] += 1
        return True

    def peer_buffer(self, peer: int, buffer: Buffer) -> Bytes:
        """The peer's memory: it is this process's own."""
        return self._network.memory[peer, buffer]

    def wait_any(self, deadline: float, waits: list[Wait]) -> None:
        """Wait until some queue of this rank changed."""
        if self._network.failure is None:
            try:
                self._network.bells[self._rank].get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise DeadlineError(_late(self._rank, waits), rank=self._rank) from None
        if self._network.failure is not None:
            raise PeerFailedError(f"rank {self._rank}: {self._network.failure}", rank=self._rank)


def _late(rank: int, waits: list[Wait]) -> str:
    first = waits[0]
    return f"rank {rank} threadblock {first.threadblock} step {first.step} waits {first.what} past the deadline"
