"""Ranking: from the times of a contest to rows of a registry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from commlib.runtime.registry import Range, Reach, Row

CLEAR = 0.9
"""A time that the best has no clear lead on (the best takes more than so much of it) is as good: of these the first in
the contest's order is taken, which makes fewer rows of noise."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one collective: ``seconds[size][contender]``, None where it did not run."""

    collective: str
    ranks: int
    names: tuple[tuple[str, Reach], ...]
    sizes: tuple[int, ...]
    seconds: tuple[tuple[float | None, ...], ...]

    def best(self, registered: bool) -> list[int]:
        """For each size the contender to take, for tensors that are registered or not."""
        allowed = [index for index, (_, reach) in enumerate(self.names) if registered or reach != "registered"]
        found: list[int] = []
        for times in self.seconds:
            ran = {index: time for index in allowed if (time := times[index]) is not None}
            if not ran:
                return []
            near = [index for index, time in ran.items() if time * CLEAR <= min(ran.values())]
            found.append(near[0])
        return found


def rows_of(measured: Measured) -> list[Row]:
    """The rows: those for registered tensors first, then those for all others."""
    plain, registered = measured.best(False), measured.best(True)
    rows = [row for row in _rows(measured, registered) if row.reach == "registered"]
    return rows + _rows(measured, plain)


def _rows(measured: Measured, winners: Sequence[int]) -> list[Row]:
    """A row for each run of sizes with one winner; from one to the next at the geometric mean of their sizes."""
    rows: list[Row] = []
    runs = [(winner, [place for place, _ in group]) for winner, group in groupby(enumerate(winners), lambda p: p[1])]
    for number, (winner, places) in enumerate(runs):
        name, reach = measured.names[winner]
        low = 0 if number == 0 else _between(measured.sizes, places[0]) + 1
        high = None if number == len(runs) - 1 else _between(measured.sizes, places[-1] + 1)
        ranks = Range(measured.ranks, measured.ranks)
        note = _note(measured, winner, places[len(places) // 2])
        rows.append(Row(measured.collective, name, ranks, Range(1, 1), Range(low, high), None, reach, note))
    return rows


def _between(sizes: Sequence[int], place: int) -> int:
    """The largest size that counts to the one before ``place``."""
    return math.isqrt(sizes[place - 1] * sizes[place])


def _note(measured: Measured, winner: int, place: int) -> str:
    """The winner's time in the middle of its sizes, and that of the next best other algorithm."""
    times = measured.seconds[place]
    text = f"{1e6 * (times[winner] or 0):.1f} us at {measured.sizes[place]} bytes"
    reaches = {"any", "readv", measured.names[winner][1]}
    others = {
        index: time
        for index, ((name, reach), time) in enumerate(zip(measured.names, times, strict=True))
        if time is not None and name != measured.names[winner][0] and reach in reaches
    }
    if not others:
        return text
    second = min(others, key=lambda index: others[index])
    return f"{text}; {measured.names[second][0]} {1e6 * others[second]:.1f}"
