"""Allreduce through trees: reduce each chunk to a root, broadcast it back, pipelined over chunks.

Two trees instead of a reducescatter and an allgather: fewer hops in sequence where messages are small. The tree of a
root grows as a broadcast would run (each rank that has the chunk sends it on at once, always over the link that brings
it to a new rank first, given what the links before have taken), which is optimal where all links are alike (Bar-Noy
and Kipnis, "Designing broadcasting algorithms in the postal model", 1992). Reductions run along the tree that grows on
the links turned round.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from commlib import collectives
from commlib.topology import CostTable
from synth.errors import SynthesisError
from synth.moves import Move, Moves, Parcel, ends
from synth.retiming import Prices, better, shortest, turned

CANDIDATES = 64
"""Roots that are tried at most, evenly spread over the ranks."""
AFFORDABLE = 1 << 22
"""Links that are looked at for all candidates together, about."""
_Edge = tuple[int, int]


def tree_allreduce(costs: CostTable, chunks: int, roots: int | None = None) -> Moves:
    """Allreduce of ``chunks`` chunks (of size class 0) through the trees of ``roots`` roots, the chunks in turn.

    Without ``roots``, one root and as many as there are chunks are tried, and the shorter is taken. Roots are those
    whose two trees are done first. Complexity: O(candidates x links log links + chunks x ranks log (chunks x ranks)).

    Raises:
        SynthesisError: no rank both reaches all others and is reached by them.
    """
    trees = _best_trees(costs)
    many = min(chunks, len(trees)) if roots is None else max(1, min(roots, len(trees)))
    found = _through(costs, chunks, trees[:many])
    return better(_through(costs, chunks, trees[:1]), found) if roots is None and many > 1 else found


def _through(costs: CostTable, chunks: int, trees: Sequence[tuple[list[_Edge], list[_Edge]]]) -> Moves:
    """The moves through these trees: (edges towards the root, edges away from it), each in an order of dependences."""
    slots = [dict.fromkeys(range(costs.ranks), (chunk,)) for chunk in range(chunks)]
    rows = []
    for chunk in range(chunks):
        towards, away = trees[chunk % len(trees)]
        rows += [Move(chunk, source, target, True) for source, target in towards]
        rows += [Move(chunk, source, target, False) for source, target in away]
    parcels = tuple(Parcel(each, each) for each in slots)
    return shortest(collectives.allreduce(costs.ranks, chunks), costs, parcels, rows)


def _best_trees(costs: CostTable) -> list[tuple[list[_Edge], list[_Edge]]]:
    """The two trees of each candidate, best first; of equal ones the lower root."""
    away_from, towards_by = _Growth(costs), _Growth(turned(costs))
    found = []
    candidates = max(1, min(costs.ranks, CANDIDATES, AFFORDABLE // max(1, costs.links)))
    for root in range(0, costs.ranks, -(-costs.ranks // candidates)):
        (away, away_end), (towards, towards_end) = away_from.tree(root), towards_by.tree(root)
        if len(away) == len(towards) == costs.ranks - 1:
            up = [(target, source) for source, target in reversed(towards)]
            found.append((away_end + towards_end, root, (up, away)))
    if not found:
        raise SynthesisError("no rank reaches all others and is reached by them: an allreduce has no root")
    return [trees for _, _, trees in sorted(found, key=lambda entry: entry[:2])]


class _Growth:
    """Trees on the links of a cost table, for chunks of size class 0."""

    def __init__(self, costs: CostTable) -> None:
        self._ranks, self._ends, prices = costs.ranks, ends(costs), Prices.of(costs)
        self._latency, self._uses = prices.latency[0], prices.uses[0]
        self._leaving: list[list[int]] = [[] for _ in range(costs.ranks)]
        for link, (source, _) in enumerate(self._ends):
            self._leaving[source].append(link)

    def tree(self, root: int) -> tuple[list[_Edge], int]:
        """The edges of a root's tree, parents first, and when all that it reaches are reached. O(links log links)."""
        there: dict[int, int] = {root: 0}
        free: dict[int, int] = {}
        edges: list[_Edge] = []
        queue: list[tuple[int, int, int]] = []
        self._offer(queue, root, 0)
        while queue and len(there) < self._ranks:
            arrival, link, start = heapq.heappop(queue)
            source, target = self._ends[link]
            if target in there:
                continue
            possible = max([start, *(free.get(slot, 0) for slot, _ in self._uses[link])])
            if possible > start:
                heapq.heappush(queue, (possible + self._latency[link], link, possible))
                continue
            free.update((slot, start + ticks) for slot, ticks in self._uses[link])
            there[target] = arrival
            edges.append((source, target))
            self._offer(queue, target, arrival)
        return edges, max(there.values())

    def _offer(self, queue: list[tuple[int, int, int]], rank: int, now: int) -> None:
        """A rank has the chunk now and could send it over any of its links."""
        for link in self._leaving[rank]:
            heapq.heappush(queue, (now + self._latency[link], link, now))
