"""Spread: routes for any items, each the cheapest tree when the load that others put on slots counts as waiting time.

The heuristic that every engine can start from: it knows relays, works for one destination or many, and never fails
where a route exists. After a first round each item is taken out and routed again, now that it knows the others.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import replace

from synth.engine import Budget
from synth.errors import SynthesisError
from synth.greedy import greedy, is_over
from synth.listing import list_schedule
from synth.problem import NEVER, Problem
from synth.schedule import Transfer, makespan

WEIGHTS = (1.0, 0.25, 3.0, 0.0)
"""How much of the load on a slot counts as waiting time, by try."""


def first_plan(problem: Problem, budget: Budget, bound: int = 0) -> tuple[Transfer, ...]:
    """The best plan that the heuristics find: the greedy and spread routes, listed. Deterministic, but for the clock.

    Raises:
        SynthesisError: a destination cannot be reached; the message names item, origin and rank.
    """
    # Its first try may take all the time there is; the routes below are worth half of it.
    best = greedy(problem, replace(budget, seconds=budget.left / 2, began=time.monotonic()), bound)
    for weight in WEIGHTS:
        if best is not None and (makespan(problem, best) <= bound or budget.left == 0):
            break
        routes = spread_routes(problem, weight, budget=budget)
        plan = list_schedule(problem, routes, bound, tries=4, budget=budget)
        if best is None or makespan(problem, plan) < makespan(problem, best):
            best = plan
    return best or ()


def spread_routes(
    problem: Problem, weight: float = 1.0, rounds: int = 2, budget: Budget | None = None
) -> dict[int, tuple[int, ...]]:
    """For each representative the links of a tree from its origin to its destinations.

    What is not routed yet when the clock of ``budget`` ends takes trees that are found at one go.
    Complexity: O(rounds x items x destinations x links log ranks).

    Raises:
        SynthesisError: a destination cannot be reached.
    """
    load: dict[int, int] = {}
    routes: dict[int, tuple[int, ...]] = {}
    farthest = {item: max(_reach(problem, item)) for item in problem.representatives}
    order = sorted(problem.representatives, key=lambda item: (-farthest[item], item))
    for turn in range(rounds):
        for place, item in enumerate(order):
            if budget is not None and is_over(problem, budget):
                return routes if turn else routes | _hasty(problem, order[place:], load)
            _count(problem, item, routes.get(item, ()), load, -1)
            routes[item] = _tree(problem, item, load, weight)
            _count(problem, item, routes[item], load, 1)
    return routes


def _hasty(problem: Problem, items: Sequence[int], load: dict[int, int]) -> dict[int, tuple[int, ...]]:
    """A tree for each item, found at one go; items that go from and to the same ranks share one. Adds to ``load``.

    Complexity: O(kinds of items x links log links + transfers).
    """
    known: dict[tuple[object, ...], tuple[int, ...]] = {}
    routes = {}
    for item in items:
        demanded = problem.demand.items[item]
        alike = (demanded.origin, demanded.size, demanded.destinations, None if problem.rules.allowed is None else item)
        if alike not in known:
            via = _grown(problem, item, load)
            route: dict[int, int] = {}
            for rank in demanded.destinations:
                while rank != demanded.origin and rank not in route:
                    route[rank] = via[rank]
                    rank = problem.ends[via[rank]][0]
            known[alike] = tuple(route.values())
        routes[item] = known[alike]
        _count(problem, item, routes[item], load, 1)
    return routes


def _grown(problem: Problem, item: int, load: dict[int, int]) -> dict[int, int]:
    """The last link to every rank that can be reached: by the quickest way to it for one destination.

    For several the tree grows by the link that takes least (Prim), since one that is slow should be crossed once.
    """
    demanded = problem.demand.items[item]
    uses, latency = problem.uses[demanded.size], problem.latencies[demanded.size]
    many = len(demanded.destinations) > 1
    via: dict[int, int] = {}
    queue = [(0, 0, demanded.origin, -1)]
    while queue:
        _, reached, rank, link = heapq.heappop(queue)
        if rank in via:
            continue
        via[rank] = link
        for onward in problem.outgoing[rank]:
            target = problem.ends[onward][1]
            if target not in via and problem.may_use(item, onward):
                step = latency[onward] + max((load.get(slot, 0) for slot, _ in uses[onward]), default=0)
                heapq.heappush(queue, (step if many else reached + step, reached + step, target, onward))
    return via


def _reach(problem: Problem, item: int) -> list[int]:
    distances = problem.distances(item)
    demanded = problem.demand.items[item]
    for rank in demanded.destinations:
        if distances[rank] >= NEVER:
            raise SynthesisError(
                f"{problem.topology.name}: nothing that starts on rank {demanded.origin} (item {item}) can reach rank "
                f"{rank} over the links that are left",
                item=item,
                origin=demanded.origin,
                rank=rank,
            )
    return [distances[rank] for rank in demanded.destinations]


def _count(problem: Problem, item: int, route: tuple[int, ...], load: dict[int, int], sign: int) -> None:
    uses = problem.uses[problem.demand.items[item].size]
    for link in route:
        for slot, ticks in uses[link]:
            load[slot] = load.get(slot, 0) + sign * ticks


def _tree(problem: Problem, item: int, load: dict[int, int], weight: float) -> tuple[int, ...]:
    """Destinations join the tree one after the other, the cheapest to reach first."""
    demanded = problem.demand.items[item]
    missing = set(demanded.destinations)
    route: list[int] = []
    own: dict[int, int] = {}
    known = {demanded.origin: 0.0}
    while missing:
        cost, via = _cheapest(problem, item, known, missing, load, own, weight)
        rank = min(missing & via.keys(), key=lambda r: (cost[r], r))
        path = []
        while rank not in known:
            path.append(via[rank])
            rank = problem.ends[via[rank]][0]
        for link in reversed(path):
            target = problem.ends[link][1]
            known[target] = cost[target]
            missing.discard(target)
            for slot, ticks in problem.uses[demanded.size][link]:
                own[slot] = own.get(slot, 0) + ticks
        route += reversed(path)
    return tuple(route)


def _cheapest(
    problem: Problem,
    item: int,
    known: dict[int, float],
    missing: set[int],
    load: dict[int, int],
    own: dict[int, int],
    weight: float,
) -> tuple[dict[int, float], dict[int, int]]:
    """Dijkstra from the tree to the nearest missing rank: (cost, last link) of the ranks seen on the way."""
    size = problem.demand.items[item].size
    uses, latency = problem.uses[size], problem.latencies[size]
    cost, via = dict(known), dict[int, int]()
    queue = [(reached, rank) for rank, reached in sorted(known.items())]
    heapq.heapify(queue)
    while queue:
        reached, rank = heapq.heappop(queue)
        if reached > cost[rank]:
            continue
        if rank in missing:
            break
        for link in problem.outgoing[rank]:
            target = problem.ends[link][1]
            if target in known or not problem.may_use(item, link):
                continue
            waits = (weight * load.get(slot, 0) + own.get(slot, 0) for slot, _ in uses[link])
            waiting = max(waits, default=0.0)
            there = reached + latency[link] + waiting
            if there < cost.get(target, float(NEVER)):
                cost[target], via[target] = there, link
                heapq.heappush(queue, (there, target))
    return cost, via
