"""Signals and messages between ranks, as closures over the counters in the segments; counters only ever grow.

Every counter has one writer, who keeps its value here, so that it is never read back from shared memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from commlib.runtime.shm.control import CHANNELS, SegmentLayout
from commlib.runtime.shm.moves import Call
from commlib.runtime.shm.waiting import Blocked

if TYPE_CHECKING:
    from commlib.runtime.shm.context import PythonContext

Condition = Callable[[], tuple[Blocked, ...] | None]


class Links:
    """One rank's ends of all connections. Lists are indexed by ``channel * ranks + peer``."""

    def __init__(self, context: PythonContext, layout: SegmentLayout, segments: Sequence[int]) -> None:
        self._context, self._layout, self._segments = context, layout, tuple(segments)
        self._rank, self._words = context.rank, context.words
        size = CHANNELS * layout.ranks
        self.signalled, self.waited, self.posted, self.received = ([0] * size for _ in range(4))

    def wait(self, peer: int, channel: int, blocked: tuple[Blocked, ...]) -> Condition:
        """Wait for the next signal; the first from a peer in a call is checked to be of the same call."""
        own, at = self._words[self._rank], self._layout.signal(channel, peer) // 8
        waited, key = self.waited, channel * self._layout.ranks + peer
        context, checked = self._context, self._context.checked

        def condition() -> tuple[Blocked, ...] | None:
            count = waited[key]
            if own[at] <= count:
                return blocked
            waited[key] = count + 1
            if checked[peer] != context.calls:
                context.check(peer)
            return None

        return condition

    def signal(self, peer: int, channel: int) -> Call:
        """Add one to the peer's counter. The bell is rung later, by ``ringing``."""
        theirs, at = self._words[peer], self._layout.signal(channel, self._rank) // 8
        signalled, key = self.signalled, channel * self._layout.ranks + peer

        def signal() -> None:
            count = signalled[key] + 1
            signalled[key] = count
            theirs[at] = count

        return signal

    def ringing(self, peers: Sequence[int]) -> Call:
        """Fence, then wake those of ``peers`` that sleep."""
        bells, fence = self._context.bells, self._context.waiter.fence
        asleep = [(peer, bells.halves[peer], bells.asleep_at) for peer in dict.fromkeys(peers)]

        def ring() -> None:
            fence()
            for peer, halves, at in asleep:
                if halves[at]:
                    bells.ring(peer)

        return ring

    def has_message(self, peer: int, channel: int, blocked: tuple[Blocked, ...]) -> Condition:
        """Wait for the next message from a peer."""
        own, at = self._words[self._rank], self._layout.tail(channel, peer) // 8
        received, key = self.received, channel * self._layout.ranks + peer
        context, checked = self._context, self._context.checked

        def condition() -> tuple[Blocked, ...] | None:
            if own[at] <= received[key]:
                return blocked
            if checked[peer] != context.calls:
                context.check(peer)
            return None

        return condition

    def has_room(self, peer: int, channel: int, blocked: tuple[Blocked, ...]) -> Condition:
        """Wait for a free slot at the peer."""
        theirs, at = self._words[peer], self._layout.credit(channel, self._rank) // 8
        posted, key, depth = self.posted, channel * self._layout.ranks + peer, self._layout.depth
        return lambda: blocked if posted[key] - theirs[at] >= depth else None

    def incoming(self, peer: int, channel: int) -> int:
        """The address of the message that is to be taken next."""
        layout = self._layout
        slot = self.received[channel * layout.ranks + peer] % layout.depth
        return self._segments[self._rank] + layout.fifo(channel, peer) + slot * layout.slot

    def outgoing(self, peer: int, channel: int) -> int:
        """The address of the slot that the next message goes to."""
        layout = self._layout
        slot = self.posted[channel * layout.ranks + peer] % layout.depth
        return self._segments[peer] + layout.fifo(channel, self._rank) + slot * layout.slot

    def taken(self, peer: int, channel: int) -> Call:
        """Give the slot of the message back."""
        at = self._layout.credit(channel, peer) // 8
        return partial(_count, self.received, channel * self._layout.ranks + peer, self._words[self._rank], at)

    def sent(self, peer: int, channel: int) -> Call:
        """Hand the message over."""
        at = self._layout.tail(channel, self._rank) // 8
        return partial(_count, self.posted, channel * self._layout.ranks + peer, self._words[peer], at)


def _count(counts: list[int], key: int, words: memoryview, at: int) -> None:
    counts[key] += 1
    words[at] = counts[key]
