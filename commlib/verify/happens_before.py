"""Happens-before: does unit a end before unit b begins, in every run?

It is threadblock order + dependences + each message from its send to its receive. Three ways to know, cheapest first:

1. A search backward from b over the dependences of its rank, which ``search`` does for all pairs at once: nearly all
   pairs need only the dependences of b itself. Its work is bounded, so that some pairs may stay open.
2. For those, vector clocks over threadblock order and dependences, one rank after another; for pairs that these do
   not order, over messages too and all ranks. A clock has a component only for the threadblocks that are asked
   about, and is a dictionary of what has been reached: cheap where little is reached, as in direct exchanges.
3. Where dictionaries grow past a budget, the same clocks as arrays, in one pass for each ``COMPONENTS`` threadblocks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from commlib.ir.algorithm import NOTHING, Ints
from commlib.verify.clocks import Clocks, DenseClocks, SparseClocks
from commlib.verify.dependences import OPEN, YES, Dependences
from commlib.verify.units import Units

COMPONENTS = 1024
"""Threadblocks asked about in one pass with arrays: a clock has at most 4 * COMPONENTS bytes."""
SPARSE_WORK = 8
"""Dictionary entries that may be copied per unit before arrays take over."""

Clock = TypeVar("Clock")


class HappensBefore:
    """Answers for one algorithm; ``order`` is a topological order of its units, ``position`` its inverse."""

    def __init__(self, units: Units, order: list[int], position: Ints) -> None:
        self._units = units
        self._order = np.array(order, dtype=np.int64)
        self._position = position

    def ask(self, before: Ints, after: Ints) -> npt.NDArray[np.bool_]:
        """For each pair of units of one rank, whether the first happens before the second.

        The pairs must be in topological order, and of different threadblocks.
        """
        found = Dependences(self._units, self._position).search(before, after)
        answer: npt.NDArray[np.bool_] = found == YES
        for order, pairs in self._by_rank(before, np.flatnonzero(found == OPEN)):
            answer[pairs] = self._by_clocks(order, before[pairs], after[pairs], messages=False)
        left = np.flatnonzero(~answer)
        if len(left):
            answer[left] = self._by_clocks(self._order, before[left], after[left], messages=True)
        return answer

    def _by_rank(self, before: Ints, pairs: Ints) -> Iterator[tuple[Ints, Ints]]:
        """(the order of a rank's units, those of the pairs that are of this rank)."""
        a, units = self._units.algorithm, self._units
        rank = a.tb_rank[units.threadblock[before[pairs]]]
        for r in np.unique(rank).tolist():
            low, high = units.first[a.tb_start[a.rank_start[r : r + 2]]].tolist()
            yield low + np.argsort(self._position[low:high]), pairs[rank == r]

    def _by_clocks(self, order: Ints, before: Ints, after: Ints, messages: bool) -> npt.NDArray[np.bool_]:
        """The answers by clocks along an order, through ``messages`` or not."""
        sources, column = np.unique(self._units.threadblock[before], return_inverse=True)
        sparse = self._pass(order, before, after, column, SparseClocks(SPARSE_WORK * len(order)), messages)
        if sparse is not None:
            return sparse
        answer = np.zeros(len(before), dtype=bool)
        for low in range(0, len(sources), COMPONENTS):
            inside = np.flatnonzero((column >= low) & (column < low + COMPONENTS))
            clocks = DenseClocks(min(COMPONENTS, len(sources) - low))
            answer[inside] = self._pass(order, before[inside], after[inside], column[inside] - low, clocks, messages)
        return answer

    def _pass(
        self, order: Ints, before: Ints, after: Ints, column: Ints, clocks: Clocks[Clock], messages: bool
    ) -> npt.NDArray[np.bool_] | None:
        """Carry clocks along the part of the order between the first and the last unit asked about.

        None when the clocks' budget does not allow it.
        """
        answer = np.zeros(len(before), dtype=bool)
        queries: dict[int, list[int]] = defaultdict(list)
        for i, unit in enumerate(after.tolist()):
            queries[unit].append(i)
        ends = int(self._position[before].min()), int(self._position[after].max()) + 1
        begin, end = np.searchsorted(self._position[order], ends)
        wanted = list(zip(before.tolist(), column.tolist(), strict=True))
        for unit, clock in self._along(order[begin:end], dict(wanted), clocks, messages):
            if clocks.exhausted:
                return None
            if unit in queries and clock is not None:
                for i in queries[unit]:
                    source, component = wanted[i]
                    answer[i] = clocks.last(clock, component) >= source
        return answer

    def _along(
        self, stretch: Ints, columns: dict[int, int], clocks: Clocks[Clock], messages: bool
    ) -> Iterator[tuple[int, Clock | None]]:
        """(unit, clock) for the units of a stretch of the topological order.

        Component c of a unit's clock is the last unit of threadblock c that happens before it or is it; only units
        in ``columns`` count, and a threadblock that none of them has reached has None.
        """
        units = self._units
        waits, order = units.waits, stretch.tolist()
        awaited = Counter(last for unit in order for last in waits.get(unit, ()))
        state: list[Clock | None] = [None] * len(units.algorithm.tb_rank)
        kept: dict[int, Clock] = {}
        arriving: dict[int, Clock] = {}
        blocks = units.threadblock[stretch].tolist()
        partners = units.partner[stretch].tolist() if messages else [NOTHING] * len(order)
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
