"""The part of a launch that goes through shared memory: FIFOs, signals and buffers of the ranks of one host.

A message is the frame that gloo would carry, header and payload, written into a slot of the receiver's segment and
read where it lies. What cannot be done now is remembered with the word that must change, so that a wait looks at
just these words; a rank that has looked in vain sleeps on its bell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from commlib.collectives import Buffer, Placement
from commlib.errors import ExecutionError
from commlib.ir.algorithm import Algorithm
from commlib.runtime.cause import Cause, differing
from commlib.runtime.layout import ChunkLayout
from commlib.runtime.shm.control import LINE
from commlib.runtime.shm.neighbours import Neighbours
from commlib.runtime.shm.reach import ARRIVED, MAPPED
from commlib.runtime.transport import Bytes, Frame, Wait
from commlib.runtime.wire import HEADER_BYTES, Call, Kind, other_call, read_header, write_header

_SPINS, _YIELDS = 20, 20
"""Looks at once, and after giving Python's lock and the core away, before a rank sleeps."""
_SLICE = 0.02
"""Seconds of sleep after which a rank looks again, should a bell have been missed."""

Areas = dict[Buffer, tuple[int, int]]
"""(start, size) in bytes of the buffers of a rank that others reach."""


def areas_of(algorithm: Algorithm, layout: ChunkLayout, rank: int, itemsize: int) -> Areas:
    """What a rank must have in reach of the others: its scratch, and tensors if the program works on other ranks'."""
    nominal, c = layout.nominal * itemsize, layout.collective
    scratch = algorithm.scratch_chunks[rank] * nominal
    found = {Buffer.SCRATCH: (0, scratch)}
    if not any(algorithm.touches_peers_tensors):
        return found
    base = -(-scratch // LINE) * LINE
    sizes = {buffer: layout.buffer_elements(rank, buffer) * itemsize for buffer in (Buffer.INPUT, Buffer.OUTPUT)}
    starts = [start * itemsize for start in layout.span(rank)[:2]] if layout.placement is Placement.IN else []
    if layout.padded:
        sizes = {Buffer.INPUT: c.input_chunks(rank) * nominal, Buffer.OUTPUT: c.output_chunks(rank) * nominal}
        starts = [offset * nominal for offset in c.in_place_offsets(rank)] if starts else []
    starts = starts or [0, -(-sizes[Buffer.INPUT] // LINE) * LINE]
    for buffer, start in zip((Buffer.INPUT, Buffer.OUTPUT), starts, strict=True):
        found[buffer] = (base + start, sizes[buffer])
    return found


@dataclass(frozen=True)
class Exposed:
    """The areas of all ranks of a host in a launch with one-sided steps, in their order."""

    areas: tuple[Areas, ...]

    @property
    def needs(self) -> list[int]:
        """Bytes that each rank needs."""
        return [max(start + size for start, size in areas.values()) for areas in self.areas]


class NeighbourEndpoint:
    """One rank's side of a launch, as far as its host goes.

    Args:
        refuse: makes the error of this rank out of a cause.
    """

    def __init__(
        self, host: Neighbours, call: Call, exposed: Exposed | None, refuse: Callable[[Cause], ExecutionError]
    ) -> None:
        self._host, self._call, self._exposed, self._refuse = host, call, exposed, refuse
        self._own = host.words[host.index[host.rank]]
        self._sent, self._received = dict[tuple[int, int], int](), dict[tuple[int, int], int]()
        self.blocked: dict[tuple[int, int, int], tuple[memoryview, int, int]] = {}
        """What was tried in vain: the word that must change, and what it was."""

    def try_send(self, peer: int, channel: int, size: int) -> Frame | None:
        """A slot of the peer, while it has room."""
        host, key = self._host, (peer, channel)
        posted = host.posted.get(key, 0)
        words, at = host.words[host.index[peer]], host.layout.credit(channel, host.index[host.rank]) // 8
        credit = words[at]
        if posted - credit >= host.depth:
            self.blocked[0, peer, channel] = (words, at, credit)
            return None
        slot = host.slot(peer, channel, host.rank, posted)
        return Frame(slot[HEADER_BYTES : HEADER_BYTES + size], slot)

    def commit(self, peer: int, channel: int, frame: Frame) -> None:
        """Hand the slot over."""
        host, key = self._host, (peer, channel)
        number = self._sent.get(key, 0)
        write_header(frame.keeper, self._call, Kind.DATA, channel, number, len(frame.payload))
        self._sent[key], posted = number + 1, host.posted.get(key, 0) + 1
        host.posted[key] = posted
        host.words[host.index[peer]][host.layout.tail(channel, host.index[host.rank]) // 8] = posted
        host.ring(peer)

    def try_recv(self, peer: int, channel: int, size: int) -> Frame | None:
        """The next message where it lies, if it has come."""
        host, key = self._host, (peer, channel)
        taken, at = host.taken.get(key, 0), host.layout.tail(channel, host.index[peer]) // 8
        tail = self._own[at]
        if tail <= taken:
            self.blocked[1, peer, channel] = (self._own, at, tail)
            return None
        slot = host.slot(host.rank, channel, peer, taken)
        self._check(slot, peer, channel, size)
        host.taken[key] = taken + 1
        return Frame(slot[HEADER_BYTES : HEADER_BYTES + size])

    def release(self, peer: int, channel: int) -> None:
        """Give the slot back."""
        host, key = self._host, (peer, channel)
        returned = host.returned.get(key, 0) + 1
        host.returned[key] = returned
        self._own[host.layout.credit(channel, host.index[peer]) // 8] = returned
        host.ring(peer)

    def _check(self, slot: Bytes, peer: int, channel: int, size: int) -> None:
        """A message is of this call, the next of its connection, and as long as it should be."""
        header, call = read_header(slot), self._call
        if header is None or (header.call.number, header.call.fingerprint) != (call.number, call.fingerprint):
            raise self._refuse(
                Cause("mismatch", peer, other_call(peer, header, self._host.rank, call), self._host.rank)
            )
        due = self._received.get((peer, channel), 0)
        if (header.size, header.message) != (size, due):
            text = (
                f"rank {peer} sent message {header.message} of {header.size} bytes on channel {channel}, "
                f"but message {due} of {size} bytes was due"
            )
            raise self._refuse(Cause("mismatch", peer, text, self._host.rank))
        self._received[peer, channel] = due + 1

    def signal(self, peer: int, channel: int) -> None:
        """Add one to the peer's counter."""
        host, key = self._host, (peer, channel)
        count = host.signalled.get(key, 0) + 1
        host.signalled[key] = count
        host.words[host.index[peer]][host.layout.signal(channel, host.index[host.rank]) // 8] = count
        host.ring(peer)

    def try_wait(self, peer: int, channel: int) -> bool:
        """Take the next signal, if it is there."""
        host, key = self._host, (peer, channel)
        waited, at = host.waited.get(key, 0), host.layout.signal(channel, host.index[peer]) // 8
        count = self._own[at]
        if count <= waited:
            self.blocked[2, peer, channel] = (self._own, at, count)
            return False
        host.waited[key] = waited + 1
        return True

    def peer_buffer(self, peer: int, buffer: Buffer) -> Bytes:
        """A buffer that is in reach: also this rank's own."""
        at = self._host.index[peer]
        start, size = ({} if self._exposed is None else self._exposed.areas[at])[buffer]
        return self._host.reach.memory(at)[start : start + size]

    def exposes(self, buffer: Buffer) -> bool:
        """Whether others reach anything in this buffer of this rank."""
        areas = {} if self._exposed is None else self._exposed.areas[self._host.index[self._host.rank]]
        return areas.get(buffer, (0, 0))[1] > 0

    def meet(self, wait: Callable[[list[Wait]], None]) -> None:
        """Before a launch with one-sided steps: all ranks of the host are in it, and have mapped what is new.

        Then nobody works on memory of an earlier launch any more. ``wait`` is ``wait_any`` of the launch.

        Raises:
            ExecutionError: there is no memory left, or what ``wait`` raises.
        """
        if self._exposed is None:
            return
        host, call, reach = self._host, self._call, self._host.reach
        new = reach.arrive(call, self._exposed.needs)
        self._together(ARRIVED, "to come to this call", wait)
        for peer in host.peers:
            other = reach.makes(host.index[peer], call)
            if other is not None:
                text = differing((peer, *other), (host.rank, call.number, call.text))
                raise self._refuse(Cause("mismatch", peer, text, host.rank))
        if new:
            for at in new:
                reach.attach(at, call)
            reach.say(MAPPED, call)
            self._together(MAPPED, "to map new memory", wait)

    def _together(self, word: int, what: str, wait: Callable[[list[Wait]], None]) -> None:
        host, number = self._host, self._call.number
        for peer in host.peers:
            host.ring(peer)
        while True:
            found = {peer: host.reach.words(host.index[peer]) for peer in host.peers}
            seen = {peer: words[word] for peer, words in found.items()}  # once: what grows meanwhile has changed
            missing = {peer: value for peer, value in seen.items() if value < number}
            if not missing:
                return
            self.blocked = {(3, peer, word): (found[peer], word, value) for peer, value in missing.items()}
            wait([Wait(-1, -1, f"for rank {peer} {what}", peer) for peer in missing])

    def changed(self) -> bool:
        """Whether any word that this rank has looked at in vain has changed."""
        return any(words[at] != value for words, at, value in self.blocked.values())

    def suspect(self, peers: Sequence[int]) -> Cause | None:
        """If one of these ranks has said that it failed, and so will not do what this rank waits for: why."""
        host = self._host
        for peer in peers:
            if peer in host.index and host.has_failed(peer) and not self.changed():
                return host.cause_of(peer) or Cause("failed", peer, f"rank {peer} failed", host.rank)
        return None

    def suspect_stalled(self, peers: Sequence[int]) -> Cause | None:
        """As ``suspect``, and look at processes, too."""
        host = self._host
        for peer in peers:
            if peer in host.index and host.has_ended(peer) and not host.has_failed(peer) and not self.changed():
                gone = f"rank {peer} is gone: its process ({host.pid(peer)}) has ended"
                return Cause("gone", peer, gone, host.rank)
        return self.suspect(peers)


class SharedBell:
    """Wakes the engine: rung by threads of this process and, as the segment's bell, by other ranks of the host."""

    def __init__(self, host: Neighbours) -> None:
        self._host = host
        self.watched: Callable[[], bool] = lambda: False
        """Whether something has changed that the engine waits for."""
        self._rung = False  # no threading.Event: a signal handler may ring while this thread waits

    def ring(self) -> None:
        """Something came from another thread."""
        self._rung = True
        self._host.ring(self._host.rank)

    def wait(self, seconds: float) -> bool:
        """Whether anything may have changed within so many seconds."""
        for look in range(_SPINS + _YIELDS):
            if self._moved():
                return True
            if look >= _SPINS:
                time.sleep(0)
        bells, until = self._host.bells, time.monotonic() + seconds
        bells.arm()
        try:
            while (left := until - time.monotonic()) > 0:
                heard = bells.heard()
                self._host.fence()
                if self._moved():
                    return True
                bells.sleep(heard, min(left, _SLICE))
                if bells.heard() != heard:
                    return True
        finally:
            bells.disarm()
        return False

    def _moved(self) -> bool:
        if self._rung:
            self._rung = False
            return True
        return self.watched()
