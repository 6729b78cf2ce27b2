"""P2P: tagged messages between ranks of a session, any number under way, moved forward by whichever thread waits.

A message is a header and then its bytes, streamed through the ring from sender to receiver; so it may be larger than
the ring. Receives are matched by (source, tag) in the order posted, messages in the order sent. A message that nobody
has asked for yet is kept in memory of its own.
"""

from __future__ import annotations

import ctypes
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from commlib.errors import CommlibError, ExecutionError, MismatchError, SpecError
from commlib.runtime.forks import FORKED, own
from commlib.runtime.shm.place import Place

HEADER = struct.Struct("<qQQQ")
"""tag, bytes, kind, sequence number between these two ranks."""
SMALL = 4096
"""Messages up to so many bytes travel in one piece with their header."""
_LATEST = 1e6


@dataclass(eq=False)
class Request:
    """A send or receive under way. ``source`` is the sender of a finished receive, ``error`` why it failed."""

    what: str
    peer: int | None
    tag: int
    address: int
    size: int
    kind: int
    number: int
    keep: Any = None
    done: bool = False
    source: int = -1
    error: CommlibError | None = None

    def finish(self, error: CommlibError | None = None) -> None:
        """It is done, well or not."""
        self.error, self.keep, self.done = error, None, True

    def __str__(self) -> str:
        if self.what == "send":
            return f"a send to rank {self.peer} (tag {self.tag})"
        return f"a receive from {'any rank' if self.peer is None else f'rank {self.peer}'} (tag {self.tag})"


@dataclass(eq=False)
class _Outgoing:
    """A message on its way out: pieces that are still to be written, as (address, bytes)."""

    request: Request
    pieces: deque[tuple[int, int]]
    keep: Any


@dataclass(eq=False)
class Incoming:
    """A message on its way in. ``memory`` is its own, if it has not gone straight to where a receive wants it."""

    source: int
    tag: int
    size: int
    kind: int
    number: int
    address: int = 0
    got: int = 0
    memory: Any = None
    request: Request | None = None


@dataclass(eq=False)
class _Stream:
    """What comes from one peer: a header that is partly there, or a message that is."""

    header: Any = field(default_factory=lambda: np.zeros(HEADER.size, np.uint8))
    got: int = 0
    count: int = 0
    message: Incoming | None = None


