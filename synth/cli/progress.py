"""What one sees while a search runs, and how times are written."""

from __future__ import annotations

import math
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synth.engine import Progress

_WIDTH = 24
"""Characters of a full bar."""


def duration(seconds: float) -> str:
    """A time for a person, in the unit that suits it: "250 ns", "69.9 us", "1.25 ms"."""
    digits = float(f"{seconds:.6g}")
    for limit, parts, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if digits < limit:
            return f"{digits * parts:.6g} {unit}"
    return f"{digits:.6g} s"


class Bar:
    """A bar on the last line of a terminal, drawn whenever an engine reports; nothing elsewhere.

    It fills as the time limit comes nearer, and is wiped at the end of its ``with`` block. It has no thread: what it
    accompanies may start processes.
    """

    def __init__(self, limit: float, quiet: bool = False) -> None:
        self._limit = limit
        self._shown = sys.stdout.isatty() and not quiet

    def __call__(self, progress: Progress) -> None:
        """Draw where a search stands: stage, incumbent, bound, gap, time left."""
        if self._shown:
            filled = int(_WIDTH * self._used(progress.left))
            bar = "#" * filled + "-" * (_WIDTH - filled)
            # A line as wide as the terminal would wrap, and then only its last row could be wiped.
            columns = shutil.get_terminal_size().columns - 1
            self._write("\r\x1b[K" + f"[{bar}] {describe(progress)}"[:columns])

    def _used(self, left: float) -> float:
        """The part of the time that is over; none where there is no limit."""
        if math.isinf(self._limit):
            return 0.0
        return min(1.0, max(0.0, 1 - left / self._limit)) if self._limit else 1.0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()

    def hide(self) -> None:
        """Wipe the bar."""
        if self._shown:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def describe(progress: Progress) -> str:
    """A report in words."""
    best = progress.incumbent
    found = "nothing yet" if best is None else duration(best * progress.tick)
    gap = f", gap {best / progress.bound - 1:.1%}" if best and progress.bound else ""
    left = "" if math.isinf(progress.left) else f", {progress.left:.0f} s left"
    return f"{progress.stage}: {found}, bound {duration(progress.bound * progress.tick)}{gap}{left}"
