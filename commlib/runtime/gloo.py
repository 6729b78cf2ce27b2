"""The gloo transport: messages over the point-to-point calls of a ``torch.distributed`` gloo group.

Three facts of gloo shape it. A receive's Work is not completed by polling, only by ``wait``; and a ``wait`` that times
out closes the connection for good. So there is one receiver thread per peer, which waits with a long deadline and
sorts what comes into one queue per channel, and a launch receives exactly the frames that its plan foretells: no
receive is left over between launches. A sender has credit for ``fifo_depth`` messages per connection beyond those
that it was told were taken, and the receiver tells it only if the launch has more messages than that.

And a message longer than the receive that it meets ends the process. So the first frame to each peer is of at most
``FIRST_FRAME`` bytes, a hello if the first message is longer, and only when it has shown that the peer is in the same
call does a rank post larger receives: gloo parks what no receive waits for. Within one call every frame is foretold.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from commlib.errors import ExecutionError
from commlib.runtime.cause import Cause, failure, loads_cause
from commlib.runtime.credit import Buffer, Incoming, Outgoing, Pool, Sent
from commlib.runtime.monitor import Monitor
from commlib.runtime.plan import RankPlan
from commlib.runtime.stall import Patience
from commlib.runtime.transport import Bell, Frame, QueueBell, Wait
from commlib.runtime.wire import HEADER_BYTES, Call, Kind, other_call, read_header, write_header

POSTED = 2
"""Receives posted ahead per peer: the next message then travels while this one is sorted."""
FIRST_FRAME = 4096
"""The size of the receive for a peer's first frame in a call, and the least of the others."""
NEVER_SENT = 1 << 29
"""A bit of the tag that no message has."""
JOIN = 0.5
"""Seconds to wait for a thread that was told to end."""
GIVE_UP = 2.0
"""Seconds after the launch's deadline at which a receiver thread gives up (and gloo closes the connection)."""


class GlooTransport:
    """The transport of one communicator: its tag on the group, its receiver threads and its frames."""

    def __init__(self, group: Any, tag: int, fifo_depth: int, monitor: Monitor) -> None:
        self.group, self.tag, self.fifo_depth, self.monitor = group, tag, fifo_depth, monitor
        self.rank: int = group.rank()
        self._receivers: dict[int, Receiver] = {}
        self._pools: dict[int, Pool] = {}

    def open(
        self, call: Call, plan: RankPlan, itemsize: int, deadline: float, bell: Bell | None = None
    ) -> GlooEndpoint:
        """Begin a launch: post its receives. ``bell``: what the engine waits on, if it waits for more than this."""
        needed = max(FIRST_FRAME, HEADER_BYTES + plan.message_elements * itemsize)
        return GlooEndpoint(self, call, plan, self.pool(1 << (needed - 1).bit_length()), deadline, bell or QueueBell())

    def pool(self, size: int) -> Pool:
        """The frames of a size."""
        return self._pools.setdefault(size, Pool(size))

    def send(self, peer: int, buffer: Buffer, size: int) -> Any:
        """Begin to send the first ``size`` bytes of a frame."""
        return self.group.send([buffer.tensor[:size]], peer, self.tag)

    def receive(self, peer: int, buffer: Buffer) -> Any:
        """Begin to receive a frame of any size up to the buffer's."""
        return self.group.recv([buffer.tensor], peer, self.tag)

    def serve(self, peer: int, job: Callable[[], None]) -> None:
        """Run a job on the peer's thread, after those before it."""
        if peer not in self._receivers:
            self._receivers[peer] = Receiver(peer)
        self._receivers[peer].waits = True
        self._receivers[peer].jobs.put(job)

    def served(self, peer: int) -> None:
        """The job on the peer's thread waits for gloo no more."""
        self._receivers[peer].waits = False

    def close(self) -> None:
        """End the threads. One that still waits (after a failure) is freed by closing gloo's connection, which others
        use, too: not so one that has merely had no core."""
        for receiver in self._receivers.values():
            receiver.jobs.put(None)
        for peer, receiver in self._receivers.items():
            receiver.join(JOIN)
            if receiver.is_alive():
                if receiver.waits:
                    self._cut(peer)
                receiver.join(JOIN)

    def _cut(self, peer: int) -> None:
        """Close the connection to a peer: gloo does it when a wait times out, and has no other way."""
        with contextlib.suppress(RuntimeError):
            work = self.group.recv([torch.empty(1, dtype=torch.uint8)], peer, self.tag | NEVER_SENT)
            work.wait(timedelta(milliseconds=1))


