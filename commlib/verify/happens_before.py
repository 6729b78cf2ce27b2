"""Happens-before: does unit a end before unit b begins, in every run?

It is threadblock order + dependences + each message from its send to its receive. Three ways to know, cheapest first:

1. Vector clocks of one rank, over threadblock order and dependences only: what nearly all algorithms need. A clock
   (per threadblock, its last step that is known to have ended) is stored only at steps with dependences.
2. For what is left, clocks over all ranks, through messages too, with a component only for the threadblocks that are
   asked about, as dictionaries of what has been reached: cheap where little is reached, as in direct exchanges.
3. Where that grows past a budget, the same clocks as arrays, in one pass for each ``COMPONENTS`` threadblocks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from commlib.ir.algorithm import NOTHING, Ints
from commlib.verify.clocks import Clocks, DenseClocks, SparseClocks
from commlib.verify.units import Units

COMPONENTS = 1024
"""Threadblocks asked about in one pass with arrays: a clock has at most 4 * COMPONENTS bytes."""
SPARSE_WORK = 8
"""Dictionary entries that may be copied per unit before arrays take over."""

Clock = TypeVar("Clock")
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
        sources, column = np.unique(self._units.threadblock[before], return_inverse=True)
        sparse = self._pass(before, after, column, SparseClocks(SPARSE_WORK * len(self._units)))
        if sparse is not None:
            return sparse
        answer = np.zeros(len(before), dtype=bool)
        for low in range(0, len(sources), COMPONENTS):
            inside = np.flatnonzero((column >= low) & (column < low + COMPONENTS))
            clocks = DenseClocks(min(COMPONENTS, len(sources) - low))
            answer[inside] = self._pass(before[inside], after[inside], column[inside] - low, clocks)
        return answer

    def _pass(self, before: Ints, after: Ints, column: Ints, clocks: Clocks[Clock]) -> npt.NDArray[np.bool_] | None:
        """Carry clocks along the part of the order between the first and the last unit asked about.

        None when the clocks' budget does not allow it.
        """
        answer = np.zeros(len(before), dtype=bool)
        queries: dict[int, list[int]] = defaultdict(list)
        for i, unit in enumerate(after.tolist()):
            queries[unit].append(i)
        begin, end = int(self._position[before].min()), int(self._position[after].max())
        wanted = list(zip(before.tolist(), column.tolist(), strict=True))
        for unit, clock in self._along(self._order[begin : end + 1], dict(wanted), clocks):
            if clocks.exhausted:
                return None
            if unit in queries and clock is not None:
                for i in queries[unit]:
                    source, component = wanted[i]
                    answer[i] = clocks.last(clock, component) >= source
        return answer

    def _along(
        self, order: list[int], columns: dict[int, int], clocks: Clocks[Clock]
    ) -> Iterator[tuple[int, Clock | None]]:
        """(unit, clock) for the units of a stretch of the topological order.

        Component c of a unit's clock is the last unit of threadblock c that happens before it or is it; only units
        in ``columns`` count, and a threadblock that none of them has reached has None.
        """
        units = self._units
        waits = units.waits
        awaited = Counter(last for unit in order for last in waits.get(unit, ()))
        state: list[Clock | None] = [None] * len(units.algorithm.tb_rank)
        kept: dict[int, Clock] = {}
        arriving: dict[int, Clock] = {}
        blocks, partners = units.threadblock[order].tolist(), units.partner[order].tolist()
        for unit, block, peer in zip(order, blocks, partners, strict=True):
            clock = clocks.later(state[block], arriving.pop(unit, None))
            for last in waits.get(unit, ()):
                clock = clocks.later(clock, kept.get(last))
                awaited[last] -= 1
                if not awaited[last]:
                    kept.pop(last, None)
            if unit in columns:
                clock = clocks.marked(clock, columns[unit], unit)
            state[block] = clock
            if clock is not None:
                if peer != NOTHING:
                    arriving[peer] = clock
                if unit in awaited:
                    kept[unit] = clock
            yield unit, clock


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
