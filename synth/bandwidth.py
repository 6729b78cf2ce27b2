"""Bandwidth: the engine for large sizes. Routes that load the network as little as any can, then a list schedule.

Items that go everywhere (allgather, broadcast, reducescatter read backwards) get packed spanning trees; items with one
destination (alltoall, scatter, gather) the paths of a concurrent flow; a mixture gets spread routes. Both kinds of
routes are optimal when items are many; for few, more time for the trees (so shorter ones) and the heuristics are tried
as well, and the best schedule counts. Everything is polynomial.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from commlib.bounds.bound import rank_list
from synth.concurrent import fractional_flow, path_routes, single
from synth.engine import Budget, Ended, Outcome, Progress, Stage
from synth.greedy import greedy
from synth.listing import list_schedule
from synth.network import Network, network
from synth.packing import pack_trees, small_enough, spanning, supply_of
from synth.problem import Problem
from synth.schedule import Transfer, makespan
from synth.spread import first_plan
from synth.throughput import Cut, least_time, tightest_cut

ENGINE = "bandwidth"
SLACK = (1.02, 1.05, 1.1, 1.2, 1.4)
"""Multiples of the least load for which trees are packed as well: more leaves room for shorter trees."""
SPREAD = (0.5, 2.0)
"""How much a tree avoids loaded links, by try."""
TRIES = 8
"""Listings of each set of routes."""
POLISH = 40
"""Listings of the best routes, when the bound is not met."""
SMALL = 4000
"""Transfers up to which the polish is worth its time."""
LONG = 10_000
"""Representatives x links from which on the greedy has one try."""
WHOLE = 1e-4
"""How near a share of a flow is to a whole number of chunks to count as one."""

Routes = dict[int, tuple[int, ...]]


@dataclass
class _Search:
    """What has been found so far."""

    problem: Problem
    budget: Budget
    bound: int
    bound_kind: str
    best: tuple[Transfer, ...] | None
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cut_short: bool = False

    @property
    def done(self) -> bool:
        """Whether there is a plan, and either none is better or the clock ran out."""
        if self.best is None:
            return False
        if makespan(self.problem, self.best) <= self.bound:
            return True
        self.cut_short = self.cut_short or self.budget.left == 0
        return self.cut_short

    def offer(self, plan: tuple[Transfer, ...]) -> None:
        """Keep a plan if it is the best."""
        if self.best is None or makespan(self.problem, plan) < makespan(self.problem, self.best):
            self.best = plan

    def staged(self, name: str, work: Callable[[], None]) -> None:
        """Do a stage of the work unless all is done; note the time that it took."""
        if self.done:
            return
        incumbent = None if self.best is None else makespan(self.problem, self.best)
        self.budget.report(Progress(name, incumbent, self.bound, self.budget.left))
        began = time.monotonic()
        work()
        took = time.monotonic() - began
        if self.stages and self.stages[-1].name == name:
            took += self.stages.pop().seconds
        self.stages.append(Stage(name, took))


def solve_bandwidth(
    problem: Problem, budget: Budget, bound: int, incumbent: tuple[Transfer, ...] | None = None
) -> Outcome:
    """Routes of least load, listed; see the module's text and ``synth.engine.Engine``.

    Raises:
        SynthesisError: a destination cannot be reached.
    """
    search = _Search(problem, budget, bound, "given", incumbent)
    if not problem.representatives:
        return Outcome(ENGINE, (), bound, "given", Ended.PROOF)
    if spanning(problem, problem.representatives):
        _solve_with_trees(search)
    else:
        if single(problem, problem.representatives):
            search.staged("flow", lambda: _list(search, path_routes(problem, budget)))
        search.staged("heuristics", lambda: search.offer(first_plan(problem, budget, search.bound)))
    search.staged("polish", lambda: _polish(search))
    plan = search.best or ()
    proven = makespan(problem, plan) <= search.bound
    ended = Ended.PROOF if proven else Ended.TIME if search.cut_short else Ended.HEURISTIC
    return Outcome(ENGINE, plan, search.bound, search.bound_kind, ended, tuple(search.stages), tuple(search.notes))


def _list(search: _Search, routes: Routes | None) -> None:
    if routes is not None:
        search.offer(list_schedule(search.problem, routes, search.bound, TRIES, search.budget))


def _polish(search: _Search) -> None:
    """List the best plan's own routes more often."""
    if search.best is None or len(search.best) > SMALL:
        return
    routes: dict[int, list[int]] = {}
    for transfer in search.best:
        routes.setdefault(transfer.item, []).append(transfer.link)
    search.offer(list_schedule(search.problem, routes, search.bound, POLISH, search.budget))


