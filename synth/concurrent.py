"""Concurrent flow: routes for items with one destination each (alltoall, scatter, gather) that load slots evenly.

The linear program sends all items of one origin as one commodity (source aggregation: origins x links + 1 variables,
by symmetry only one origin of each orbit) and makes the largest load on a slot smallest. Its flows are taken apart
into paths, each destination's items choose among those, and single items change path while that lowers the loads.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from synth.engine import Budget
from synth.errors import SynthesisError
from synth.problem import Problem
from synth.solver import Feasible, Limits, Model, Optimal, solve

LARGEST = 60_000
"""Variables of the linear program up to which it is tried."""
DUST = 1e-7
"""Flow below this share of an item is rounding."""
NOISE = 1e-3
"""Chance in the price of a link, relative, when ties are to be broken."""
PREFER_SHORT = 1e-4
"""Weight of the total load beside the largest one: of equal flows, those on short ways."""


@dataclass(frozen=True)
class Commodity:
    """Items of one origin and size that may use the same links."""

    origin: int
    size: int
    links: tuple[int, ...] = field(repr=False)
    items: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True)
class Flow:
    """What each commodity sends over each link (items), and the largest load on a slot in ticks."""

    commodities: tuple[Commodity, ...] = field(repr=False)
    amounts: tuple[dict[int, float], ...] = field(repr=False)
    load: float


def single(problem: Problem, items: Sequence[int]) -> bool:
    """Whether all items have one destination."""
    return all(len(problem.demand.items[item].destinations) == 1 for item in items)


def commodities(problem: Problem) -> tuple[Commodity, ...]:
    """The representatives by origin, size and the links that the sketch leaves them."""
    groups: dict[tuple[int, int, tuple[int, ...]], list[int]] = {}
    every = tuple(range(problem.costs.links))
    for item in problem.representatives:
        demanded = problem.demand.items[item]
        allowed = problem.rules.allowed is not None
        links = tuple(link for link in every if problem.may_use(item, link)) if allowed else every
        groups.setdefault((demanded.origin, demanded.size, links), []).append(item)
    return tuple(Commodity(*key, tuple(items)) for key, items in sorted(groups.items()))


def fractional_flow(problem: Problem, budget: Budget) -> Flow | None:
    """A maximum concurrent flow; None when it is too large, the clock ends first, or a destination is out of reach.

    Complexity: one linear program of commodities x links + 1 variables.
    """
    found = commodities(problem)
    if sum(len(each.links) for each in found) > LARGEST:
        return None
    model = Model()
    longest = model.variable(cost=1.0)
    unit = max(1, max(max(row, default=0) for row in problem.latencies))
    scale = PREFER_SHORT / (unit * max(1, len(problem.representatives)))
    slots: dict[int, list[tuple[int, float]]] = {}
    columns = []
    for each in found:
        latency, uses = problem.latencies[each.size], problem.uses[each.size]
        column = {link: model.variable(cost=scale * (latency[link] + 1e-3 * unit)) for link in each.links}
        _conserve(problem, each, column, model)
        for link, variable in column.items():
            for slot, ticks in uses[link]:
                slots.setdefault(slot, []).append((variable, ticks / unit))
        columns.append(column)
    for slot in sorted(slots):
        model.row([*_summed(slots[slot]), (longest, -1.0)], "<=", 0.0)
    answer = solve(model, Limits(max(0.01, budget.left), None, budget.threads, budget.seed))
    if not isinstance(answer, Optimal | Feasible):
        return None
    amounts = tuple({e: answer.values[v] for e, v in column.items() if answer.values[v] > DUST} for column in columns)
    return Flow(found, amounts, answer.values[longest] * unit)


def _summed(terms: list[tuple[int, float]]) -> list[tuple[int, float]]:
    total: dict[int, float] = {}
    for variable, value in terms:
        total[variable] = total.get(variable, 0.0) + value
    return list(total.items())


def _conserve(problem: Problem, each: Commodity, column: dict[int, int], model: Model) -> None:
    wanted: dict[int, int] = {}
    for item in each.items:
        rank = problem.demand.items[item].destinations[0]
        wanted[rank] = wanted.get(rank, 0) + 1
    for rank in range(problem.costs.ranks):
        if rank == each.origin:
            continue
        into = [(column[link], 1.0) for link in problem.incoming[rank] if link in column]
        out = [(column[link], -1.0) for link in problem.outgoing[rank] if link in column]
        model.row(into + out, "==", float(wanted.get(rank, 0)))


def path_routes(problem: Problem, budget: Budget, rounds: int = 12) -> dict[int, tuple[int, ...]] | None:
    """A path for each representative: from the flow, rounded, then improved; None as for ``fractional_flow``.

    Complexity: one linear program, then O(rounds x items x links log ranks).
    """
    flow = fractional_flow(problem, budget)
    if flow is None:
        return None
    loads = _Loads(problem, flow.load)
    routes: dict[int, tuple[int, ...]] = {}
    for each, amounts in zip(flow.commodities, flow.amounts, strict=True):
        for item, path in _rounded(problem, each, amounts, loads):
            routes[item] = path
            loads.add(each.size, path, 1)
    return loads.improved(routes, rounds)


def _rounded(
    problem: Problem, each: Commodity, amounts: dict[int, float], loads: _Loads
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """A path of the flow for each item: the widest, less what the items before it took. The flow is used up."""
    left = dict(amounts)
    # Far destinations first: their paths are the fewest.
    far = problem.distances(each.items[0])
    wanted = [(item, problem.demand.items[item].destinations[0]) for item in each.items]
    for item, rank in sorted(wanted, key=lambda pair: (-far[pair[1]], pair)):
        path = _widest(problem, each, left, rank)
        if path is None:
            path = loads.cheapest(item)
        yield item, path
        for link in path:
            left[link] = left.get(link, 0.0) - 1.0


def _widest(problem: Problem, each: Commodity, left: dict[int, float], rank: int) -> tuple[int, ...] | None:
    """The path whose narrowest link has most flow left, the shorter of equals; None where no flow is left."""
    width = {each.origin: float("inf")}
    via: dict[int, int] = {}
    queue = [(-width[each.origin], 0, each.origin)]
    done: set[int] = set()
    while queue:
        negative, hops, at = heapq.heappop(queue)
        if at in done:
            continue
        done.add(at)
        if at == rank:
            return _traced(problem, via, each.origin, rank)
        for link in problem.outgoing[at]:
            target, wide = problem.ends[link][1], min(-negative, round(left.get(link, 0.0), 6))
            if wide > DUST and target not in done and wide > width.get(target, 0.0):
                width[target], via[target] = wide, link
                heapq.heappush(queue, (-wide, hops + 1, target))
    return None


def _traced(problem: Problem, via: dict[int, int], origin: int, rank: int) -> tuple[int, ...]:
    path = []
    while rank != origin:
        path.append(via[rank])
        rank = problem.ends[via[rank]][0]
    return tuple(reversed(path))


class _Loads:
    """The load on every slot in ticks, and paths that avoid the largest ones."""

    STEEPNESS = 8
    """A slot's price is this power of its load: the largest loads decide."""

    def __init__(self, problem: Problem, aim: float) -> None:
        self._problem = problem
        self._aim = max(1.0, aim)
        self._load: dict[int, int] = {}
        self._noise = 0.0
        self._chance = random.Random(0)

    def add(self, size: int, path: Sequence[int], sign: int) -> None:
        """Count a path's load, or take it away."""
        for link in path:
            for slot, ticks in self._problem.uses[size][link]:
                self._load[slot] = self._load.get(slot, 0) + sign * ticks

    def improved(self, routes: dict[int, tuple[int, ...]], rounds: int) -> dict[int, tuple[int, ...]]:
        """Items change to the cheapest path at the others' loads, until a round changes none.

        From then on ties are broken by chance (seeded), so that loads wander along plateaus.
        """
        best, best_load = dict(routes), self._largest
        for _ in range(rounds):
            if best_load <= self._aim * (1 + DUST):
                break
            before = dict(routes)
            self._reroute(routes)
            if routes == before:
                self._noise = NOISE
            if self._largest < best_load:
                best, best_load = dict(routes), self._largest
        return best

    @property
    def _largest(self) -> int:
        return max(self._load.values(), default=0)

    def _reroute(self, routes: dict[int, tuple[int, ...]]) -> None:
        for item in sorted(routes):
            size = self._problem.demand.items[item].size
            self.add(size, routes[item], -1)
            found = self.cheapest(item)
            if self._noise or self._price(size, found) < self._price(size, routes[item]):
                routes[item] = found
            self.add(size, routes[item], 1)

    def _price(self, size: int, path: Sequence[int]) -> float:
        return sum(self._toll(size, link) for link in path)

    def _toll(self, size: int, link: int) -> float:
        """What a transfer adds to the sum of the loads' powers, and a little for its time."""
        aim, power = self._aim, self.STEEPNESS
        toll = 1e-6 * self._problem.latencies[size][link] / aim
        for slot, ticks in self._problem.uses[size][link]:
            load = self._load.get(slot, 0)
            toll += ((load + ticks) / aim) ** power - (load / aim) ** power
        return float(toll) * (1.0 + self._noise * self._chance.random()) if self._noise else float(toll)

    def cheapest(self, item: int) -> tuple[int, ...]:
        """The cheapest path of an item at these loads. Dijkstra: O(links log ranks).

        Raises:
            SynthesisError: there is none.
        """
        problem, demanded = self._problem, self._problem.demand.items[item]
        rank = demanded.destinations[0]
        cost, via = {demanded.origin: 0.0}, dict[int, int]()
        queue = [(0.0, demanded.origin)]
        done: set[int] = set()
        while queue:
            paid, at = heapq.heappop(queue)
            if at == rank:
                return _traced(problem, via, demanded.origin, rank)
            if at in done:
                continue
            done.add(at)
            for link in problem.outgoing[at]:
                target = problem.ends[link][1]
                if target in done or not problem.may_use(item, link):
                    continue
                there = paid + self._toll(demanded.size, link)
                if there < cost.get(target, float("inf")):
                    cost[target], via[target] = there, link
                    heapq.heappush(queue, (there, target))
        raise SynthesisError(f"item {item} cannot reach rank {rank} from {demanded.origin}", item=item, rank=rank)