class Receiver(threading.Thread):
    """The thread of one peer: it does its jobs one after the other."""

    def __init__(self, peer: int) -> None:
        super().__init__(name=f"commlib-peer-{peer}", daemon=True)
        self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.waits = False
        """Whether a job may wait for gloo."""
        self.start()

    def run(self) -> None:
        """Work until told to end."""
        while (job := self.jobs.get()) is not None:
            job()


class GlooEndpoint:
    """One rank's side of one launch. The engine's thread calls everything but ``_receive_all`` and what it calls."""

    def __init__(
        self, transport: GlooTransport, call: Call, plan: RankPlan, pool: Pool, deadline: float, bell: Bell
    ) -> None:
        self.cause: Cause | None = None
        self.suspect: Callable[[tuple[int, ...]], Cause | None] = lambda _: None
        """Asked before the monitor why ranks that are waited for do not go on."""
        self._transport, self._call, self._pool, self._deadline = transport, call, pool, deadline
        self._rank, self._monitor = transport.rank, transport.monitor
        self._out = [Outgoing(link, transport.fifo_depth) for link in plan.sends]
        self._in = [Incoming(link, transport.fifo_depth) for link in plan.receives]
        self._notes: dict[int, list[Sent]] = {}
        self._greeted: set[int] = set()
        self._bell = bell
        self.ring = bell.ring
        """Wakes the engine's thread; any thread may call this, and a signal handler."""
        self._trouble: Cause | None = None
        self._patience = Patience(self._monitor, self._rank, deadline)
        self._by_channel = {(link.link.peer, link.link.channel): link for link in self._in}
        self._by_credit = {(link.link.peer, link.link.channel): link for link in self._out}
        self._flush: dict[int, queue.SimpleQueue[list[Sent]]] = {}
        self._unfinished: set[int] = set()
        for peer, frames in self._foretell().items():
            self._unfinished.add(peer)
            self._flush[peer] = queue.SimpleQueue()
            transport.serve(peer, lambda peer=peer, frames=frames: self._attend(peer, frames))  # type: ignore[misc]

    def _foretell(self) -> dict[int, int]:
        """How many frames come from each peer that this launch has to do with."""
        frames: dict[int, int] = {}
        for incoming in self._in:
            frames[incoming.link.peer] = frames.get(incoming.link.peer, 0) + incoming.link.messages
        for outgoing in self._out:
            frames[outgoing.link.peer] = frames.get(outgoing.link.peer, 0) + outgoing.credit.frames
        return frames

    # The engine's side

    def try_send(self, link: int, size: int) -> Frame | None:
        """A frame, while there is credit."""
        out = self._out[link]
        if not out.has_room:
            return None
        self._reap(out)
        buffer = self._pool.take()
        return Frame(buffer.array[HEADER_BYTES : HEADER_BYTES + size], buffer)

    def commit(self, link: int, frame: Frame) -> None:
        """Send it."""
        out = self._out[link]
        sent = self._send(
            out.link.peer, self._pool, frame.keeper, Kind.DATA, out.link.channel, out.count, len(frame.payload)
        )
        out.count += 1
        if sent is not None:
            out.sent.append(sent)

    def try_recv(self, link: int, size: int) -> Frame | None:
        """The next message, if it has come."""
        incoming = self._in[link]
        if not incoming.inbox:
            return None
        header, buffer = incoming.inbox.popleft()
        if header.size != size or header.message != incoming.taken:
            self._differ(incoming.link.peer, f"message {header.message} of {header.size} bytes", size, incoming)
        incoming.taken += 1
        credit = incoming.credit
        if incoming.returned < credit.frames and incoming.taken == (incoming.returned + 1) * credit.batch:
            self._return_credit(incoming)
        return Frame(buffer.array[HEADER_BYTES : HEADER_BYTES + size], buffer)

    def release(self, _link: int, frame: Frame) -> None:
        """Give the frame back to the pool."""
        self._give(frame.keeper)

    def wait_any(self, deadline: float, waits: list[Wait]) -> None:
        """Wait for news from a peer's thread; when none comes for a while, ask the monitor."""
        while (trouble := self._trouble or self._monitor.interrupted) is None:
            if not self._bell.wait(self._patience.stalled_after):
                self._stall(deadline, waits)
                continue
            self._monitor.moved()
            if self._trouble is None and self._monitor.interrupted is None:
                return
        raise self.failure(waits, trouble)

    def finish(self, deadline: float) -> Cause | None:
        """All steps are done: wait until the peers have what they were sent. What went wrong, if anything did."""
        for peer, flush in self._flush.items():
            links = [sent for out in self._out if out.link.peer == peer for sent in out.sent]
            flush.put(links + self._notes.get(peer, []))
        while self._unfinished and (self._trouble or self._monitor.interrupted) is None:
            if not self._bell.wait(self._patience.stalled_after):
                self._ask(tuple(self._unfinished), deadline)
        trouble = self._trouble or self._monitor.interrupted
        return None if trouble is None else self._monitor.report(trouble)

    def abort(self, cause: Cause) -> None:
        """Tell the peers that expect something of this rank why nothing more will come, and let the threads go."""
        text = cause.dumps().encode()[: FIRST_FRAME - HEADER_BYTES]
        peers = {out.link.peer for out in self._out if out.count < out.link.messages}
        peers |= {link.link.peer for link in self._in if link.returned < link.credit.frames}
        for peer in peers - {cause.rank}:
            buffer = self._pool.take()
            buffer.array[HEADER_BYTES : HEADER_BYTES + len(text)] = memoryview(text)
            self._send(peer, self._pool, buffer, Kind.ABORT, 0, 0, len(text))
        for flush in self._flush.values():
            flush.put([])

    def failure(self, waits: list[Wait], trouble: Cause) -> ExecutionError:
        """The error of this rank, once the root cause is agreed on."""
        self.cause = self._monitor.report(trouble)
        return failure(self._rank, f"call {self._call.number} ({self._call.text})", waits, self.cause)

    def _stall(self, deadline: float, waits: list[Wait]) -> None:
        peers = tuple(sorted({wait.peer for wait in waits if wait.peer is not None}))
        self._ask(peers, deadline)

    def _ask(self, waits_for: tuple[int, ...], deadline: float) -> None:
        """Ask why nothing moves; a little before the deadline, time is up."""
        found = self.suspect(waits_for) or self._patience.ask(waits_for, deadline)
        if found is not None:  # a peer's thread may have found one meanwhile
            self._trouble = self._trouble or found

    def _reap(self, out: Outgoing) -> None:
        """Use the memory of messages again that the receiver said it took: to wait for those takes no time."""
        while out.sent and out.reaped < out.granted * out.credit.batch:
            out.sent.popleft().finish(self._remaining())
            out.reaped += 1

    def _give(self, buffer: Buffer) -> None:
        self._transport.pool(len(buffer.array)).give(buffer)

    def _return_credit(self, incoming: Incoming) -> None:
        pool, link = self._transport.pool(HEADER_BYTES), incoming.link
        sent = self._send(link.peer, pool, pool.take(), Kind.CREDIT, link.channel, incoming.returned, 0)
        incoming.returned += 1
        if sent is not None:
            self._note(link.peer, sent)

    def _send(
        self, peer: int, pool: Pool, buffer: Buffer, kind: Kind, channel: int, message: int, size: int
    ) -> Sent | None:
        write_header(buffer.array, self._call, kind, channel, message, size)
        try:
            self._greet(peer, HEADER_BYTES + size)
            return Sent(self._transport.send(peer, buffer, HEADER_BYTES + size), buffer, pool)
        except RuntimeError as error:
            self._fail(_gone(peer, self._rank, error))
            return None

    def _greet(self, peer: int, size: int) -> None:
        """Before a first frame that is too long for the peer's first receive: a hello."""
        if peer not in self._greeted and size > FIRST_FRAME:
            pool = self._transport.pool(HEADER_BYTES)
            hello = pool.take()
            write_header(hello.array, self._call, Kind.HELLO, 0, 0, 0)
            self._note(peer, Sent(self._transport.send(peer, hello, HEADER_BYTES), hello, pool))
        self._greeted.add(peer)

    def _note(self, peer: int, sent: Sent) -> None:
        self._notes.setdefault(peer, []).append(sent)

    def _differ(self, peer: int, sent: str, size: int, incoming: Incoming) -> None:
        text = (
            f"rank {peer} sent {sent} on channel {incoming.link.channel}, "
            f"but message {incoming.taken} of {size} bytes was due"
        )
        raise self.failure([], Cause("mismatch", peer, text, self._rank))

    # The peers' threads

    def _attend(self, peer: int, frames: int) -> None:
        """A peer's thread: receive the foretold frames, then see to it that what was sent has left."""
        try:
            if self._receive_all(peer, frames):
                for sent in self._flush[peer].get():
                    sent.finish(self._remaining())
                self._transport.served(peer)
                self._unfinished.discard(peer)
                self._bell.ring()
        except RuntimeError as error:
            self._fail(_gone(peer, self._rank, error))
        except ExecutionError as error:
            self._fail(Cause("mismatch", peer, error.message, self._rank))

    def _receive_all(self, peer: int, frames: int) -> bool:
        """Whether all frames came: first a small one alone, then, the peer being in this call, ``POSTED`` at a time."""
        posted: deque[tuple[Any, Buffer]] = deque()
        pool, ahead, left = self._transport.pool(FIRST_FRAME), 1, frames
        while left:
            while len(posted) < min(ahead, left):
                buffer = pool.take()
                posted.append((self._transport.receive(peer, buffer), buffer))
            work, buffer = posted.popleft()
            work.wait(self._remaining())
            kind = self._sort(peer, buffer)
            if kind is None:
                return False
            left -= kind is not Kind.HELLO
            pool, ahead = self._pool, POSTED
        return True

    def _sort(self, peer: int, buffer: Buffer) -> Kind | None:
        """Put a received frame where it belongs; None if the launch has failed by it."""
        header = read_header(buffer.array)
        if header is not None and header.kind is Kind.ABORT:
            payload = buffer.array[HEADER_BYTES : HEADER_BYTES + header.size].tobytes()
            self._fail(_told(peer, payload, self._rank))
            return None
        if header is None or (header.call.number, header.call.fingerprint) != (
            self._call.number,
            self._call.fingerprint,
        ):
            self._fail(Cause("mismatch", peer, other_call(peer, header, self._rank, self._call), self._rank))
            return None
        if header.kind is Kind.CREDIT:
            self._by_credit[peer, header.channel].granted += 1
            self._give(buffer)
        elif header.kind is Kind.HELLO:
            self._give(buffer)
        else:
            self._by_channel[peer, header.channel].inbox.append((header, buffer))
        self._bell.ring()
        return header.kind

    def _remaining(self) -> timedelta:
        return timedelta(seconds=max(0.1, self._deadline + GIVE_UP - time.monotonic()))

    def _fail(self, cause: Cause) -> None:
        self._trouble = self._trouble or cause
        self._bell.ring()


def _gone(peer: int, rank: int, error: RuntimeError) -> Cause:
    detail = str(error).split("\n")[0].split("] ", 1)[-1].split(". This is typically")[0]
    return Cause("gone", peer, f"rank {peer} is gone: its connection closed ({detail})", rank)


def _told(peer: int, payload: bytes, rank: int) -> Cause:
    try:
        return loads_cause(payload.decode())
    except (json.JSONDecodeError, KeyError):
        return Cause("failed", peer, f"rank {peer} failed", rank)
