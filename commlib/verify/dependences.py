"""A search backward over the dependences of a rank: does threadblock order with dependences order a before b?

From b it goes to the last step of its threadblock that has dependences, from there to those dependences and to the
step with dependences before it, and so on until a dependence is a or comes after a in a's threadblock. Whatever
comes before a in a topological order is left out. All pairs go one round at a time, on columns.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from commlib.ir.algorithm import NOTHING, Ints
from commlib.verify.units import Units

NO, YES, OPEN = range(3)
"""What a search finds: OPEN where its work was used up."""
WORK = 4
"""Dependences that may be visited, per pair and dependence of the algorithm."""
LEAST_WORK = 8192
ROUND = 256
"""What a round costs beyond the dependences visited in it, in such visits."""


class Dependences:
    """The dependences of all ranks; ``position`` is each unit's place in a topological order."""

    def __init__(self, units: Units, position: Ints) -> None:
        a = units.algorithm
        self._units = units
        self._position = position
        self._when = position[units.first[:-1]]
        self._count = np.diff(a.dep_start)
        steps = np.arange(a.step_count)
        recent = np.maximum.accumulate(np.where(self._count > 0, steps, NOTHING))
        start = a.tb_start[a.step_threadblock]
        self._recent = np.where(recent >= start, recent, NOTHING)
        """The last step of the threadblock, up to this one, that has dependences."""
        self._earlier = np.where(steps > start, np.roll(self._recent, 1), NOTHING)
        self._edges = np.sort(np.repeat(steps, self._count) * a.step_count + a.dep)

    def search(self, before: Ints, after: Ints) -> npt.NDArray[np.int64]:
        """YES, NO or OPEN for each pair of units (of one rank, in topological order, of different threadblocks)."""
        source, since = self._units.step[before], self._position[before]
        answer = np.full(len(before), NO)
        pair, at = np.arange(len(before)), self._recent[self._units.step[after]]
        work = LEAST_WORK + WORK * (len(before) + len(self._edges))
        while True:
            near = (at != NOTHING) & (self._when[at] > since[pair])
            pair, at = pair[near], at[near]
            answer[pair[self._names(at, source[pair])]] = YES
            pair, at = pair[answer[pair] == NO], at[answer[pair] == NO]
            work -= int(self._count[at].sum()) + ROUND
            if not len(pair) or work < 0:
                answer[pair] = OPEN
                return answer
            pair, at = self._behind(pair, at, source)

    def _names(self, at: Ints, source: Ints) -> npt.NDArray[np.bool_]:
        """Whether the step has a dependence on the source step or a later one of the source's threadblock."""
        if not len(self._edges):
            return np.zeros(len(at), dtype=bool)
        a = self._units.algorithm
        low = at * a.step_count + source
        place = np.searchsorted(self._edges, low)
        found = self._edges[np.minimum(place, len(self._edges) - 1)]
        end = a.tb_start[a.step_threadblock[source] + 1]
        return (found >= low) & (found < at * a.step_count + end)

    def _behind(self, pair: Ints, at: Ints, source: Ints) -> tuple[Ints, Ints]:
        """One round backward: the steps with dependences next behind ``at``, once per pair."""
        a, count = self._units.algorithm, self._count[at]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        dep, of = a.dep[np.repeat(a.dep_start[at], count) + within], np.repeat(pair, count)
        other = a.step_threadblock[dep] != a.step_threadblock[source[of]]
        steps = np.concatenate([self._earlier[at], self._recent[dep[other]]])
        pairs = np.concatenate([pair, of[other]])
        known = steps != NOTHING
        return np.divmod(np.unique(pairs[known] * a.step_count + steps[known]), a.step_count)
