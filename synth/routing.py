"""Stage 1 of TACCL: routing. Which links each item crosses, such that no slot is overloaded and no path too long.

The time of a routing is a relaxation: the longest path or the most loaded slot, with the order of transfers on a slot
left open. Horizons grow: is there a routing that meets the bound (the tightest pruning, and a yes is a proof)? If not,
what is the least time up to that of the routes to start from?
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from synth.engine import Budget, Ended, Progress
from synth.errors import ScheduleError
from synth.joint import useful
from synth.problem import NEVER, Problem
from synth.routing_model import RoutingModel, Weight, routing_model
from synth.schedule import Transfer
from synth.solver import Feasible, Infeasible, Limits, Optimal, Solution, TimedOut, solve

Routes = Mapping[int, tuple[int, ...]]
"""For each representative, the links of a tree from its origin."""
MOST_BINARIES = 40_000
"""Transfers to choose from (representatives x links) beyond which a program takes longer to write than to give up."""
GAP = 0.1
"""The gap to which weights are minimised."""


@dataclass(frozen=True)
class Routing:
    """Routes, what they take at least in ticks, and a proven bound: no routing with the problem's symmetry takes less.

    ``ended`` is PROOF where the program was solved to the end. Even then the time may exceed the bound: it counts the
    tails of the trees that were chosen, the program the least that any tree could have.
    """

    routes: Routes = field(repr=False)
    time: int
    bound: int
    ended: Ended


def routes_of(problem: Problem, plan: Iterable[Transfer]) -> dict[int, tuple[int, ...]]:
    """The routes of a plan, without what leads to no destination."""
    links: dict[int, list[int]] = {item: [] for item in problem.representatives}
    for transfer in useful(problem, plan):
        links[transfer.item].append(transfer.link)
    return {item: tuple(sorted(found)) for item, found in links.items()}


def routed_time(problem: Problem, routes: Routes) -> int:
    """The time that routes take at least: their longest path or slot with its head and tail. O(transfers).

    Raises:
        ScheduleError: a route is not a tree.
    """
    time = 0
    slots: dict[int, tuple[int, int, int]] = {}
    for item, links in routes.items():
        size = problem.demand.items[item].size
        heads, tails = _heads_and_tails(problem, item, links)
        for link in links:
            head, after = heads[link], problem.latencies[size][link] + tails[link]
            time = max(time, head + after)
            for slot, ticks in problem.uses[size][link]:
                least, load, rest = slots.get(slot, (int(NEVER), 0, int(NEVER)))
                slots[slot] = (min(least, head), load + ticks, min(rest, after - ticks))
    return max([time, *(sum(parts) for parts in slots.values())])


def _heads_and_tails(problem: Problem, item: int, links: tuple[int, ...]) -> tuple[dict[int, int], dict[int, int]]:
    """For each link of a tree: when the item reaches its source, and the longest way on from its target."""
    latency = problem.latencies[problem.demand.items[item].size]
    leaving: dict[int, list[int]] = {}
    for link in links:
        leaving.setdefault(problem.ends[link][0], []).append(link)
    heads = dict.fromkeys(leaving.get(problem.demand.items[item].origin, ()), 0)
    order = list(heads)
    for link in order:  # grows while it is walked
        for onward in leaving.get(problem.ends[link][1], ()):
            if onward in heads:
                raise ScheduleError(f"the route of item {item} is not a tree", item=item, link=problem.ends[onward])
            heads[onward] = heads[link] + latency[link]
            order.append(onward)
    tails = dict.fromkeys(order, 0)
    for link in reversed(order):
        for onward in leaving.get(problem.ends[link][1], ()):
            tails[link] = max(tails[link], latency[onward] + tails[onward])
    return heads, tails


def route(problem: Problem, budget: Budget, bound: int, start: Routes) -> Routing:
    """The best routing that is found; ``start`` are routes to begin with, ``bound`` is what is proven already.

    The sketch's preferences decide between routings of the same time. A time-out keeps the best routes so far.

    Raises:
        SolverError: there is no solver.
    """
    best = Routing(start, routed_time(problem, start), bound, Ended.HEURISTIC)
    if len(problem.representatives) * problem.costs.links > MOST_BINARIES:
        return best
    if not budget.left:
        return replace(best, ended=Ended.TIME)
    wishes = bool(problem.rules.switches or problem.rules.spread)
    for horizon in () if best.time <= bound else _horizons(bound, best.time):
        goal = "time" if horizon > best.bound else "preference" if wishes else "weight"
        best = _attempt(problem, budget, best, horizon, goal)
        budget.report(Progress("routing", best.time, best.bound, budget.left))
        if best.time <= best.bound or best.ended is not Ended.HEURISTIC:
            break
    if best.time <= best.bound:
        best = replace(best, ended=Ended.PROOF)
    return _preferred(problem, budget, best) if wishes and best.ended is Ended.PROOF else best


def _horizons(bound: int, most: int) -> Iterator[int]:
    """Ever larger times to look for a routing within; the last is that of a known one less a tick."""
    yield bound
    for part in (16, 4):
        if (most - bound) // part > 1:
            yield bound + (most - bound) // part
    yield most - 1


def _attempt(problem: Problem, budget: Budget, best: Routing, horizon: int, goal: str) -> Routing:
    """What is known after the search for a routing within ``horizon``; HEURISTIC: there is none, look farther."""
    if horizon < best.bound:
        return replace(best, ended=Ended.HEURISTIC)
    made = routing_model(problem, best.bound, horizon, goal, short_trees(problem))
    solution: Solution = Infeasible("too far") if made is None else solve(made.model, limits(budget, goal))
    if made is None or isinstance(solution, Infeasible):
        return replace(best, bound=max(best.bound, min(horizon + 1, best.time)), ended=Ended.HEURISTIC)
    if isinstance(solution, TimedOut):
        proven = _ticks(made, solution.bound) if goal == "time" else best.bound
        return replace(best, bound=max(best.bound, proven), ended=_why(solution))
    routes = _routes(made, solution)
    bound = max(best.bound, _ticks(made, solution.bound)) if goal == "time" else best.bound
    if routes is not None and routed_time(problem, routes) < best.time:
        best = replace(best, routes=routes, time=routed_time(problem, routes))
    ended = Ended.PROOF if isinstance(solution, Optimal) else _why(solution)
    return replace(best, bound=min(bound, best.time), ended=ended)


def limits(budget: Budget, goal: str = "time") -> Limits:
    """What is left of a budget, for a solver; weights need no proof, and the first good answer will do."""
    found = Limits.of(budget.left, budget.work, budget.threads, budget.seed)
    return replace(found, gap=GAP) if goal == "weight" else found


def short_trees(problem: Problem) -> Weight:
    """Links weigh what the item's distance over them is: a small sum of arrivals leaves little to come after a slot.

    Among routings of one time these are the easiest to schedule, and to find.
    """
    distances = {item: problem.distances(item) for item in problem.representatives}
    largest = max((d for each in distances.values() for d in each if d < NEVER), default=1) or 1

    def weight(item: int, link: int) -> float:
        size = problem.demand.items[item].size
        return (distances[item][problem.ends[link][0]] + problem.latencies[size][link]) / largest

    return weight


def _why(solution: Feasible | TimedOut) -> Ended:
    return Ended.TIME if solution.limit == "time" else Ended.WORK


def _ticks(made: RoutingModel, bound: float) -> int:
    """A solver's bound as a whole number of ticks, rounded up past its tolerance."""
    if bound == -math.inf:
        return made.lower
    return max(made.lower, math.ceil(bound * made.unit * (1 - 1e-6) - 1e-6))