class P2P:
    """Sends and receives of one rank. Safe to use from several threads.

    ``session`` gives context, watch and time-out; calls and messages may run at the same time.
    """

    def __init__(self, session: Place) -> None:
        self.rank, self.ranks = session.rank, session.ranks
        self._context, self._watch, self._timeout = session.context, session.watch, session.timeout
        self._slice = session.options.slice_seconds
        self._make_locks()
        self._peers = [peer for peer in range(self.ranks) if peer != self.rank]
        self._out: list[deque[_Outgoing]] = [deque() for _ in range(self.ranks)]
        self._in = [_Stream() for _ in range(self.ranks)]
        self._posted: dict[tuple[int | None, int], deque[Request]] = {}
        self._kept: dict[tuple[int, int], deque[Incoming]] = {}
        self._sent, self._numbers, self._arrivals = [0] * self.ranks, 0, 0
        self._failure: CommlibError | None = None
        own(self)

    def _make_locks(self) -> None:
        self._lock, self._news, self._leading = threading.RLock(), threading.Condition(), threading.Lock()

    def disown(self) -> None:
        """See ``forks``."""
        self._make_locks()
        self._fail(ExecutionError(f"rank {self.rank}: {FORKED}", rank=self.rank))

    def isend(self, address: int, size: int, peer: int, tag: int = 0, kind: int = 0, keep: Any = None) -> Request:
        """Begin to send ``size`` bytes; done when they may be overwritten, which need not mean received.

        Args:
            kind: what must agree on both sides besides the size (of the element type, say); 0: anything.
            keep: what must live until then (the tensor).

        Raises:
            SpecError: no such peer. PeerFailedError: the group has failed before.
        """
        with self._lock:
            request = self._request("send", peer, tag, address, size, kind, keep)
            header = HEADER.pack(tag, size, kind, self._sent[peer])
            self._sent[peer] += 1
            small = size <= SMALL
            data = np.frombuffer(header + (ctypes.string_at(address, size) if small and size else b""), np.uint8)
            self._give(peer, request, data, size if not small else 0)
        return request

    def _give(self, peer: int, request: Request, first: np.ndarray, rest: int) -> None:
        """Begin to send the first piece, and then ``rest`` bytes from where the request has them."""
        pieces = deque([(int(first.ctypes.data), len(first))])
        if rest:
            pieces.append((request.address, rest))
        self._out[peer].append(_Outgoing(request, pieces, first))
        self._push(peer)

    def irecv(
        self, address: int, size: int, peer: int | None = None, tag: int = 0, kind: int = 0, keep: Any = None
    ) -> Request:
        """Begin to receive exactly ``size`` bytes from ``peer``, or (None) from any rank.

        Raises:
            SpecError: no such peer. PeerFailedError: the group has failed before.
        """
        with self._lock:
            request = self._request("receive", peer, tag, address, size, kind, keep)
            message = self._take_kept(peer, tag)
            if message is None:
                self._posted.setdefault((peer, tag), deque()).append(request)
                self._expect(peer)
            else:
                message.request = request
                self._settle(message)
        return request

    def _expect(self, peer: int | None) -> None:
        """A receive was posted that no message has come for yet."""

    def progress(self) -> bool:
        """Move everything on as far as it goes now, without waiting; whether anything moved."""
        with self._lock:
            moved = False
            if self._failure is not None:
                return False  # what was to be filled may be gone
            for peer in self._peers:
                moved = self._push(peer) or moved
                moved = self._pull(peer) or moved
        if moved:
            with self._news:
                self._news.notify_all()
        return moved

    def wait(self, request: Request, timeout: float | None = None) -> None:
        """Wait until a request is done; meanwhile all others move on, too.

        Raises:
            MismatchError: the message has another size or kind than the receive.
            DeadlineError, PeerFailedError: it did not come in time, or its peer is gone; the group has failed then.
        """
        began = time.monotonic()
        seconds = self._timeout if timeout is None else timeout
        while not request.done:
            if self._leading.acquire(blocking=False):
                try:
                    self._lead(request, began, seconds)
                finally:
                    self._leading.release()
                    with self._news:
                        self._news.notify_all()
            else:
                with self._news:
                    if not request.done:
                        self._news.wait(self._slice)
                self._look(request, began, seconds)
        if request.error is not None:
            raise request.error

    def close(self) -> None:
        """Requests under way end with an error."""
        self._fail(ExecutionError(f"rank {self.rank}: its sends and receives were closed", rank=self.rank))

    def _lead(self, request: Request, began: float, seconds: float) -> None:
        """Move messages on for all threads until this request is done."""
        while not request.done:
            if not self.progress() and not request.done:
                self._context.wait_rings(self._slice)
                self._look(request, began, seconds)
            elif not request.done and time.monotonic() > began + seconds:
                self._look(request, began, seconds)

    def _look(self, request: Request, began: float, seconds: float) -> None:
        """A slice has passed: if nothing moves now, or time is up, is there a reason to give up?

        Who follows looks into the rings, too: the message may lie there while the thread that leads has no core.
        """
        now = time.monotonic()
        if request.done or now < began + self._slice or (self.progress() and now < began + seconds) or request.done:
            return
        waited = time.monotonic() - began  # after what may take long: whoever watches tells waits by when they began
        peers = [peer for peer in range(self.ranks) if peer != self.rank] if request.peer is None else [request.peer]
        try:
            self._watch.on_ring_stall(waited, peers, str(request), min(seconds, _LATEST))
        except CommlibError as error:
            self._fail(error)
            raise

    def _fail(self, error: CommlibError) -> None:
        with self._lock:
            self._failure = error
            for request in list(self._pending()):
                request.finish(error)
            self._posted.clear()
            for queue in self._out:
                queue.clear()
        with self._news:
            self._news.notify_all()

    def _pending(self) -> Iterator[Request]:
        for queue in self._out:
            yield from (outgoing.request for outgoing in queue)
        for requests in self._posted.values():
            yield from requests
        for stream in self._in:
            if stream.message is not None and stream.message.request is not None:
                yield stream.message.request

    def _request(self, what: str, peer: int | None, tag: int, address: int, size: int, kind: int, keep: Any) -> Request:
        """Under the lock until it is queued: who fails later finishes it, too."""
        if peer is not None and (not 0 <= peer < self.ranks or peer == self.rank):
            raise SpecError(
                f"rank {self.rank}: there is no rank {peer} to {what} to or from", rank=self.rank, peer=peer
            )
        self._watch.refuse()
        if self._failure is not None:
            raise self._failure
        self._numbers += 1
        return Request(what, peer, tag, address, size, kind, self._numbers, keep)

    def _push(self, peer: int) -> bool:
        """Write as much to a peer as fits its ring."""
        moved, queue = False, self._out[peer]
        while queue:
            pieces = queue[0].pieces
            address, size = pieces[0]
            count = self._context.ring_write(peer, address, size)
            moved = moved or count > 0
            if count < size:
                pieces[0] = (address + count, size - count)
                return moved
            pieces.popleft()
            if not pieces:
                queue.popleft().request.finish()
        return moved

    def _pull(self, peer: int) -> bool:
        """Read what has come from a peer."""
        moved, stream = False, self._in[peer]
        while True:
            message = stream.message
            if message is None:
                count = self._read(peer, stream.header.ctypes.data + stream.got, HEADER.size - stream.got)
                stream.got += count
                if stream.got == HEADER.size:
                    self._begin(peer, stream)
            else:
                count = self._read(peer, message.address + message.got, message.size - message.got)
                message.got += count
                if message.got == message.size:
                    stream.message = None
                    self._settle(message)
            moved = moved or count > 0
            if not count and (stream.message is not None or stream.got < HEADER.size):
                return moved

    def _read(self, peer: int, address: int, size: int) -> int:
        return self._context.ring_read(peer, address, size) if size else 0

    def _begin(self, peer: int, stream: _Stream) -> None:
        """A header is there: find the receive that the message is for, or keep it."""
        tag, size, kind, count = HEADER.unpack(stream.header.tobytes())
        stream.got = 0
        if count != stream.count:
            raise ExecutionError(
                f"rank {self.rank}: message {count} came from rank {peer}, not {stream.count}: the ring is damaged",
                rank=self.rank,
                peer=peer,
            )
        stream.count += 1
        message = stream.message = self._arrive(peer, tag, size, kind)
        if not size:
            stream.message = None
            self._settle(message)

    def _arrive(self, peer: int, tag: int, size: int, kind: int) -> Incoming:
        """A message begins to come: find its receive, and with it the place for its bytes."""
        self._arrivals += 1
        message = Incoming(peer, tag, size, kind, self._arrivals)
        message.request = self._take_posted(peer, tag)
        if message.request is not None and not self._differs(message, message.request):
            message.address = message.request.address
        else:
            message.memory = np.empty(size, np.uint8)
            message.address = int(message.memory.ctypes.data)
        if message.request is None:
            self._kept.setdefault((peer, tag), deque()).append(message)
        return message

    def _settle(self, message: Incoming) -> None:
        """A message has come whole, or has found its receive: if both, it is done."""
        request = message.request
        if request is None or request.done or message.got < message.size:
            return
        differs = self._differs(message, request)
        if not differs and message.memory is not None and message.size:
            ctypes.memmove(request.address, message.address, message.size)
        request.source = message.source
        request.finish(differs)

    def _differs(self, message: Incoming, request: Request) -> MismatchError | None:
        kinds = message.kind != request.kind and message.kind and request.kind
        if message.size == request.size and not kinds:
            return None
        what = "of another element type" if message.size == request.size else f"of {message.size} bytes"
        return MismatchError(
            f"rank {self.rank}: rank {message.source} sent a message {what} (tag {message.tag}), "
            f"but {request.size} bytes are received",
            rank=self.rank,
            peer=message.source,
            tag=message.tag,
        )

    def _take_posted(self, source: int, tag: int) -> Request | None:
        """The first receive posted that takes this message."""
        keys = [key for key in ((source, tag), (None, tag)) if self._posted.get(key)]
        if not keys:
            return None
        key = min(keys, key=lambda key: self._posted[key][0].number)
        found: Request = _pop(self._posted, key)
        return found

    def _take_kept(self, source: int | None, tag: int) -> Incoming | None:
        """The first message kept that a receive takes."""
        keys = [key for key in self._kept if key[1] == tag and source in (None, key[0])]
        if not keys:
            return None
        found: Incoming = _pop(self._kept, min(keys, key=lambda key: self._kept[key][0].number))
        return found


def _pop(queues: dict[Any, deque[Any]], key: Any) -> Any:
    """The first of a queue, which is removed when it is empty."""
    queue = queues[key]
    first = queue.popleft()
    if not queue:
        del queues[key]
    return first
