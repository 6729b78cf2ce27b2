"""Messages of a group over several hosts: rings between ranks of one host, gloo between hosts, matched in one place.

A receive from any rank takes the message that came first, whichever way it came.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from commlib.errors import PeerFailedError
from commlib.runtime.cause import AFTER, Cause, failure
from commlib.runtime.far import FarLine
from commlib.runtime.monitor import Monitor
from commlib.runtime.shm.near import Near
from commlib.runtime.shm.options import ShmOptions
from commlib.runtime.shm.p2p import P2P, Incoming, Request
from commlib.runtime.transport import Wait

_MARGIN = 1.0
"""Seconds before its deadline at which a wait ends (a fifth of a shorter timeout)."""
_STOPPED = 60.0
"""Seconds that a stopped process gets to go on again; 0.3 of the timeout if that is less."""


_LOOK = 0.02
"""Seconds between two looks at the others, at least."""
_SAME = 0.05
"""Seconds after the beginning of a time of waiting at which another one has begun, at least."""


def _left(rank: int) -> str:
    return f"left/{rank}"


class _Stall(threading.local):
    """Each thread's time of waiting: since when, when the others were last looked at, and who is suspected."""

    began = 0.0
    seconds = 0.0
    looked = 0.0
    suspect: tuple[str, int] | None = None

    def go_on(self, now: float, seconds: float) -> None:
        """It has lasted for so long; or another one has begun."""
        if seconds < self.seconds or now - seconds > self.began + _SAME:
            self.began, self.looked, self.suspect = now - seconds, 0.0, None
        self.seconds = seconds


class MixedWatch:
    """Why a message does not come: processes of this host, lost connections, and what the group's monitor knows.

    A cause that is found here is published to all ranks, and so ends their messages and calls.
    """

    def __init__(self, rank: int, near: Near, monitor: Monitor) -> None:
        self.rank, self.lost = rank, dict[int, str]()
        self._near, self._monitor = near, monitor
        self._stall = _Stall()

    def close(self) -> None:
        """Say, before connections close, that this rank leaves in order."""
        self._monitor.mark(_left(self.rank))
        self._near.close()

    def refuse(self) -> None:
        """Raises PeerFailedError if the group has failed."""
        cause = self._monitor.cause
        if cause is not None:
            raise PeerFailedError(
                f"rank {self.rank}: this group has failed before: {cause.text}. {AFTER}",
                rank=self.rank,
                root=cause.rank,
                cause=cause.kind,
                noticed_by=cause.noticed_by,
            )

    def on_ring_stall(self, seconds: float, peers: Sequence[int], what: str, timeout: float) -> None:
        """Nothing has moved for so long: raise if it is known why, or time is up.

        Raises:
            PeerFailedError, DeadlineError: with the root cause.
        """
        late = seconds >= timeout - min(_MARGIN, 0.2 * timeout)
        now, stall = time.monotonic(), self._stall
        stall.go_on(now, seconds)
        if not late and now < stall.looked + _LOOK:
            return
        stall.looked = now
        cause = self._monitor.cause or self._diagnose(peers, late or seconds >= min(0.3 * timeout, _STOPPED))
        if cause is None and late:
            cause = self._late(peers, seconds)
        suspect, stall.suspect = stall.suspect, None if cause is None else (cause.kind, cause.rank)
        if cause is None or (not late and suspect != stall.suspect):
            return  # what it sent before may have come meanwhile
        cause = self._monitor.report(cause)
        waits = [Wait(-1, -1, f"for rank {peer}", peer) for peer in peers]
        raise failure(self.rank, what, waits, cause)

    def _diagnose(self, peers: Sequence[int], stopped: bool) -> Cause | None:
        """The first of these ranks that fails this one; of several, those that have left in order count if all have."""
        found = [cause for peer in peers if (cause := self._judge(peer, stopped)) is not None]
        bad = [cause for cause in found if cause.kind != "absent"]
        return bad[0] if bad else found[0] if len(found) == len(peers) else None

    def _judge(self, peer: int, stopped: bool) -> Cause | None:
        if peer in self._near.peers:
            standing, why = self._near.standing(peer), "its process has ended"
        else:
            lost = self.lost.get(peer)
            why = f"its connection closed ({lost})"
            standing = "lives" if lost is None else "closed" if self._monitor.marked(_left(peer)) else "ended"
        if standing == "closed":
            return Cause("absent", peer, f"rank {peer} closed its group", self.rank)
        if standing == "ended":
            return Cause("gone", peer, f"rank {peer} is gone: {why}", self.rank)
        if standing == "stopped" and stopped:
            return Cause("stopped", peer, f"rank {peer} stopped: its process was stopped by a signal", self.rank)
        return None

    def _late(self, peers: Sequence[int], seconds: float) -> Cause:
        names = ", ".join(map(str, peers))
        text = f"the deadline has passed after {seconds:.1f} s, and rank {names} did not send or receive"
        return Cause("deadline", peers[0], text, self.rank)


