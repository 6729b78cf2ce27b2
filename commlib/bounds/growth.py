"""The growth bound: how fast an item can multiply.

A rank that has an item can pass it on through each of its ways out (a port, or single links), one transfer at a time.
So the ranks that have it can at best multiply like this: each, from when it has the item, makes one more appear after
the least latency and then one every ``ticks``, on each of ``ways`` ways. No schedule brings an item to n ranks before
the n-th arrival of that process, the greedy broadcast of the postal model (Bar-Noy and Kipnis, 1992), whatever the
ranks and relays. With K items that begin on one rank, one of them leaves it only after the others have passed.

Read backwards (for demands that reduce), a transfer takes its way at its end: the arrivals are as far apart, and the
last of K items has arrived somewhere only after K transfers.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from commlib.bounds.bound import Bound, Json, bound, microseconds
from commlib.bounds.cover import by_position, links_alone
from commlib.bounds.work import Work, uses
from commlib.topology.costs import Ints

_MOST_WAYS = 1 << 17
"""Ranks x ways out beyond which the process is not played."""


@dataclass(frozen=True)
class Ways:
    """How ranks pass items on: on ``ways`` ways at most, ``ticks`` apart at least, arriving after ``latency``."""

    ways: int
    ticks: int
    latency: int

    def nth(self, number: int) -> int:
        """When the ``number``-th rank can have the item at the earliest. O(number x ways x log)."""
        upcoming = [self.latency] * min(self.ways, number)
        time = 0
        for _ in range(number):
            time = heapq.heappop(upcoming)
            heapq.heappush(upcoming, time + self.ticks)
            for _ in range(self.ways):
                heapq.heappush(upcoming, time + self.latency)
        return time


@dataclass(frozen=True)
class GrowthCertificate:
    """``items`` items of rank ``origin`` must each come to ``ranks`` other ranks, in the ways of ``ways``."""

    origin: int
    items: int
    ranks: int
    ways: Ways
    ticks: int
    tick: float

    def text(self) -> str:
        """What must spread, and how fast it can."""
        what = f"{self.items} items of" if self.items > 1 else "an item of"
        each = microseconds(self.ways.ticks, self.tick)
        passed = f"a rank passes on at most {self.ways.ways} at once, every {each}"
        after = f"each arrives after {microseconds(self.ways.latency, self.tick)} at the earliest"
        return f"{what} rank {self.origin} must come to {self.ranks} ranks: {passed}, {after}"

    def as_json(self) -> Json:
        """The numbers of the argument, times in ticks."""
        return {
            "origin": self.origin,
            "items": self.items,
            "ranks": self.ranks,
            "ways": self.ways.ways,
            "apart": self.ways.ticks,
            "latency": self.ways.latency,
            "ticks": self.ticks,
            "tick": self.tick,
        }


def growth_bound(work: Work) -> Bound | None:
    """The best growth bound over single items, and over all items of one rank; None where it says nothing.

    Complexity: O(uses) for each set of message sizes, and O(ranks x ways x log) for each number of destinations.
    """
    best: GrowthCertificate | None = None
    tables: dict[tuple[int, ...], dict[int, Ways]] = {}
    for origin, items in _by_origin(work).items():
        sizes = tuple(sorted({work.demand.items[item].size for item in items}))
        if sizes not in tables:
            tables[sizes] = _table(work, sizes)
        reached = [len(work.demand.items[item].destinations) for item in items]
        for many, ranks in ((1, max(reached)), (len(items), min(reached))):
            found = _grown(work, tables[sizes], origin, many, ranks)
            if found is not None and (best is None or found.ticks > best.ticks):
                best = found
    return None if best is None else bound("growth", best.ticks, work.costs, best)


def _by_origin(work: Work) -> dict[int, list[int]]:
    """The items that must go somewhere, by the rank where they begin; ranks worth looking at only."""
    found: dict[int, list[int]] = {}
    looked_at = set(work.ranks)
    for number, item in enumerate(work.demand.items):
        if item.destinations and item.origin in looked_at:
            found.setdefault(item.origin, []).append(number)
    return found


def _grown(work: Work, table: dict[int, Ways], origin: int, many: int, ranks: int) -> GrowthCertificate | None:
    own = table.get(origin)
    if own is None:
        return None
    ways = Ways(*(choose(each) for choose, each in zip((max, min, min), _columns(table), strict=True)))
    if not ways.ticks or ways.ways * ranks > _MOST_WAYS:
        return None
    before = (many - 1) // own.ways * own.ticks
    if work.demand.reduces:
        before = max(0, before + own.ticks - ways.latency)
    return GrowthCertificate(origin, many, ranks, ways, before + ways.nth(ranks), work.costs.tick)


def _columns(table: dict[int, Ways]) -> tuple[list[int], list[int], list[int]]:
    rows = table.values()
    return [w.ways for w in rows], [w.ticks for w in rows], [w.latency for w in rows]


def _table(work: Work, sizes: Sequence[int]) -> dict[int, Ways]:
    """The ways out of every rank that has any; links are in the order of their sources."""
    taken = np.flatnonzero(work.links)
    if not len(taken):
        return {}
    groups = np.split(taken, np.flatnonzero(np.diff(work.costs.source[taken])) + 1)
    return {int(work.costs.source[links[0]]): _ways_of(work, links, sizes) for links in groups}


def _ways_of(work: Work, links: Ints, sizes: Sequence[int]) -> Ways:
    """The fewest resources that all links out of a rank take, and how long they take them at least."""
    costs = work.costs
    place, use = uses(costs, links)
    resource = costs.use_resource[use]
    cover = min([links_alone(resource, costs.links), *by_position(place, resource)], key=len)
    ticks = costs.use_ticks[use][np.isin(resource, np.array(cover))][:, list(sizes)]
    return Ways(len(cover), int(ticks.min()), int(costs.latency[links][:, list(sizes)].min()))
