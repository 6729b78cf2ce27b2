"""The monitored barrier: through the store, so that rank 0 can say who did not come."""

from __future__ import annotations

import contextlib
import time
from datetime import timedelta
from typing import Any

from commlib.errors import DeadlineError, PeerFailedError

_GRACE = 5.0
"""Seconds that others wait for rank 0's answer beyond the timeout."""


def monitored_barrier(store: Any, rank: int, ranks: int, number: int, timeout: float, wait_all: bool) -> None:
    """Wait for all ranks; ``number`` tells one barrier of the group from another.

    Raises:
        DeadlineError: on rank 0, naming the first rank (``wait_all``: every rank) that did not come in time.
        PeerFailedError: on the others: rank 0 gave up, or did not answer.
    """
    prefix = f"barrier/{number}"
    if rank != 0:
        store.set(f"{prefix}/{rank}", "here")
        _await_answer(store, rank, f"{prefix}/answer", timeout)
        return
    deadline = time.monotonic() + timeout
    missing: list[int] = []
    for other in range(1, ranks):
        if not _came(store, f"{prefix}/{other}", deadline):
            missing.append(other)
            if not wait_all:
                break
    store.set(f"{prefix}/answer", "go" if not missing else ", ".join(map(str, missing)))
    for other in set(range(1, ranks)) - set(missing):
        with contextlib.suppress(RuntimeError):
            store.delete_key(f"{prefix}/{other}")
    if missing:
        raise DeadlineError(_missing(missing, wait_all, timeout), rank=0, peers=missing)


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
            f"rank {rank}: rank 0 did not come to the monitored barrier within {timeout} s, or is gone",
            rank=rank,
            peer=0,
        ) from error
    answer = store.get(key).decode()
    if answer != "go":
        raise PeerFailedError(
            f"rank {rank}: the monitored barrier failed: rank {answer} did not come within {timeout} s", rank=rank
        )


def _missing(missing: list[int], wait_all: bool, timeout: float) -> str:
    who = f"Ranks {', '.join(map(str, missing))}" if wait_all else f"Rank {missing[0]}"
    return f"{who} failed to pass monitoredBarrier in {timeout * 1000:.0f} ms"
