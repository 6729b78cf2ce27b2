"""Rings: a stream of bytes from each rank to each other, for send and recv, through the receiver's segment.

Two counters that only grow: bytes written, by the sender, and bytes read, by the receiver.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

import numpy as np

from commlib.runtime.shm.control import LINE, SegmentLayout
from commlib.runtime.shm.memory import bytes_at
from commlib.runtime.shm.waiting import Bells, make_fence


class Rings:
    """One rank's ends of its rings; safe to use from several threads."""

    def __init__(
        self,
        rank: int,
        layout: SegmentLayout,
        segments: Sequence[int],
        bells: Bells,
        looks: int,
        slice_seconds: float,
    ) -> None:
        self._looks = range(looks)
        self._size, self._bells, self._slice, self._ranks = layout.ring, bells, slice_seconds, layout.ranks
        words = [bytes_at(address, layout.control_end).data.cast("Q") for address in segments]
        self._in_words, self._out_words = [words[rank]] * layout.ranks, words
        self._in_at = [layout.ring_words(peer) // 8 for peer in range(layout.ranks)]
        self._out_at = layout.ring_words(rank) // 8
        self._in = [bytes_at(segments[rank] + layout.ring_bytes(peer), layout.ring) for peer in range(layout.ranks)]
        self._out = [bytes_at(address + layout.ring_bytes(rank), layout.ring) for address in segments]
        self._peers = [peer for peer in range(layout.ranks) if peer != rank]
        self._seen_in, self._seen_out = [0] * layout.ranks, [0] * layout.ranks
        self._lock, self._fence = threading.Lock(), make_fence()

    def write(self, peer: int, address: int, size: int) -> int:
        """As many bytes as there is room for; how many."""
        with self._lock:
            words, at = self._out_words[peer], self._out_at
            written, read = words[at], words[at + LINE // 8]
            self._seen_out[peer] = read
            count = min(size, self._size - (written - read))
            if count > 0:
                self._copy(self._out[peer], written % self._size, bytes_at(address, count), to_ring=True)
                words[at] = written + count
                self._fence()
                self._bells.ring(peer)
            return count

    def read(self, peer: int, address: int, size: int) -> int:
        """As many bytes as have come; how many."""
        with self._lock:
            words, at = self._in_words[peer], self._in_at[peer]
            written, read = words[at], words[at + LINE // 8]
            self._seen_in[peer] = written
            count = min(size, written - read)
            if count > 0:
                self._copy(self._in[peer], read % self._size, bytes_at(address, count), to_ring=False)
                words[at + LINE // 8] = read + count
                self._fence()
                self._bells.ring(peer)
            return count

    @staticmethod
    def _copy(ring: np.ndarray, start: int, line: np.ndarray, to_ring: bool) -> None:
        first = min(len(line), len(ring) - start)
        for part, other in ((ring[start : start + first], line[:first]), (ring[: len(line) - first], line[first:])):
            np.copyto(part, other) if to_ring else np.copyto(other, part)

    def wait(self, timeout: float) -> None:
        """Until something was written to this rank, or read of what it wrote, that it has not looked at yet."""
        deadline = time.monotonic() + timeout
        for _ in self._looks:
            if self._changed():
                return
            os.sched_yield()
        self._bells.arm()
        try:
            while True:
                heard = self._bells.heard()
                self._fence()
                left = deadline - time.monotonic()
                if self._changed() or left <= 0:
                    return
                self._bells.sleep(heard, min(left, self._slice))
        finally:
            self._bells.disarm()

    def _changed(self) -> bool:
        with self._lock:
            incoming = [self._in_words[peer][self._in_at[peer]] for peer in range(self._ranks)]
            outgoing = [words[self._out_at + LINE // 8] for words in self._out_words]
            changed = incoming != self._seen_in or outgoing != self._seen_out
            self._seen_in, self._seen_out = incoming, outgoing
            return changed
