"""Attendance: while ranks open a group, whether those that have not come still can.

Each rank shows its process in the group's store first. Who waits looks at the processes of its machine, and what it
finds it tells all, also those on machines from which nobody can see it. A rank that has a machine to itself is missed
when its connection closes, or at the deadline.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from commlib.errors import DeadlineError, ExecutionError
from commlib.runtime.cause import Cause, failure, loads_cause
from commlib.runtime.liveness import condition, this_process
from commlib.runtime.transport import Wait

T = TypeVar("T")
Missing = Callable[[], Sequence[int]]
"""Who has not come, as of now."""
LOOK = 0.1
"""Seconds between looks at those that have not come."""
STOPPED = 60.0
"""Seconds for which a rank may be stopped, at most; less if the timeout is short."""
_END = 0.5
"""Seconds for which a process may be seen to live though its connections have closed."""


class Attendance:
    """Who has come to open a group, in ``timeout`` seconds; every rank of it makes one, on keys of theirs alone."""

    def __init__(self, store: Any, rank: int, ranks: int, timeout: float, group: str) -> None:
        self._store, self._rank, self._what = store, rank, f"opening group {group}"
        self._others = [peer for peer in range(ranks) if peer != rank]
        self._deadline = time.monotonic() + timeout
        self._patience = min(0.3 * timeout, STOPPED)
        self._processes = dict[int, str]()
        self._stopped = dict[int, float]()
        self._looked, self._mute = time.monotonic(), False
        store.set(f"process/{rank}", this_process())

    @property
    def seconds(self) -> float:
        """What is left of the time."""
        return max(0.01, self._deadline - time.monotonic())

    def leave(self) -> None:
        """The group is open: who still waits, waits for others."""
        if self._mute:
            return
        with contextlib.suppress(RuntimeError, NotImplementedError):
            self._store.delete_key(f"process/{self._rank}")

    def look(self, missing: Missing, seconds: float) -> None:
        """Whether those that have been missing for so long may still come.

        Raises:
            PeerFailedError: one of them cannot, or another rank has found such a one.
        """
        cause = self.suspect(missing, seconds)
        if cause is not None:
            raise self._failure(cause)

    def suspect(self, missing: Missing, seconds: float) -> Cause | None:
        """Why those that have been missing for so long will not come, if that is known; looks only now and then."""
        if min(seconds, time.monotonic() - self._looked) <= LOOK:
            return None
        self._looked = time.monotonic()
        cause = self._find(missing)
        return None if cause is None else self._tell(cause)

    def watch(self, connect: Callable[[], T], holds_store: bool = False) -> T:
        """What ``connect`` gives, which blocks, on a thread of its own: it asks nobody, and may keep no deadline.

        Args:
            holds_store: it waits at this store, which cannot be asked meanwhile: each rank finds out for itself who is
                lost, among those that all have shown themselves before.

        Raises:
            PeerFailedError, DeadlineError: as ``look``, and at the deadline. ExecutionError: it has failed.
        """
        if holds_store:
            self._processes = {peer: self._process(peer) for peer in self._others}
        self._mute = holds_store
        found = self._watch(connect)
        self._mute = False
        return found

    def _watch(self, connect: Callable[[], T]) -> T:
        answers = queue.SimpleQueue[tuple[T | None, BaseException | None]]()
        threading.Thread(target=_answer, args=(connect, answers), name="commlib-connect", daemon=True).start()
        while True:
            try:
                found, error = answers.get(timeout=LOOK)
            except queue.Empty:
                self.look(lambda: self._others, 2 * LOOK)
                if time.monotonic() > self._deadline:
                    raise self._late("gloo has not connected them") from None
                continue
            if error is not None:
                raise self._meaning(error) from error
            return found  # type: ignore[return-value]

    def _meaning(self, error: BaseException) -> BaseException:
        """What made gloo fail: a rank that has ended, its connections first; or the deadline."""
        if not isinstance(error, RuntimeError):
            return error
        until = time.monotonic() + _END
        while (cause := self._find(lambda: self._others)) is None and time.monotonic() < until:
            time.sleep(0.01)
        if cause is not None:
            return self._failure(self._tell(cause))
        text = str(error).split("\n")[0]
        if time.monotonic() > self._deadline:
            return self._late(text)
        return ExecutionError(f"rank {self._rank}: gloo cannot connect the ranks: {text}", rank=self._rank)

    def _late(self, text: str) -> DeadlineError:
        return DeadlineError(
            f"rank {self._rank}: not all ranks came in time for {self._what}: {text}", rank=self._rank, cause="deadline"
        )

    def _failure(self, cause: Cause) -> ExecutionError:
        return failure(self._rank, self._what, [Wait(-1, -1, f"for rank {cause.rank}", cause.rank)], cause)

    def _find(self, missing: Missing) -> Cause | None:
        if not self._mute and self._store.check(["lost"]):
            return loads_cause(self._store.get("lost").decode())
        found = (cause for peer in missing() if (cause := self._judge(peer)) is not None)
        return next((cause for cause in found if cause.rank in missing()), None)  # it may have come, and ended

    def _tell(self, cause: Cause) -> Cause:
        """The cause that was told first."""
        if self._mute:
            return cause
        with contextlib.suppress(RuntimeError, NotImplementedError):
            return loads_cause(self._store.compare_set("lost", "", cause.dumps()).decode())
        return cause

    def _judge(self, peer: int) -> Cause | None:
        found, now = condition(self._process(peer)), time.monotonic()
        if found == "ended":
            return Cause("gone", peer, f"rank {peer} is gone: its process has ended", self._rank)
        if found != "stopped":
            self._stopped.pop(peer, None)
        elif now > self._stopped.setdefault(peer, now) + self._patience:
            return Cause("stopped", peer, f"rank {peer} stopped: its process was stopped by a signal", self._rank)
        return None

    def _process(self, peer: int) -> str:
        """Which process a rank is; empty before it has come at all."""
        key = f"process/{peer}"
        if peer not in self._processes and self._store.check([key]):
            self._processes[peer] = self._store.get(key).decode()
        return self._processes.get(peer, "")


class AttendedStore:
    """A store for the ``Board`` of some ranks of a group, which asks who may still come.

    Args:
        members: these ranks, as the board counts them.
    """

    def __init__(self, store: Any, attendance: Attendance, members: Sequence[int]) -> None:
        self._attendance, self._members = attendance, members
        self.set, self.get, self.check = store.set, store.get, store.check
        self.add, self.delete_key = store.add, store.delete_key

    def look(self, missing: Missing, seconds: float) -> None:
        """See ``Attendance.look``."""
        self._attendance.look(lambda: [self._members[at] for at in missing()], seconds)


def _answer(connect: Callable[[], T], answers: queue.SimpleQueue[tuple[T | None, BaseException | None]]) -> None:
    try:
        answers.put((connect(), None))
    except BaseException as error:
        answers.put((None, error))