class _Place:
    """What ``P2P`` needs of a session."""

    def __init__(self, ranks: int, near: Near, watch: MixedWatch, options: ShmOptions, timeout: float) -> None:
        self.rank, self.ranks, self.timeout = near.rank, ranks, timeout
        self.context, self.watch, self.options = near, watch, options


class MixedP2P(P2P):
    """Sends and receives of one rank of a group over several hosts; see ``P2P``."""

    def __init__(
        self, group: Any, ranks: int, near: Near, monitor: Monitor, options: ShmOptions, timeout: float
    ) -> None:
        """``group``: a gloo group of the same ranks; ``monitor``: of a communicator on it."""
        self._mixed_watch = MixedWatch(near.rank, near, monitor)
        super().__init__(_Place(ranks, near, self._mixed_watch, options, timeout))
        self._near, self._peers, self._open = near, list(near.peers), True
        self._served, self._turns = dict[int, int](), 0
        self._hungry = set[int]()
        """Peers from which one message may come before it is asked for: a receive from any rank has passed."""
        self._coming = dict[int, Incoming]()
        """What begins to come from each far peer; set under the lock, so that who fails finds its receive."""
        far = (peer for peer in range(ranks) if peer not in near.members)
        self._far = {peer: FarLine(group, peer, self) for peer in far}

    def close(self) -> None:
        """Requests under way end with an error; threads and connections end."""
        with self._wanted:
            self._open = False
            self._wanted.notify_all()
        super().close()
        self._mixed_watch.close()
        for line in self._far.values():
            line.close()
        self._far = {}  # lines and this refer to each other: connections go without a garbage collection

    def irecv(
        self, address: int, size: int, peer: int | None = None, tag: int = 0, kind: int = 0, keep: Any = None
    ) -> Request:
        """As ``P2P.irecv``. From any rank: looks everywhere first, so that no way is always taken before the others."""
        if peer is None:
            with self._wanted:
                self._hungry.update(self._far)
                self._expect(None)
            self.progress()
        return super().irecv(address, size, peer, tag, kind, keep)

    def _take_kept(self, source: int | None, tag: int) -> Incoming | None:
        """The senders take turns: what comes over gloo is asked for later than what lies in a ring."""
        if source is None:
            senders = {sender for sender, kept in self._kept if kept == tag}
            source = min(senders, key=lambda sender: (self._served.get(sender, 0), sender), default=None)
        message = super()._take_kept(source, tag)
        if message is not None:
            self._turns += 1
            self._served[message.source] = self._turns
        return message

    def _make_locks(self) -> None:
        super()._make_locks()
        self._wanted = threading.Condition(self._lock)

    def _give(self, peer: int, request: Request, first: np.ndarray, rest: int) -> None:
        line = self._far.get(peer)
        if line is None:
            super()._give(peer, request, first, rest)
        else:
            line.send(request, first, rest)

    def _expect(self, peer: int | None) -> None:
        lines = self._far.values() if peer is None else [self._far[peer]] if peer in self._far else []
        for line in lines:
            line.expect()
        self._wanted.notify_all()

    def _pending(self) -> Iterator[Request]:
        yield from super()._pending()
        for line in self._far.values():
            yield from line.pending()
        receives = (message.request for message in self._coming.values())
        yield from (request for request in receives if request is not None and not request.done)

    def _told(self) -> None:
        """Wake whoever waits, in whichever way."""
        self._near.wake()
        with self._news:
            self._news.notify_all()

    # What lines call, on threads of theirs

    def wants(self, peer: int) -> bool:
        """Wait until a receive is posted that this peer may serve; False: no more are."""
        with self._wanted:
            while self._open and self._failure is None:
                if peer in self._hungry or any(source in (None, peer) for source, _ in self._posted):
                    return True
                self._wanted.wait()
            return False

    def begins(self, peer: int, header: tuple[int, int, int, int]) -> tuple[Incoming, Any]:
        """A message begins to come; and what must live until it has landed, even if its receive fails before."""
        tag, size, kind, _ = header
        with self._lock:
            self._hungry.discard(peer)
            self._coming[peer] = message = self._arrive(peer, tag, size, kind)
            return message, None if message.request is None else message.request.keep

    def landed(self, message: Incoming) -> None:
        """A message is there."""
        with self._lock:
            self._coming.pop(message.source, None)
            message.got = message.size
            self._settle(message)
        self._told()

    def sent(self, request: Request) -> None:
        """A message has left."""
        with self._lock:
            if not request.done:
                request.finish()
        self._told()

    def lost(self, peer: int, why: str) -> None:
        """A connection is gone: whoever waits for that rank finds it at its next look."""
        self._mixed_watch.lost.setdefault(peer, why.split("\n")[0].split("] ", 1)[-1].split(". This is typically")[0])