def _routes(made: RoutingModel, solution: Optimal | Feasible) -> Routes | None:
    """The trees in an answer; None where one misses a destination, which is beyond the solver's tolerance."""
    routes = {}
    for item, links in made.chosen(solution.values).items():
        tree = _tree(made.problem, item, links)
        if tree is None:
            return None
        routes[item] = tree
    return routes


def _tree(problem: Problem, item: int, links: list[int]) -> tuple[int, ...] | None:
    demanded = problem.demand.items[item]
    reached = {demanded.origin: -1}
    frontier = [demanded.origin]
    for rank in frontier:  # grows while it is walked
        for link in links:
            source, target = problem.ends[link]
            if source == rank and target not in reached:
                reached[target] = link
                frontier.append(target)
    kept: set[int] = set()
    for destination in demanded.destinations:
        if destination not in reached:
            return None
        rank = destination
        while reached[rank] >= 0 and reached[rank] not in kept:
            kept.add(reached[rank])
            rank = problem.ends[reached[rank]][0]
    return tuple(sorted(kept))


def _preferred(problem: Problem, budget: Budget, best: Routing) -> Routing:
    """The routing of the same time that the sketch's preferences like most."""
    made = routing_model(problem, best.bound, best.time, "preference")
    solution = None if made is None or budget.left == 0 else solve(made.model, limits(budget))
    if made is None or not isinstance(solution, Optimal | Feasible):
        return best
    routes = _routes(made, solution)
    if routes is None or routed_time(problem, routes) > best.time:
        return best
    return replace(best, routes=routes)


def another(problem: Problem, budget: Budget, within: int, lower: int, weight: Weight) -> Routes | None:
    """A routing within a time that has the least weight, to try other routes of the same quality; None: none found.

    Raises:
        SolverError: there is no solver.
    """
    made = routing_model(problem, min(lower, within), within, "weight", weight)
    solution = None if made is None else solve(made.model, limits(budget, "weight"))
    if made is None or not isinstance(solution, Optimal | Feasible):
        return None
    return _routes(made, solution)
