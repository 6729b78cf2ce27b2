"""Shortest store-and-forward times between ranks, many sources at once, in whole ticks.

Bellman-Ford over columns: each round relaxes every link of every source at a time, and stops when nothing changes
(after as many rounds as a shortest path has links, and one). With thousands of links that beats a heap in Python.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from commlib.topology.costs import CostTable, Ints

FAR = 1 << 61
"""Further than any rank that can be reached; two of them still fit 63 bits."""
_BLOCK = 1 << 22
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Graph:
    """Weighted links sorted by the rank they lead to; ``first`` and ``heads`` delimit the runs of one such rank."""

    ranks: int
    tail: Ints
    weight: Ints
    first: Ints
    heads: Ints

    def from_rows(self, start: Ints) -> Ints:
        """Shape (rows, ranks): the earliest arrivals, given the times at which each rank has the item at first.

        Complexity: O(rows x links x links of the longest shortest path).
        """
        if not len(self.tail):
            return start.copy()
        step = max(1, _BLOCK // len(self.tail))
        blocks = [self._spread(start[low : low + step]) for low in range(0, len(start), step)]
        return np.concatenate(blocks) if blocks else start.copy()

    def _spread(self, start: Ints) -> Ints:
        best = start.copy()
        while True:
            reached = np.minimum.reduceat(best[:, self.tail] + self.weight, self.first, axis=1)
            better = np.minimum(best[:, self.heads], reached)
            if np.array_equal(better, best[:, self.heads]):
                return best
            best[:, self.heads] = better

    def from_ranks(self, sources: Ints) -> Ints:
        """Shape (sources, ranks): times from each source; FAR where there is no way."""
        start = np.full((len(sources), self.ranks), FAR, dtype=np.int64)
        start[np.arange(len(sources)), sources] = 0
        return np.minimum(self.from_rows(start), FAR)

    def nearest(self, sources: Ints) -> Ints:
        """Shape (ranks,): the time from the nearest of the sources; FAR where there is no way."""
        start = np.full((1, self.ranks), FAR, dtype=np.int64)
        start[0, sources] = 0
        row: Ints = np.minimum(self.from_rows(start)[0], FAR)
        return row


def graph(costs: CostTable, latency: Ints, links: Mask | None = None, backwards: bool = False) -> Graph:
    """The links of a cost table (those of ``links`` only), link e weighed by ``latency[e]``.

    ``backwards`` turns the links round, so that distances are those *to* the sources.
    """
    chosen = np.arange(costs.links) if links is None else np.flatnonzero(links)
    tail, head = costs.source[chosen], costs.target[chosen]
    if backwards:
        tail, head = head, tail
    order = np.argsort(head, kind="stable")
    head = head[order]
    first = np.flatnonzero(np.r_[True, head[1:] != head[:-1]]) if len(head) else np.zeros(0, dtype=np.int64)
    return Graph(costs.ranks, tail[order], latency[chosen[order]], first, head[first])


def path(costs: CostTable, size: int, links: Mask | None, times: Ints, source: int, destination: int) -> list[int]:
    """The ranks of a shortest path, read back from the times from its source; the lowest rank where several fit.

    ``times`` is a row of ``Graph.from_ranks``. Links that take no time are crossed once at most.
    """
    usable = np.ones(costs.links, dtype=bool) if links is None else links
    ranks = [destination]
    while times[ranks[-1]] > 0:
        into = np.flatnonzero((costs.target == ranks[-1]) & usable)
        fit = into[times[costs.source[into]] + costs.latency[into, size] == times[ranks[-1]]]
        fresh = [int(rank) for rank in costs.source[fit] if int(rank) not in ranks]
        if not fresh:
            break
        ranks.append(fresh[0])
    return ranks[::-1] if ranks[-1] == source else [source, *ranks[::-1]]
