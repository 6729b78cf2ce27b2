"""The monitor: a thread of each rank that shows signs of life in the group's store, and tells who is to blame.

While all goes well it sets one key and looks for one a beat. Only a rank that is stuck reads the others' keys. The
store belongs to someone (the launcher, torchrun's agent, rank 0); should it be gone or not answer, the monitor knows
nothing, and a stuck rank ends by a closed connection, by word of a peer, or at its deadline.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from commlib.runtime.cause import Cause, State, Status, loads_cause, loads_status
from commlib.runtime.diagnosis import Patience, Sighting, diagnose
from commlib.runtime.liveness import condition, this_process
from commlib.runtime.transport import QueueBell
from commlib.runtime.wire import Call

STALLED_AFTER = 0.2
"""Seconds without progress after which a rank counts as stuck and begins to ask; less if the timeout is short."""


BEAT = 0.5
"""Seconds between signs of life; less if the timeout is short."""


def beat_for(timeout: float) -> float:
    """Seconds between signs of life for calls that may take ``timeout`` seconds."""
    return min(BEAT, timeout / 10)


_LOOK = 0.001
"""Seconds between looks whether a cause has been published."""
JOIN = 1.0
"""Seconds to wait for the thread to end; one inside a store that does not answer is left behind."""


class Store(Protocol):
    """What the monitor uses of ``torch.distributed.Store``."""

    def set(self, key: str, value: str, /) -> None:
        """Set a key."""
        ...

    def get(self, key: str, /) -> bytes:
        """The value of a key that is set."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Whether all these keys are set."""
        ...

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        """Set a key unless it is set; its value then."""
        ...