def _solve_with_trees(search: _Search) -> None:
    problem = search.problem
    flow = network(problem, problem.demand.items[problem.representatives[0]].size)
    supply = supply_of(problem)
    cut = tightest_cut(flow, supply)
    least = least_time(flow, supply, math.ceil(cut.ticks))
    if cut.ranks:
        search.notes.append(_about_cut(problem, cut, least))
    if least > search.bound and _busy_until_arrival(problem, flow.size):
        search.bound, search.bound_kind = least, "cut"
    if not small_enough(problem):
        search.staged("heuristics", lambda: search.offer(first_plan(problem, search.budget, search.bound)))
        return
    for spread in SPREAD:
        search.staged("trees", partial(_pack, search, flow, least, spread))
    search.staged("greedy", lambda: _offer_greedy(search))
    for load, spread in _attempts(least):
        if search.best is None or load < makespan(problem, search.best):
            search.staged("shorter trees", partial(_pack, search, flow, load, spread))
    if search.best is None:
        search.staged("heuristics", lambda: search.offer(first_plan(problem, search.budget, search.bound)))


def _about_cut(problem: Problem, cut: Cut, least: int) -> str:
    """The tightest cut for a person; ``least`` are the ticks that whole chunks keep the tightest cut of theirs busy."""
    some = "rank" if len(cut.ranks) == 1 else "ranks"
    crossing = "reach" if problem.demand.reduces else "leave"
    what = f"{cut.items} {'chunk' if cut.items == 1 else 'chunks'} must {crossing} {some} {rank_list(cut.ranks)}"
    text = f"{what}, which keeps links there busy for {problem.time(float(cut.ticks))}"
    return text if least <= cut.ticks else f"{text}, or {problem.time(least)} when no chunk is divided"


def _offer_greedy(search: _Search) -> None:
    problem = search.problem
    tries = 4 if len(problem.representatives) * problem.costs.links < LONG else 1
    plan = greedy(problem, search.budget, search.bound, tries)
    if plan is not None:
        search.offer(plan)


def _busy_until_arrival(problem: Problem, size: int) -> bool:
    """Whether no resource is busy beyond a transfer's arrival: then its load cannot exceed a schedule's time."""
    costs = problem.costs
    arrival = np.repeat(costs.latency[:, size], np.diff(costs.use_start))
    return bool((costs.use_ticks[:, size] <= arrival).all())


def _attempts(least: int) -> Iterator[tuple[int, float]]:
    for slack in SLACK:
        for spread in SPREAD:
            yield math.floor(least * slack), spread


def _pack(search: _Search, flow: Network, load: int, spread: float) -> None:
    _list(search, pack_trees(flow, load, spread, search.budget))


def best_chunks(problem: Problem, limit: int = 16, budget: Budget | None = None) -> int:
    """Into how many chunks a shard should be cut, at the problem's costs for each, so that routes load evenly.

    For items that go everywhere: the k for which k whole trees for each shard take the least time for a k-th of the
    load, compared with k times the tightest cut. For one destination each: the k for which a concurrent flow has
    whole paths. 1 where neither applies; the smallest of equals.

    Raises:
        SynthesisError: some ranks are not connected to the others.
    """
    if spanning(problem, problem.representatives):
        flow = network(problem, problem.demand.items[problem.representatives[0]].size)
        supply = supply_of(problem)
        supply = supply // max(1, int(np.gcd.reduce(supply)))
        cut = tightest_cut(flow, supply).ticks
        least = [least_time(flow, k * supply, math.ceil(k * cut)) / k for k in range(1, limit + 1)]
        return 1 + min(range(limit), key=lambda k: (round(least[k] / float(cut), 9), k))
    if single(problem, problem.representatives):
        return _whole_shares(problem, limit, Budget() if budget is None else budget)
    return 1


def _whole_shares(problem: Problem, limit: int, budget: Budget) -> int:
    found = fractional_flow(problem, budget)
    shares = [value for amounts in found.amounts for value in amounts.values()] if found else []
    pieces = max(1, problem.demand.collective.chunks)
    off = [sum(abs(v * k / pieces - round(v * k / pieces)) > WHOLE for v in shares) for k in range(1, limit + 1)]
    return 1 + min(range(limit), key=lambda k: (off[k], k))
