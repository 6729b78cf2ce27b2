"""Events: happens-before of a program with one-sided steps, with the moments at which ranks enter and leave the call.

An event is a unit, the *entry* of a rank (before all that it does) or its *exit* (after all). Order comes from
threadblocks, dependences, each message from its send to its receive, and each signal to the wait that sees it. Room
in a FIFO orders nothing, as everywhere in the verifier.

"Does x happen before y" is answered for many pairs in one walk along a topological order. Each event carries the set
of those x, of the ones asked about, that happen before it or are it: a whole number whose bits are the x. Programs
with one-sided steps are made for the ranks of a host, so that these sets stay small; O(events * x / 64) word
operations, in passes of ``PASS`` x each so that memory stays bounded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator
from itertools import chain

import numpy as np
import numpy.typing as npt

from commlib.ir.algorithm import NOTHING, Ints
from commlib.verify.units import Units

PASS = 8192
"""Events asked about in one walk."""


class Events:
    """The events of an Algorithm; ``order`` is a topological order of its units.

    Units keep their number; then come the ranks' entries and then their exits. ``position`` is each event's place in
    a topological order of all.
    """

    def __init__(self, units: Units, order: list[int]) -> None:
        self._units = units
        self._order = order
        ranks, count = units.algorithm.ranks, len(units)
        self.entry: Ints = count + np.arange(ranks, dtype=np.int64)
        self.exit: Ints = self.entry + ranks
        self.position = np.empty(count + 2 * ranks, dtype=np.int64)
        self.position[np.concatenate([self.entry, np.array(order, dtype=np.int64), self.exit])] = np.arange(
            len(self.position)
        )

    def __len__(self) -> int:
        return len(self.position)

    def before(self, first: Ints, then: Ints) -> npt.NDArray[np.bool_]:
        """For each pair of events, whether the first happens before the second or is it."""
        possible = np.flatnonzero(self.position[first] <= self.position[then])
        answer = np.zeros(len(first), dtype=bool)
        sources, column = np.unique(first[possible], return_inverse=True)
        for low in range(0, len(sources), PASS):
            inside = (column >= low) & (column < low + PASS)
            asked = possible[inside]
            answer[asked] = self._walk(sources[low : low + PASS], column[inside] - low, then[asked])
        return answer

    def all_entered(self) -> bool:
        """Whether every rank has entered before any leaves."""
        columns = {event: rank for rank, event in enumerate(self.entry.tolist())}
        everyone = (1 << len(columns)) - 1
        return all(known == everyone for _, known in self._known(columns, set(self.exit.tolist())))

    def _walk(self, sources: Ints, column: Ints, then: Ints) -> npt.NDArray[np.bool_]:
        queries: dict[int, list[int]] = defaultdict(list)
        for i, event in enumerate(then.tolist()):
            queries[event].append(i)
        answer, bits = np.zeros(len(then), dtype=bool), column.tolist()
        columns = {event: bit for bit, event in enumerate(sources.tolist())}
        for event, known in self._known(columns, queries):
            for i in queries[event]:
                answer[i] = known >> bits[i] & 1
        return answer

    def _known(self, columns: dict[int, int], wanted: Container[int]) -> Iterator[tuple[int, int]]:
        """(event, the set of events of ``columns`` that happen before it or are it) for the wanted units and exits."""
        units, a = self._units, self._units.algorithm
        entered = [1 << columns[event] if event in columns else 0 for event in self.entry.tolist()]
        state = [entered[rank] for rank in a.tb_rank.tolist()]
        waits, awaited = units.waits, set(chain.from_iterable(units.waits.values()))
        blocks, partners = units.threadblock.tolist(), units.partner.tolist()
        kept: dict[int, int] = {}
        arriving: dict[int, int] = {}
        for unit in self._order:
            block = blocks[unit]
            known = state[block] | arriving.pop(unit, 0)
            for last in waits.get(unit, ()):
                known |= kept[last]
            if unit in columns:
                known |= 1 << columns[unit]
            state[block] = known
            if partners[unit] != NOTHING:
                arriving[partners[unit]] = known
            if unit in awaited:
                kept[unit] = known
            if unit in wanted:
                yield unit, known
        yield from self._at_exits(entered, state)

    def _at_exits(self, entered: list[int], state: list[int]) -> Iterator[tuple[int, int]]:
        """The exits of all ranks: after the entry of the rank and the last units of its threadblocks."""
        start = self._units.algorithm.rank_start.tolist()
        for rank, event in enumerate(self.exit.tolist()):
            known = entered[rank]
            for block in range(start[rank], start[rank + 1]):
                known |= state[block]
            yield event, known