@dataclass
class Monitor:
    """Signs of life every ``beat`` seconds; after ``grace`` without them a rank's process is looked at.

    ``host`` is the rank that hosts the store, if a rank does: once it is gone the store is not touched again.
    """

    store: Store | None
    rank: int
    ranks: int
    beat: float = BEAT
    grace: float = 9.0
    far: float = 21.0
    host: int | None = None

    def __post_init__(self) -> None:
        self._status = Status(process=this_process())
        self._beats = 0
        self._stuck = False
        self._late = False
        self._cause: Cause | None = None
        self._own: Cause | None = None
        self.interrupted: Cause | None = None
        """Why the call that runs is to end, whatever it waits for."""
        self.on_interrupt: Callable[[], None] | None = None
        """Wakes the thread whose call is interrupted; called from any thread, or from a signal handler within it."""
        self._known = False
        self._bell = QueueBell()
        self._closed = False
        self._mute = False
        self._heard: dict[int, _Heard] = {}
        self._host_process = ""
        self._answered = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="commlib-monitor", daemon=True)
        if self.store is not None:
            self._thread.start()

    @property
    def cause(self) -> Cause | None:
        """The root cause that some rank published, as far as this rank knows."""
        return self._cause

    def enter(self, call: Call, timeout: float) -> None:
        """This rank begins a call."""
        self.beat = beat_for(timeout)
        self.grace, self.far = max(0.3 * timeout, 3 * self.beat), 0.7 * timeout
        process = self._status.process
        self._status = Status(0, call.number, "running", (), call.fingerprint.hex(), call.text, process)

    def leave(self) -> None:
        """This rank has finished its call."""
        self._stuck = self._late = False
        self._say("idle")

    def _say(self, state: State, waits_for: tuple[int, ...] = ()) -> None:
        self._status = replace(self._status, state=state, waits_for=waits_for)

    def stalled(self, waits_for: tuple[int, ...], late: bool) -> Cause | None:
        """This rank makes no progress: say whom it waits for, and learn why if that is known."""
        self._say("running", waits_for)
        if not self._stuck:
            self._heard = {}
            self._answered = time.monotonic()
        if not self._stuck or late != self._late:
            self._stuck, self._late = True, late
            self._bell.ring()
        return self._cause or self._store_silent()

    def _store_silent(self) -> Cause | None:
        """A store that does not answer: the process that hosts it is stopped."""
        silent = time.monotonic() - self._answered
        if self.store is None or not self._thread.is_alive() or silent < self.grace:
            return None
        if silent < self.far and condition(self._host_process) != "stopped":
            return None
        host = "rank 0, unless a launcher hosts it, has stopped"
        return Cause("stopped", 0, f"the group's store has not answered for {silent:.1f} s: {host}", self.rank)

    def waits(self) -> str:
        """Which ranks this one waits for in a call that makes no progress, in words; empty if it does not."""
        status = self._status
        stuck = self._stuck and status.state == "running"
        return f"for rank {', '.join(map(str, status.waits_for))}" if stuck and status.waits_for else ""

    def moved(self) -> None:
        """This rank makes progress again."""
        if self._stuck:
            self._stuck = self._late = False
            self._say("running")

    def report(self, cause: Cause) -> Cause:
        """Publish a cause; the one that was published first is the result (our first, if the store does not answer)."""
        self._say("failed")
        if self.host is not None and (cause.kind, cause.rank) == ("gone", self.host):
            self._mute, self._cause = True, self._cause or cause  # the store is gone too, and c10d would print stacks
        cause = self._own = self._own or cause
        if self.store is None or self._cause is not None:
            return self._cause or cause
        self._bell.ring()
        until = time.monotonic() + self.beat
        while self._awaited() and time.monotonic() < until:
            time.sleep(_LOOK)  # not an Event, in whose wait a signal handler could not wait for it
        return self._cause or cause

    def _awaited(self) -> bool:
        """Whether the thread will publish a cause soon."""
        return not self._known and self._thread.is_alive() and time.monotonic() - self._answered < 3 * BEAT

    def interrupt(self, cause: Cause) -> None:
        """Publish a cause, and end the call that runs at its next wait. A signal handler may call this within it."""
        self.interrupted = self.interrupted or cause
        self.report(cause)
        wake = self.on_interrupt
        if wake is not None:
            wake()

    def mark(self, key: str) -> None:
        """Set a key for the other ranks, as well as can be."""
        if self.store is not None and not self._mute:
            with contextlib.suppress(RuntimeError, ValueError):
                self.store.set(key, "1")

    def marked(self, key: str) -> bool:
        """Whether a rank has set a key, as far as is known."""
        if self.store is not None and not self._mute:
            with contextlib.suppress(RuntimeError, ValueError):
                return self.store.check([key])
        return False

    def close(self) -> None:
        """Say good-bye and end the thread."""
        self._say("closed")
        self._closed = True
        self._bell.ring()
        if self._thread.is_alive():
            self._thread.join(JOIN)

    def _run(self) -> None:
        store = self.store
        if store is None:
            return
        while not self._mute:
            closing = self._closed
            try:
                self._turn(store)
                self._answered = time.monotonic()
            except (RuntimeError, ValueError):  # the store is gone: torch raises DistError, a RuntimeError
                self._known = True
                return
            if closing:
                return
            self._bell.wait(min(self.beat, 0.1) if self._stuck else self.beat)

    def _turn(self, store: Store) -> None:
        self._beats += 1
        store.set(f"status/{self.rank}", replace(self._status, beat=self._beats).dumps())
        if self._own is not None and self._cause is None:
            self._publish(store, self._own)
        elif self._cause is None:
            self._look(store)
        if self._cause is not None:
            self._known = True

    def _publish(self, store: Store, cause: Cause) -> None:
        self._cause = loads_cause(store.compare_set("cause", "", cause.dumps()).decode())

    def _look(self, store: Store) -> None:
        if store.check(["cause"]):
            self._cause = loads_cause(store.get("cause").decode())
            return
        if self.host is not None and not self._host_process:
            host = self._ask(store, self.host, {})
            self._host_process = "" if host is None else host.status.process
        if not self._stuck:
            return
        heard = self._heard
        sightings = {rank: self._ask(store, rank, heard) for rank in range(self.ranks) if rank != self.rank}
        found = diagnose(self.rank, self._status, sightings, Patience(self.grace, self.far, self._late))
        if found is not None and self._stuck and heard is self._heard:
            self._publish(store, found)

    def _ask(self, store: Store, rank: int, heard: dict[int, _Heard]) -> Sighting | None:
        key, now = f"status/{rank}", time.monotonic()
        if not store.check([key]):
            return None
        status = loads_status(store.get(key).decode())
        if rank not in heard or heard[rank].beat != status.beat:
            heard[rank] = _Heard(status.beat, now, rank in heard)
        silent = now - heard[rank].since
        process = condition(status.process) if silent >= self.grace else None
        return Sighting(status, silent, heard[rank].fresh, process)


@dataclass(frozen=True)
class _Heard:
    """The last beat heard of a rank, when it was new, and whether it was not the first."""

    beat: int
    since: float
    fresh: bool
