"""Happens-before: does unit a end before unit b begins, in every run?

It is threadblock order + dependences + each message from its send to its receive. Two ways to know, cheapest first:

1. Vector clocks of one rank, over threadblock order and dependences only: what nearly all algorithms need. A clock
   (per threadblock, its last step that is known to have ended) is stored only at steps with dependences.
2. For what is left, the same clocks over all ranks, through messages too, with a component only for the threadblocks
   that are asked about. They pass along the topological order once for each ``COMPONENTS`` of these.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from commlib.ir.algorithm import NOTHING, Ints
from commlib.verify.units import Units

COMPONENTS = 1024
"""Threadblocks asked about in one pass over all units: a clock has at most 4 * COMPONENTS bytes."""

Clock = npt.NDArray[np.int32]
_Local = tuple[list[int], list[dict[int, int]]]


class HappensBefore:
    """Answers for one algorithm; ``order`` is a topological order of its units, ``position`` its inverse."""

    def __init__(self, units: Units, order: list[int], position: Ints) -> None:
        self._units = units
        self._order = order
        self._position = position

    def ask(self, before: Ints, after: Ints) -> npt.NDArray[np.bool_]:
        """For each pair of units of one rank, whether the first happens before the second.

        The pairs must be in topological order, and of different threadblocks.
        """
        a = self._units.algorithm
        answer = np.zeros(len(before), dtype=bool)
        rank = a.tb_rank[self._units.threadblock[before]]
        by_rank = np.argsort(rank, kind="stable")
        for group in np.split(by_rank, np.flatnonzero(np.diff(rank[by_rank])) + 1):
            if len(group):
                self._ask_locally(int(rank[group[0]]), before, after, group, answer)
        left = np.flatnonzero(~answer)
        if len(left):
            answer[left] = self._ask_globally(before[left], after[left])
        return answer

    def _ask_locally(self, rank: int, before: Ints, after: Ints, group: Ints, answer: npt.NDArray[np.bool_]) -> None:
        units = self._units
        clocks = self._local_clocks(rank)
        blocks = units.threadblock[before[group]].tolist(), units.threadblock[after[group]].tolist()
        steps = units.step[before[group]].tolist(), units.step[after[group]].tolist()
        for i, block_a, block_b, step_a, step_b in zip(group.tolist(), *blocks, *steps, strict=True):
            clock = _clock_at(clocks, block_b, step_b)
            answer[i] = clock is not None and clock.get(block_a, -1) >= step_a

    def _local_clocks(self, rank: int) -> dict[int, _Local]:
        """For each threadblock of the rank, its steps with dependences and the clock from each of them on."""
        units, a = self._units, self._units.algorithm
        low, high = (int(a.tb_start[a.rank_start[r]]) for r in (rank, rank + 1))
        steps = np.flatnonzero(np.diff(a.dep_start[low : high + 1])) + low
        steps = steps[np.argsort(self._position[units.first[steps]])]
        clocks: dict[int, _Local] = defaultdict(lambda: ([], []))
        for step in steps.tolist():
            block = int(a.step_threadblock[step])
            numbers, known = clocks[block]
            clock = dict(known[-1]) if known else {}
            for dep in a.dep[a.dep_start[step] : a.dep_start[step + 1]].tolist():
                dep_block = int(a.step_threadblock[dep])
                _raise(clock, {dep_block: dep})
                _raise(clock, _clock_at(clocks, dep_block, dep) or {})
            numbers.append(step)
            known.append(clock)
        return clocks

    def _ask_globally(self, before: Ints, after: Ints) -> npt.NDArray[np.bool_]:
        answer = np.zeros(len(before), dtype=bool)
        sources, column = np.unique(self._units.threadblock[before], return_inverse=True)
        for low in range(0, len(sources), COMPONENTS):
            inside = np.flatnonzero((column >= low) & (column < low + COMPONENTS))
            width = min(COMPONENTS, len(sources) - low)
            answer[inside] = self._pass(before[inside], after[inside], column[inside] - low, width)
        return answer

    def _pass(self, before: Ints, after: Ints, column: Ints, width: int) -> npt.NDArray[np.bool_]:
        """Carry clocks of ``width`` components along the part of the order between the first and the last asked."""
        answer = np.zeros(len(before), dtype=bool)
        queries: dict[int, list[int]] = defaultdict(list)
        for i, unit in enumerate(after.tolist()):
            queries[unit].append(i)
        begin, end = int(self._position[before].min()), int(self._position[after].max())
        columns = dict(zip(before.tolist(), column.tolist(), strict=True))
        wanted = list(zip(before.tolist(), column.tolist(), strict=True))
        for unit, clock in _Clocks(self._units, columns, width).along(self._order[begin : end + 1]):
            for i in queries.get(unit, ()):
                source, c = wanted[i]
                answer[i] = clock is not None and clock[c] >= source
        return answer


def _clock_at(clocks: dict[int, _Local], block: int, step: int) -> dict[int, int] | None:
    if block not in clocks:
        return None
    numbers, known = clocks[block]
    place = bisect_right(numbers, step)
    return known[place - 1] if place else None


def _raise(clock: dict[int, int], other: dict[int, int]) -> None:
    for block, step in other.items():
        if clock.get(block, -1) < step:
            clock[block] = step


class _Clocks:
    """Global clocks: component c of a unit's clock is the last unit of threadblock c that happens before it or is
    it. Only units in ``columns`` count. Clocks are never changed once made, so that they can be shared; a
    threadblock that nothing has reached has None."""

    def __init__(self, units: Units, columns: dict[int, int], width: int) -> None:
        self._units = units
        self._columns = columns
        self._width = width

    def along(self, order: list[int]) -> Iterator[tuple[int, Clock | None]]:
        """(unit, clock) for the units of a stretch of the topological order; O(width) per merge of two clocks."""
        units = self._units
        waits, partner, block_of = units.waits, units.partner, units.threadblock
        awaited = Counter(last for unit in order for last in waits.get(unit, ()))
        state: list[Clock | None] = [None] * len(units.algorithm.tb_rank)
        kept: dict[int, Clock] = {}
        arriving: dict[int, Clock] = {}
        stretch = np.array(order, dtype=np.int64)
        for unit, block, peer in zip(order, block_of[stretch].tolist(), partner[stretch].tolist(), strict=True):
            clock = _later(state[block], arriving.pop(unit, None))
            for last in waits.get(unit, ()):
                clock = _later(clock, kept.get(last))
                awaited[last] -= 1
                if not awaited[last]:
                    kept.pop(last, None)
            if unit in self._columns:
                clock = self._with(clock, self._columns[unit], unit)
            state[block] = clock
            if clock is not None:
                if peer != NOTHING:
                    arriving[peer] = clock
                if unit in awaited:
                    kept[unit] = clock
            yield unit, clock

    def _with(self, clock: Clock | None, column: int, unit: int) -> Clock:
        own = np.full(self._width, -1, dtype=np.int32) if clock is None else clock.copy()
        own[column] = unit
        return own


def _later(one: Clock | None, other: Clock | None) -> Clock | None:
    if one is None or one is other:
        return other
    return one if other is None else np.maximum(one, other)
