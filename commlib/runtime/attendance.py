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

from commlib.errors import CommlibError, DeadlineError, ExecutionError
from commlib.runtime.cause import Cause, failure, loads_cause, store_lost
from commlib.runtime.liveness import condition, this_process
from commlib.runtime.shm.rendezvous import LookingStore
from commlib.runtime.transport import Wait

T = TypeVar("T")
_Answers = queue.SimpleQueue[tuple[T | None, BaseException | None]]
Missing = Callable[[], Sequence[int]]
"""Who has not come, as of now."""
LOOK = 0.1
"""Seconds between looks at those that have not come, for up to 32 ranks; in proportion for more."""
STOPPED = 60.0
"""Seconds for which a rank may be stopped, at most; less if the timeout is short."""
_GIVES_UP, _ENDS = (1.0, 0.1), (0.3, 0.03)
"""Seconds before the deadline, or part of the timeout if less, at which a rank gives up, and at which it ends whatever
it does: some calls of the store keep no deadline."""
_END = 0.5
"""Seconds for which a process may be seen to live though its connections have closed."""


class Attendance:
    """Who has come to open a group, in ``timeout`` seconds. Every rank makes one; ``show`` begins."""

    def __init__(self, rank: int, ranks: int, timeout: float, group: str) -> None:
        self._store: Any = None
        self._rank, self._what = rank, f"opening group {group}"
        self._others = [peer for peer in range(ranks) if peer != rank]
        self._deadline, self._last = (
            time.monotonic() + timeout - min(seconds, part * timeout) for seconds, part in (_GIVES_UP, _ENDS)
        )
        self._patience, self._pause = min(0.3 * timeout, STOPPED), LOOK * max(1.0, ranks / 32)
        self._processes = dict[int, str]()
        self._stopped = dict[int, tuple[float, float]]()
        self._looked, self._alone = time.monotonic(), False

    @property
    def seconds(self) -> float:
        """What is left of the time."""
        return max(0.01, self._deadline - time.monotonic())

    def show(self, store: Any) -> None:
        """Show this rank's process to the others; ``store`` has keys of theirs alone."""
        self._store = store
        store.set(f"process/{self._rank}", this_process())

    def leave(self) -> None:
        """The group is open: who still waits, waits for others."""
        with contextlib.suppress(RuntimeError, NotImplementedError):
            self._store.delete_key(f"process/{self._rank}")

    def fail(self, error: BaseException) -> None:
        """This rank gives up: tell those that wait for it why."""
        text = error.message if isinstance(error, CommlibError) else str(error) or type(error).__name__
        self._tell(
            Cause("deadline", self._rank, text, self._rank)
            if isinstance(error, DeadlineError)
            else Cause("failed", self._rank, f"rank {self._rank} failed: {text}", self._rank)
        )

    def look(self, missing: Missing, seconds: float) -> None:
        """Whether those that have been missing for so long may still come.

        Raises:
            PeerFailedError: one of them cannot, or another rank has found such a one.
        """
        cause = self.suspect(missing, seconds)
        if cause is not None:
            raise self._failure(cause)

    def suspect(self, missing: Missing, seconds: float) -> Cause | None:
        """Why those that have been missing for so long will not come, if that is known; looks only now and then.

        Raises:
            PeerFailedError: the store is gone.
        """
        if min(seconds, time.monotonic() - self._looked) <= self._pause:
            return None
        self._looked = time.monotonic()
        try:
            cause = self._find(missing)
        except RuntimeError as error:
            return self._without_store(missing, error)
        return None if cause is None else self._tell(cause)

    def _without_store(self, missing: Missing, error: RuntimeError) -> Cause | None:
        """The store is gone: with a rank that has ended, or with one that is done, if nobody is missing any more."""
        found = (cause for peer in self._processes if (cause := self._judge(peer)) is not None)
        with contextlib.suppress(RuntimeError):
            if not missing():
                return None
        cause = next(found, None)
        if cause is None:
            raise store_lost(self._rank, self._what, error) from error
        return cause

    def within(self, job: Callable[[], T]) -> T:
        """What ``job`` gives, on a thread of its own: an end at the deadline, also if the store never answers.

        Raises:
            DeadlineError: it was not done in time. What ``job`` raises.
        """
        try:
            found, error = _ask(job).get(timeout=max(0.001, self._last - time.monotonic()))
        except queue.Empty:
            raise self._late(
                "the group's store does not answer: has the process that hosts it (rank 0, unless torchrun or a "
                "launcher does) been stopped?"
            ) from None
        if error is not None:
            raise error
        return found  # type: ignore[return-value]

    def watch(self, connect: Callable[[], T], holds_store: bool = False) -> T:
        """What ``connect`` gives, which blocks, on a thread of its own: it asks nobody, and may keep no deadline.

        Args:
            holds_store: it waits at this store, which cannot be asked meanwhile, nor after an error: each rank finds
                out for itself who is lost, among those that all have shown themselves before.

        Raises:
            PeerFailedError, DeadlineError: as ``look``, and at the deadline. ExecutionError: it has failed.
        """
        if holds_store:
            self._processes = {peer: self._process(peer) for peer in self._others}
        self._alone = holds_store
        found = self._watch(connect)
        self._alone = False
        return found

    def _watch(self, connect: Callable[[], T]) -> T:
        answers = _ask(connect)
        while True:
            try:
                found, error = answers.get(timeout=LOOK)
            except queue.Empty:
                if time.monotonic() > self._deadline:
                    raise self._late(self._absent() or "gloo has not connected them") from None
                self.look(lambda: self._others, 2 * self._pause)
                continue
            if error is not None:
                raise self._meaning(error) from error
            return found  # type: ignore[return-value]

    def _meaning(self, error: BaseException) -> BaseException:
        """What made gloo fail: a rank that has ended, its connections first; or the deadline."""
        if not isinstance(error, RuntimeError):
            return error
        until = time.monotonic() + _END
        while time.monotonic() < until:
            self._looked = 0.0
            cause = self.suspect(lambda: self._others, 2 * self._pause)
            if cause is not None:
                return self._failure(cause)
            time.sleep(0.01)
        text = str(error).split("\n")[0]
        if time.monotonic() > self._deadline:
            return self._late(self._absent() or text)
        return ExecutionError(f"rank {self._rank}: gloo cannot connect the ranks: {text}", rank=self._rank)

    def _absent(self) -> str:
        absent = [peer for peer in self._others if not self._process(peer)]
        return f"rank(s) {', '.join(map(str, absent))} did not come" if absent else ""

    def _late(self, text: str) -> DeadlineError:
        return DeadlineError(
            f"rank {self._rank}: not all ranks came in time for {self._what}: {text}", rank=self._rank, cause="deadline"
        )

    def _failure(self, cause: Cause) -> ExecutionError:
        return failure(self._rank, self._what, [Wait(-1, -1, f"for rank {cause.rank}", cause.rank)], cause)

    def _find(self, missing: Missing) -> Cause | None:
        if not self._alone and self._store.check(["lost"]):
            return loads_cause(self._store.get("lost").decode())
        found = (cause for peer in missing() if (cause := self._judge(peer)) is not None)
        return next((cause for cause in found if cause.rank in missing()), None)  # it may have come, and ended

    def _tell(self, cause: Cause) -> Cause:
        """The cause that was told first."""
        if not self._alone and self._store is not None:
            with contextlib.suppress(RuntimeError, NotImplementedError):
                return loads_cause(self._store.compare_set("lost", "", cause.dumps()).decode())
        return cause

    def _judge(self, peer: int) -> Cause | None:
        found, now = condition(self._process(peer)), time.monotonic()
        if found == "ended":
            return Cause("gone", peer, f"rank {peer} is gone: its process has ended", self._rank)
        if found == "stopped":
            since, looked = self._stopped.get(peer, (now, now))
            since = since if now < looked + 10 * self._pause else now  # nobody has looked at it: it may have gone on
            self._stopped[peer] = since, now
            if now > since + self._patience:
                return Cause("stopped", peer, f"rank {peer} stopped: its process was stopped by a signal", self._rank)
        else:
            self._stopped.pop(peer, None)
        return None

    def _process(self, peer: int) -> str:
        """Which process a rank is; empty before it has come at all."""
        key = f"process/{peer}"
        if peer not in self._processes and not self._alone and self._store.check([key]):
            self._processes[peer] = self._store.get(key).decode()
        return self._processes.get(peer, "")


class AttendedStore(LookingStore):
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


def _ask(job: Callable[[], T]) -> _Answers[T]:
    """Begin a job on a thread; its value or error will come."""
    answers: _Answers[T] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put((job(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=work, name="commlib-opening", daemon=True).start()
    return answers
