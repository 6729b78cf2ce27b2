"""The watch of one rank: told that nothing moves, it waits on, or ends the call with the root cause and tells all.

It costs nothing while calls go well: the context calls it only when a wait has lasted for a slice (some 20 ms).
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from commlib.errors import ExecutionError, MismatchError, PeerFailedError
from commlib.runtime.cause import AFTER, Cause, failure
from commlib.runtime.forks import FORKED
from commlib.runtime.liveness import Condition, process_condition
from commlib.runtime.shm.control import WAITS
from commlib.runtime.shm.diagnosis import Patience, Sight, Situation, diagnose, first_failure, mismatch, undecided
from commlib.runtime.shm.views import (
    Said,
    View,
    alarmed,
    raise_alarm,
    read_view,
    write_failure,
    write_stall,
    write_state,
    write_trouble,
)
from commlib.runtime.transport import Wait

Waits = Sequence[tuple[int, int, int, int, int]]
"""What a rank's threadblocks wait for: threadblock, step, kind (a ``WAITS`` index), peer, channel; -1: none."""

MARGIN = 1.0
"""Seconds before its deadline at which a rank judges who is late (a fifth of a shorter timeout), so that the error
comes before the deadline."""
_SAME = 0.05
"""Seconds after the beginning of a time of waiting outside of calls at which another one has begun, at least."""
_BEFORE = (2, 1)
"""Calls before this rank's, counted back from it, that may differ unseen so far: in those before them all ranks were
compared."""
STOPPED = 60.0
"""Seconds that a stopped process gets to go on again; 0.3 of the timeout if that is less."""
_LOOK = (0.02, 0.5)
"""Seconds between two looks at the others: at first, and when nothing has moved for long."""
_RECENT = 0.3
_DECIDE = 0.3
"""Seconds that ranks which have yet to come get to show who is at odds with the others, two or more of one mind."""
_THREADS = 64
"""Threads that wait outside of calls and are remembered; more only look twice as often."""
_PHRASES = {
    "signal": "for a signal of rank {peer} on channel {channel}",
    "message": "for a message of rank {peer} on channel {channel}",
    "room": "for room to send to rank {peer} on channel {channel}",
    "guard": "for rank {peer} to finish the call before the last",
    "announcement": "for rank {peer} to come to this call",
}


@dataclass
class _Stall:
    """One time of waiting: when its call began, when it was last told of, when the others were last looked at, and
    whom this rank suspects of what, since when."""

    call: int
    began: float
    seconds: float = 0.0
    told: float = 0.0
    looked: float = 0.0
    witnessed: float = 0.0
    suspects: dict[tuple[str, int], float] = field(default_factory=dict)


@dataclass(frozen=True)
class _During:
    """What the rank does: a call, or (None) something outside of calls; in words, how long it may take, and the calls
    before it."""

    call: Said | None
    text: str
    timeout: float
    before: tuple[Said, ...] = ()


