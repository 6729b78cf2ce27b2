"""Balanced routes: every item takes the ways on which slots carry least, and again until no change helps.

What a slot carries is a lower bound of the makespan, so routes with even loads are what a good schedule needs. The sum
of the fourth powers of the loads is made smaller, item by item: a smooth stand-in for the largest load. Ways that are
too long for a schedule of the length in question are left out, and chance breaks ties, so that not all items use the
links in the same order.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

from synth.engine import Budget
from synth.joint import Window, windows
from synth.problem import Problem

_POWER = 4
Way = tuple[int, ...]


def balanced_routes(problem: Problem, limit: int, budget: Budget, rounds: int = 8) -> dict[int, Way] | None:
    """Routes of the representatives, each way short enough for ``limit`` ticks; None where none was found.

    Deterministic for a given seed unless the clock ends first. Complexity: O(rounds x items x destinations x links
    x log links).
    """
    found = windows(problem, limit)
    if found is None:
        return None
    balance = _Balance(problem, limit, found, random.Random(budget.seed))
    for attempt in range(rounds):
        before = dict(balance.routes)
        for item in problem.representatives:
            if attempt and budget.left == 0:
                return balance.routes
            if not _reroute(balance, item):
                return None
        if before == balance.routes:
            break
    return balance.routes


@dataclass
class _Balance:
    """The routes so far and what they put on each slot, in ticks."""

    problem: Problem
    limit: int
    windows: dict[int, Window]
    chance: random.Random
    load: dict[int, int] = field(default_factory=dict)
    routes: dict[int, Way] = field(default_factory=dict)

    def put(self, item: int, links: Way, sign: int) -> None:
        """Add (sign 1) or take away (-1) the links of an item."""
        uses = self.problem.uses[self.problem.demand.items[item].size]
        for link in links:
            for slot, ticks in uses[link]:
                self.load[slot] = self.load.get(slot, 0) + sign * ticks

    def price(self, item: int, link: int) -> int:
        """What one more transfer adds to the sum of powers; at least 1, so that no way goes in circles."""
        total = 1
        for slot, ticks in self.problem.uses[self.problem.demand.items[item].size][link]:
            load: int = self.load.get(slot, 0)
            total += (load + ticks) ** _POWER - load**_POWER
        return total

    def powers(self) -> int:
        """What is made small."""
        return sum(load**_POWER for load in self.load.values())


def _reroute(balance: _Balance, item: int) -> bool:
    """Route an item anew if that is better; False when it has no route and none was found."""
    old, before = balance.routes.get(item, ()), balance.powers()
    balance.put(item, old, -1)
    tree = _tree(balance, item)
    if tree is not None:
        balance.put(item, tree, 1)
        if not old or balance.powers() < before:
            balance.routes[item] = tree
            return True
        balance.put(item, tree, -1)
    balance.put(item, old, 1)
    return item in balance.routes


def _tree(balance: _Balance, item: int) -> Way | None:
    """Destinations, far ones first, each joined to the tree so far by its cheapest way that is short enough."""
    problem, window = balance.problem, balance.windows[item]
    demanded = problem.demand.items[item]
    latency = problem.latencies[demanded.size]
    into: dict[int, list[int]] = {}
    for link in window.links:
        into.setdefault(problem.ends[link][1], []).append(link)
    reached: dict[int, int] = {demanded.origin: 0}
    tree: Way = ()
    for rank in sorted(demanded.destinations, key=lambda r: (-window.head[r], r)):
        way = _way(balance, item, into, reached, rank)
        if way is None:
            break
        for link in way:
            source, target = problem.ends[link]
            reached[target] = reached[source] + latency[link]
        balance.put(item, way, 1)
        tree += way
    balance.put(item, tree, -1)
    return tree if reached.keys() >= set(demanded.destinations) else None


def _way(balance: _Balance, item: int, into: dict[int, list[int]], reached: dict[int, int], goal: int) -> Way | None:
    """The links of the cheapest way from the tree to ``goal``, found backwards; ties are broken by chance.

    A way is dropped once too little time is left for it. Only the cheapest way from each rank is known, so the search
    can miss a dearer one that is quick enough.
    """
    problem, head = balance.problem, balance.windows[item].head
    latency = problem.latencies[problem.demand.items[item].size]
    best: dict[int, tuple[int, float]] = {goal: (0, 0.0)}
    queue: list[tuple[int, float, int, int, Way]] = [(0, 0.0, 0, goal, ())]
    while queue:
        price, tie, there, rank, way = heapq.heappop(queue)
        if rank in reached:
            return way
        if (price, tie) > best[rank]:
            continue
        for link in into.get(rank, ()):
            source, longer = problem.ends[link][0], there + latency[link]
            if reached.get(source, head[source]) + longer <= balance.limit:
                key = (price + balance.price(item, link), balance.chance.random())
                if source not in best or key < best[source]:
                    best[source] = key
                    heapq.heappush(queue, (*key, longer, source, (link, *way)))
    return None
