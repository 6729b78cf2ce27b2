"""Patience: when a wait of a call has taken too long, and what the monitor then says of it."""

from __future__ import annotations

import time

from commlib.runtime.cause import Cause
from commlib.runtime.monitor import STALLED_AFTER, Monitor


class Patience:
    """The waits of one call: after ``stalled_after`` seconds without progress a rank asks why nothing moves.

    A little before the deadline time is up: then ranks that have not come are to blame, and last the deadline itself,
    so that the error comes before it.
    """

    def __init__(self, monitor: Monitor, rank: int, deadline: float) -> None:
        self._monitor, self._rank = monitor, rank
        seconds = deadline - time.monotonic()
        self._late, self._overdue = (deadline - min(cap, part * seconds) for cap, part in ((1.0, 0.35), (0.3, 0.15)))
        self.stalled_after = max(0.001, min(STALLED_AFTER, seconds / 10))

    def ask(self, waits_for: tuple[int, ...], deadline: float) -> Cause | None:
        """Why nothing moves, if that is known or time is up; ``deadline``: of this wait, if it is earlier."""
        now = time.monotonic()
        found = self._monitor.stalled(waits_for, late=now > min(self._late, deadline))
        if found is None and now > min(self._overdue, deadline):
            found = Cause("deadline", self._rank, f"the deadline passed, waiting for {list(waits_for)}", self._rank)
        return found
