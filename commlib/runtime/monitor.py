"""The monitor: a thread of each rank that shows signs of life in the group's store, and tells who is to blame.

While all goes well it sets one key and looks for one a beat. Only a rank that is stuck reads the others' keys. The
store belongs to someone (the launcher, torchrun's agent, rank 0); should it be gone or not answer, the monitor knows
nothing, and a stuck rank ends by a closed connection, by word of a peer, or at its deadline.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Protocol

from commlib.runtime.cause import Cause, Patience, Status, diagnose, loads_cause, loads_status

STALLED_AFTER = 0.2
"""Seconds without progress after which a rank counts as stuck and begins to ask."""


BEAT = 0.5
"""Seconds between signs of life."""


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
    """Signs of life every ``beat`` seconds; after ``grace`` without them a rank counts as stopped."""

    store: Store | None
    rank: int
    ranks: int
    beat: float = BEAT
    grace: float = 9.0

    def __post_init__(self) -> None:
        self._status = Status()
        self._beats = 0
        self._stuck = False
        self._late = False
        self._cause: Cause | None = None
        self._own: Cause | None = None
        self._published = threading.Event()
        self._wake = threading.Event()
        self._closed = False
        self._heard: dict[int, tuple[int, float]] = {}
        self._answered = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="commlib-monitor", daemon=True)
        if self.store is not None:
            self._thread.start()

    @property
    def cause(self) -> Cause | None:
        """The root cause that some rank published, as far as this rank knows."""
        return self._cause

    def enter(self, call: int, timeout: float) -> None:
        """This rank begins a call."""
        self.grace = max(0.3 * timeout, 3 * BEAT)
        self._status = Status(0, call, "running")

    def leave(self) -> None:
        """This rank has finished its call."""
        self._stuck = self._late = False
        self._status = Status(0, self._status.call, "idle")

    def stalled(self, waits_for: tuple[int, ...], late: bool) -> Cause | None:
        """This rank makes no progress: say whom it waits for, and learn why if that is known."""
        self._status = Status(0, self._status.call, "running", waits_for)
        self._late = late
        if not self._stuck:
            self._stuck = True
            self._heard.clear()
            self._wake.set()
        return self._cause or self._store_silent()

    def _store_silent(self) -> Cause | None:
        """A store that has not answered for ``grace`` seconds: the process that hosts it is stopped."""
        silent = time.monotonic() - self._answered
        if self.store is None or not self._thread.is_alive() or silent < self.grace:
            return None
        host = "rank 0, unless a launcher hosts it, has stopped"
        return Cause("stopped", 0, f"the group's store has not answered for {silent:.1f} s: {host}", self.rank)

    def moved(self) -> None:
        """This rank makes progress again."""
        if self._stuck:
            self._stuck = self._late = False
            self._status = Status(0, self._status.call, "running")

    def report(self, cause: Cause, patience: float = 0.5) -> Cause:
        """Publish a cause; the one that was published first is the result (ours, if the store does not answer)."""
        self._status = Status(0, self._status.call, "failed")
        if self.store is None or self._cause is not None:
            return self._cause or cause
        self._own = cause
        self._wake.set()
        if self._thread.is_alive() and time.monotonic() - self._answered < 3 * BEAT:
            self._published.wait(patience)
        return self._cause or cause

    def close(self) -> None:
        """Say good-bye and end the thread."""
        self._status = Status(0, self._status.call, "closed")
        self._closed = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(JOIN)

    def _run(self) -> None:
        store = self.store
        if store is None:
            return
        while True:
            closing = self._closed
            try:
                self._turn(store)
                self._answered = time.monotonic()
            except (RuntimeError, ValueError):  # the store is gone: torch raises DistError, a RuntimeError
                self._published.set()
                return
            if closing:
                return
            self._wake.wait(min(self.beat, 0.1) if self._stuck else self.beat)
            self._wake.clear()

    def _turn(self, store: Store) -> None:
        self._beats += 1
        store.set(f"status/{self.rank}", replace(self._status, beat=self._beats).dumps())
        if self._own is not None and self._cause is None:
            self._publish(store, self._own)
        elif self._cause is None:
            self._look(store)
        if self._cause is not None:
            self._published.set()

    def _publish(self, store: Store, cause: Cause) -> None:
        self._cause = loads_cause(store.compare_set("cause", "", cause.dumps()).decode())

    def _look(self, store: Store) -> None:
        if store.check(["cause"]):
            self._cause = loads_cause(store.get("cause").decode())
            return
        if not self._stuck:
            return
        statuses = {rank: self._ask(store, rank) for rank in range(self.ranks) if rank != self.rank}
        now = time.monotonic()
        silent = {rank: now - self._heard[rank][1] for rank, status in statuses.items() if status is not None}
        found = diagnose(self.rank, self._status, statuses, silent, Patience(self.grace, self._late))
        if found is not None and self._stuck:
            self._publish(store, found)

    def _ask(self, store: Store, rank: int) -> Status | None:
        key = f"status/{rank}"
        if not store.check([key]):
            return None
        status = loads_status(store.get(key).decode())
        if rank not in self._heard or self._heard[rank][0] != status.beat:
            self._heard[rank] = (status.beat, time.monotonic())
        return status
