"""Barriers: the plain one, an allreduce of two bytes; and the monitored one, through the store, so that rank 0 can say
who did not come.

torch's ``monitored_barrier`` refuses by name every backend but gloo. So the first group made here puts a function
before it that hands commlib's groups to themselves, and all others on to torch's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

import torch
import torch.distributed

from commlib.collectives import Placement
from commlib.errors import DeadlineError, ExecutionError, PeerFailedError
from commlib.runtime.shm.watch import MARGIN
from commlib.torch_backend.compat import c10d
from commlib.torch_backend.core import Core, Transfer
from commlib.torch_backend.operand import Operand
from commlib.torch_backend.request import Request

_GRACE = 5.0
"""Seconds that others wait for rank 0's answer beyond the timeout."""


class Barrier(Transfer):
    """The job of a barrier. It has nothing to do but wait, so that it waits for late ranks to the end of its time;
    other calls judge a little earlier who is late."""

    __slots__ = ()

    def __init__(self, core: Core) -> None:
        operand = Operand([torch.zeros(2, dtype=torch.uint8)], writes=True)
        request = Request("allreduce", 2, torch.uint8, "max", None, Placement.IN, name="barrier")
        super().__init__(core, request, operand, operand)

    def __call__(self, timeout: float) -> None:
        """Run it."""
        try:
            super().__call__(timeout + min(MARGIN, timeout / 4))
        except ExecutionError as error:
            raise type(error)(f"{error.message} The barrier had a timeout of {timeout} s.", **error.fields) from error


def hand_over(kind: type[Any]) -> None:
    """Put the function before torch's ``monitored_barrier`` that hands groups of this kind to themselves; once."""
    theirs: Callable[..., Any] = c10d.monitored_barrier
    if hasattr(theirs, "commlib"):
        return

    @wraps(theirs)
    def monitored(group: Any = None, timeout: Any = None, wait_all_ranks: bool = False) -> Any:
        found = c10d.GroupMember.WORLD if group is None else group
        if isinstance(found, kind):
            return found.monitored_barrier(timeout, wait_all_ranks)
        return theirs(group, timeout, wait_all_ranks)

    monitored.commlib = True  # type: ignore[attr-defined]
    c10d.monitored_barrier = monitored
    torch.distributed.monitored_barrier = monitored


class MonitoredBarrier:
    """The monitored barriers of one group, through its store.

    Rank 0 takes away what others said, and its answers once all have come to a later barrier; a rank that came after
    rank 0 had given up takes away what it said itself. So one key stays in the store, however many were passed.
    """

    def __init__(self, store: Any, rank: int, ranks: int) -> None:
        self._store, self._rank, self._ranks = store, rank, ranks
        self._number = 0
        self._answers: list[str] = []

    def wait(self, timeout: float, wait_all: bool) -> None:
        """Wait for all ranks; all call this equally often.

        Raises:
            DeadlineError: on rank 0, naming the first rank (``wait_all``: every rank) that did not come in time.
            PeerFailedError: on the others: rank 0 gave up, or did not answer.
        """
        self._number += 1
        prefix = f"barrier/{self._number}"
        if self._rank == 0:
            self._ask(prefix, timeout, wait_all)
            return
        self._store.set(f"{prefix}/{self._rank}", "here")
        try:
            _await_answer(self._store, self._rank, f"{prefix}/answer", timeout)
        except PeerFailedError:
            _delete(self._store, f"{prefix}/{self._rank}")
            raise

    def _ask(self, prefix: str, timeout: float, wait_all: bool) -> None:
        if timeout <= 0:
            raise DeadlineError("Rank 0 timed out in monitoredBarrier: it was given no time", rank=0)
        missing = _absent(self._store, self._ranks, prefix, timeout, wait_all)
        if not missing:  # all have read the answers before
            for key in self._answers:
                _delete(self._store, key)
            self._answers.clear()
        self._answers.append(f"{prefix}/answer")
        self._store.set(self._answers[-1], "go" if not missing else ", ".join(map(str, missing)))
        if missing:
            raise DeadlineError(_missing(missing, wait_all, timeout), rank=0, peers=missing)


def _absent(store: Any, ranks: int, prefix: str, timeout: float, wait_all: bool) -> list[int]:
    """On rank 0: who does not come; only the first, unless ``wait_all``."""
    deadline = time.monotonic() + timeout
    missing: list[int] = []
    for other in range(1, ranks):
        if not _came(store, f"{prefix}/{other}", deadline):
            missing.append(other)
            if not wait_all:
                break
    for other in set(range(1, ranks)) - set(missing):
        _delete(store, f"{prefix}/{other}")
    return missing


def _delete(store: Any, key: str) -> None:
    """Some stores cannot."""
    with contextlib.suppress(RuntimeError):
        store.delete_key(key)


def _came(store: Any, key: str, deadline: float) -> bool:
    left = max(0.001, deadline - time.monotonic())
    try:
        store.wait([key], timedelta(seconds=left))
    except RuntimeError:
        return False
    return True


def _await_answer(store: Any, rank: int, key: str, timeout: float) -> None:
    try:
        store.wait([key], timedelta(seconds=timeout + _GRACE))
    except RuntimeError as error:
        raise PeerFailedError(
            f"{_reached(rank)}: it did not come within {timeout} s, or is gone", rank=rank, peer=0, root=0
        ) from error
    answer = store.get(key).decode()
    if answer != "go":
        raise PeerFailedError(
            f"{_reached(rank)}: rank {answer} did not come within {timeout} s",
            rank=rank,
            peer=0,
            root=int(answer.split(", ")[0]),
        )


def _reached(rank: int) -> str:
    """As gloo words it."""
    trouble = "but received errors while waiting for send/recv from rank 0"
    return f"Rank {rank} successfully reached monitoredBarrier, {trouble}"


def _missing(missing: list[int], wait_all: bool, timeout: float) -> str:
    who = f"Ranks {', '.join(map(str, missing))}" if wait_all else f"Rank {missing[0]}"
    return f"{who} failed to pass monitoredBarrier in {timeout * 1000:.0f} ms"
