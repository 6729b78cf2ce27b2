"""Work handles: one shared object for calls that are done when they return, and one per call that is queued."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import Work

from commlib.errors import DeadlineError
from commlib.torch_backend.compat import let_go, profiling
from commlib.torch_backend.failures import as_torch
from commlib.torch_backend.settling import depth

_LONGEST = threading.TIMEOUT_MAX


class FinishedWork(Work):
    """A call that was done when it returned."""

    def wait(self, timeout: Any = None) -> bool:  # noqa: ARG002
        """Return at once."""
        return True

    def is_completed(self) -> bool:
        """True."""
        return True

    def is_success(self) -> bool:
        """True."""
        return True

    def exception(self) -> None:
        """None."""
        return

    def synchronize(self) -> None:
        """Nothing is left to wait for."""

    def result(self) -> list[torch.Tensor]:
        """No tensors: the call returned them in place."""
        return []

    def get_future(self) -> torch.futures.Future[Any]:
        """A future that is done, with no tensors."""
        future: torch.futures.Future[Any] = torch.futures.Future()
        future.set_result(self.result())
        return future


DONE = FinishedWork()
"""The handle of every call that was done when it returned."""


def shown(name: str) -> contextlib.AbstractContextManager[Any]:
    """A range of this name for the profiler, if it watches this thread.

    An asynchronous call has one while it is issued, and one while it is waited for: a range that another thread ended
    could end after the profiler has stopped, and its memory of the range with it.
    """
    return torch.autograd.profiler.record_function(f"commlib:{name}") if profiling() else contextlib.nullcontext()


class PendingWork(Work):
    """A call that another thread, or a later ``wait``, finishes. ``results`` are the tensors it fills.

    ``wait`` ends when the call has, which says nothing of the future's callbacks: those may run on.
    """

    def __init__(self, name: str, results: Sequence[Any] = ()) -> None:
        super().__init__()
        self.name, self.results = name, list(results)
        self.depth = depth()
        self.error: BaseException | None = None
        self._finished = False
        self._future: torch.futures.Future[Any] | None = None
        self._outcome: torch.futures.Future[Any]
        self._guard = threading.Lock()
        self._bells: list[threading.Lock] = []  # of those who wait, held until the call has ended

    def finish(self, error: BaseException | None = None) -> None:
        """The call has ended; wakes those who wait and settles the future."""
        if self.end(error):
            self.settle()

    def end(self, error: BaseException | None) -> bool:
        """The call has ended; wakes those who wait. Whether there is a future, which someone must ``settle``."""
        with self._guard:
            self.error = None if error is None else as_torch(error)
            self._finished = True
            asked = self._future is not None
        self._ring()
        return asked

    def _ring(self) -> None:
        while self._bells:
            with contextlib.suppress(IndexError):  # he waits no more
                self._bells.pop().release()

    def settle(self) -> None:
        """Settle the future, which runs its callbacks. What they raise, their own futures have."""
        if self._future is not None:
            with contextlib.suppress(Exception):
                self._future.set_result(None)

    def abandon(self, error: BaseException) -> None:
        """Nobody will end the call in this process, if it has not ended; whoever waits is told, callbacks are not
        called."""
        self._guard = threading.Lock()
        if not self._finished:
            self.error, self._finished = as_torch(error), True
        self._ring()

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait until the call is done, at most ``timeout`` (default: as long as it takes; it has a deadline itself).

        Raises:
            DeadlineError: the call goes on after the timeout.
            CommlibError: what the call ended with.
        """
        if not self._finished:
            with shown(f"{self.name} wait"):
                self._await(timeout)
        let_go(self)
        if self.error is not None:
            raise self.error
        return True

    def _await(self, timeout: timedelta | None) -> None:
        """Each waits on a bell of his own: an interrupt, whenever it comes, keeps nothing that others wait for."""
        limit = -1.0 if timeout is None or timeout <= timedelta(0) else min(timeout.total_seconds(), _LONGEST)
        bell = threading.Lock()
        bell.acquire()
        self._bells.append(bell)
        if self._finished or bell.acquire(timeout=limit):  # asked here: who ends the call rings after it is finished
            return
        with contextlib.suppress(ValueError):
            self._bells.remove(bell)
        if not self._finished:
            late = DeadlineError(f"{self.name} was not done {limit} s after wait() was called; it goes on")
            raise as_torch(late)

    def is_completed(self) -> bool:
        """Whether the call has ended, well or not."""
        return self._finished

    def is_success(self) -> bool:
        """Whether the call has ended well."""
        return self._finished and self.error is None

    def exception(self) -> BaseException | None:
        """What the call ended with, if not well."""
        return self.error

    def synchronize(self) -> None:
        """As ``wait``."""
        self.wait()

    def result(self) -> list[Any]:
        """The tensors that the call fills."""
        return self.results

    def get_future(self) -> torch.futures.Future[Any]:
        """A future of the tensors that the call fills, or of the error, which is torch's RuntimeError then."""
        with self._guard:
            if self._future is None:
                self._future = torch.futures.Future()
                self._outcome = self._future.then(self._settle)
                finished = self._finished
            else:
                finished = False
        if finished:
            self.settle()
        let_go(self)
        return self._outcome

    def _settle(self, _future: Any) -> list[Any]:
        """What the future becomes. torch's ``set_exception`` would make the error a value to its C++ part."""
        if self.error is not None:
            raise self.error
        return self.results