class Watch:
    """Watches over the calls of one rank of a group.

    Args:
        rank: this rank.
        controls: the control area of each rank, this one's too, up to the end of the board.
        ring: wakes the rank that is given, if it sleeps.
        timeout: seconds that a call may take; set ``timeout`` before a call that may take another time. The time of
            a call counts from the first wait of a slice on, so that calls that do not wait need no clock.
        clock: CLOCK_MONOTONIC in seconds.
        condition: what has become of a process, given its id and start time.
    """

    def __init__(
        self,
        rank: int,
        controls: Sequence[memoryview],
        ring: Callable[[int], None],
        timeout: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        condition: Callable[[int, int], Condition] = process_condition,
    ) -> None:
        self.rank, self.timeout = rank, timeout
        self.cause: Cause | None = None
        self.on_error: Callable[[BaseException], None] = lambda _: None
        """Called with the first error, before it is raised: for the flight record."""
        self._controls, self._own = controls, controls[rank]
        self._ring, self._clock, self._condition = ring, clock, condition
        self._publishing = threading.RLock()  # a signal handler may end the group in here
        self._process = os.getpid()
        self._stall: _Stall | None = None
        self._outside: dict[int, _Stall] = {}
        _watches[id(self)] = self

    def on_stall(self, seconds: float, waits: Waits) -> None:
        """Nothing has moved in the call for ``seconds``. Without ``waits``: the call has not begun, refuse it if the
        group has failed.

        Raises:
            PeerFailedError: a rank that this one depends on is gone, stopped, has failed, or did not come.
            MismatchError: ranks make different calls.
            DeadlineError: time is up, and no rank is known to be at fault.
        """
        try:
            self._refuse_forks()
            if not waits:
                self.refuse()
                return
            during = self._call()
            if self.cause is not None:  # another thread has met it: in a message, or in closing the group
                self._fail(self.cause, waits, during)
            self._stall = self._continued(self._stall, 0 if during.call is None else during.call.call, seconds)
            self._judge(self._stall, waits, during)
        except BaseException as error:  # also KeyboardInterrupt, which comes to a rank that waits in here
            self.report(error)
            raise

    def on_ring_stall(self, seconds: float, peers: Sequence[int], what: str, timeout: float) -> None:
        """Outside of calls this thread has waited for ``seconds`` in ``what`` ("a receive from rank 1 (tag 5)").

        Raises:
            ExecutionError: as ``on_stall``.
        """
        try:
            self._refuse_forks()
            other = WAITS.index("other")
            stall = self._continued(self._outside.get(threading.get_ident()), 0, seconds)
            if len(self._outside) > _THREADS:
                self._outside.clear()
            self._outside[threading.get_ident()] = stall
            self._judge(stall, [(-1, -1, other, peer, -1) for peer in peers], _During(None, what, timeout))
        except BaseException as error:
            self.report(error)
            raise

    def on_mismatch(self, peer: int) -> NoReturn:
        """``peer`` makes another call under the number of this rank's.

        Raises:
            MismatchError: always; or PeerFailedError with the cause that another rank found first.
        """
        during = self._call()
        mine = Situation(self.rank, during.call, (peer,), during.before)
        for _ in range(int(_DECIDE / _LOOK[0])):
            if not undecided(mine, self._sights()):
                break
            time.sleep(_LOOK[0])
        cause = mismatch(mine, peer, self._sights())
        self._fail(cause, [(-1, -1, WAITS.index("other"), peer, -1)], during)

    def refuse(self) -> None:
        """At the start of a call.

        Raises:
            PeerFailedError: the group has failed before; MismatchError: because ranks made different calls.
            ExecutionError: this process is a fork of the one that opened the group.
        """
        self._refuse_forks()
        if not alarmed(self._own):
            return
        found = first_failure(read_view(control) for control in self._controls)
        unknown = Cause("failed", self.rank, "a rank has failed", self.rank)
        cause = self.cause or (unknown if found is None else found.cause)
        self._publish(cause)
        number = read_view(self._own).entered + 1
        kind = MismatchError if cause.kind == "mismatch" else PeerFailedError
        raise kind(
            f"rank {self.rank}: this group has failed before call {number}: {cause.text}. {AFTER}",
            rank=self.rank,
            call=number,
            collective=None,
            root=cause.rank,
            cause=cause.kind,
            noticed_by=cause.noticed_by,
        )

    def _refuse_forks(self) -> None:
        if os.getpid() != self._process:
            raise ExecutionError(f"rank {self.rank}: {FORKED}", rank=self.rank)

    def report(self, error: BaseException) -> None:
        """This rank has ended a call with an error: publish it, unless the watch itself raised it."""
        if self.cause is None:
            text = str(error) or type(error).__name__
            self._publish(Cause("failed", self.rank, f"rank {self.rank} failed: {text}", self.rank))
            self.on_error(error)

    def publish(self, cause: Cause) -> None:
        """The group has failed in a way that the watch did not find: tell all ranks why."""
        self._publish(cause)

    def close(self) -> None:
        """Say that this rank makes no more calls."""
        if read_view(self._own).state == "running":
            write_state(self._own, "closed")

    def _call(self) -> _During:
        """The call that this rank is in, as its board says."""
        view = read_view(self._own)
        said = view.said(view.entered) or Said(view.entered, 0, "")
        before = tuple(each for back in _BEFORE if (each := view.said(view.entered - back)) is not None)
        return _During(said, f"call {said.call} ({said.text})", self.timeout, before)

    def _continued(self, stall: _Stall | None, call: int, seconds: float) -> _Stall:
        """The same time of waiting, or a new one."""
        began = self._clock() - seconds
        if stall is None or stall.call != call:
            return _Stall(call, began, seconds)
        if call == 0 and (seconds < stall.seconds or began > stall.began + _SAME):
            return _Stall(call, began, seconds)
        if seconds < stall.seconds or began > stall.told:
            return _Stall(call, stall.began, seconds)
        stall.seconds = seconds
        return stall

    def _judge(self, stall: _Stall, waits: Waits, during: _During) -> None:
        """Say that nothing moves; look at the others if it is time to, and end the call if the cause is known."""
        stall.told = now = self._clock()
        peers = tuple(dict.fromkeys(wait[3] for wait in waits if wait[3] >= 0))
        write_stall(self._own, int(now * 1e9), peers, during.call is None)
        late = now >= stall.began + during.timeout - min(MARGIN, 0.2 * during.timeout)
        if not late and now < stall.looked + self._pause(stall):
            return
        recent = int((min(stall.looked or now, now - _RECENT)) * 1e9)
        stall.witnessed += min(now - (stall.looked or now), 2 * _LOOK[1])
        stall.looked = now
        patience = Patience(stall.witnessed >= min(0.3 * during.timeout, STOPPED), late, recent)
        mine, sights = Situation(self.rank, during.call, peers, during.before), self._sights()
        cause = diagnose(mine, sights, patience)
        if cause is not None and cause.kind == "mismatch" and stall.seconds < _DECIDE and undecided(mine, sights):
            return
        if cause is None or not (late or cause.kind == "mismatch"):
            cause = self._certain(cause, stall, mine, sights, patience)
        if cause is not None:
            self._fail(cause, waits, during)

    def _certain(
        self, cause: Cause | None, stall: _Stall, mine: Situation, sights: dict[int, Sight], patience: Patience
    ) -> Cause | None:
        """What is found again: by this rank, and with those only between it and the root that have looked since it was
        first suspected, too. What another rank has noticed of one that this waits for itself is certain at once."""
        before, stall.suspects = stall.suspects, {}
        if cause is None:
            return None
        now = self._clock()
        found = {at: diagnose(mine, sights, replace(patience, since=int(at * 1e9))) for at in {now, *before.values()}}
        for each in (cause, *found.values()):
            if each is not None:
                stall.suspects[_who(each)] = before.get(_who(each), now)
        again = (each for suspect, at in before.items() if (each := found[at]) is not None and _who(each) == suspect)
        told = found[now] if (each := found[now]) is not None and each.noticed_by != self.rank else None
        return next(again, told)

    def _pause(self, stall: _Stall) -> float:
        """Seconds until the next look: none while there is a suspect; a look takes some 20 us a rank."""
        low, high = _LOOK
        busy = max(1.0, len(self._controls) / 8)
        return 0.0 if stall.suspects else min(high, max(low, stall.seconds / 10)) * busy

    def _sights(self) -> dict[int, Sight]:
        views = ((rank, read_view(control)) for rank, control in enumerate(self._controls) if rank != self.rank)
        return {rank: Sight(view, self._look_up(view)) for rank, view in views}

    def _look_up(self, view: View) -> Condition:
        return self._condition(view.pid, view.start) if view.pid and view.state == "running" else "lives"

    def waits(self) -> str:
        """What this rank waits for now, in words; of several waits one. Empty if it does not wait."""
        where = read_view(self._own).where
        if not where.kind:
            return ""
        found = list(described([(where.threadblock, where.step, where.kind, where.peer, where.channel)]))
        place = f" (threadblock {where.threadblock} step {where.step})" if where.threadblock >= 0 else ""
        return found[0].what + place

    def _fail(self, cause: Cause, waits: Waits, during: _During) -> NoReturn:
        self._publish(cause)
        call = None if during.call is None else during.call.call
        collective = None if during.call is None else during.call.text.split(" ", 1)[0]
        error = failure(self.rank, during.text, list(described(waits)), cause, call=call, collective=collective)
        self.on_error(error)
        raise error

    def _publish(self, cause: Cause) -> None:
        if os.getpid() != self._process:
            return  # a fork has no say
        with self._publishing:
            if self.cause is not None:
                return
            self.cause = cause
            write_failure(self._own, cause, read_view(self._own).entered)
        for rank, control in enumerate(self._controls):
            raise_alarm(control)
            if rank != self.rank:
                self._ring(rank)
        for reference in _watches.valuerefs():  # a copy: another thread or a signal handler may make one meanwhile
            watch = reference()
            if watch is not None and watch is not self:
                watch._hear(self, cause)

    def _hear(self, other: Watch, cause: Cause) -> None:
        """Another group of this process has failed; should this one then end or stay away, the others know why."""
        ours = self._process == os.getpid()  # not what a fork inherited
        if not ours or other._controls is self._controls or read_view(self._own).state != "running":
            return
        said = f"{cause.text} (rank {other.rank} of {len(other._controls)} was in that group)"
        write_trouble(self._own, Cause(cause.kind, cause.rank, said, cause.noticed_by), read_view(self._own).entered)


_watches: weakref.WeakValueDictionary[int, Watch] = weakref.WeakValueDictionary()


def _who(cause: Cause) -> tuple[str, int]:
    return cause.kind, cause.rank


def described(waits: Waits) -> Iterator[Wait]:
    """Waits with words for what is awaited; a signal that is no step's is an announcement (see ``table_form``)."""
    for threadblock, step, kind, peer, channel in waits:
        name = "announcement" if WAITS[kind] == "signal" and threadblock < 0 else WAITS[kind]
        phrase = _PHRASES.get(name, "for rank {peer}").format(peer=peer, channel=channel)
        yield Wait(threadblock, step, phrase, None if peer < 0 else peer, None if channel < 0 else channel)
