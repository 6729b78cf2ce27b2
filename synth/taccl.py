"""The taccl engine: routing, ordering, contiguity and exact scheduling, as in TACCL (NSDI 2023), without its losses.

TACCL fixes the routes first and loses a third to a half when no order of theirs meets the routing's time. Here, when
the schedule takes longer than the bound, the joint problem of routing and scheduling is solved with the schedule as
incumbent; when that stays open, other routes of the same time are tried.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from synth.contiguity import schedule_exactly
from synth.engine import Budget, Ended, Outcome, Progress, Stage
from synth.errors import SolverError
from synth.exact import distance_bound, solve_exact
from synth.ordering import order_routes
from synth.own_first import with_own_first
from synth.problem import Problem
from synth.routing import Routes, Routing, another, route, routed_time, routes_of, short_trees
from synth.routing_model import Weight
from synth.schedule import Schedule, Transfer, makespan
from synth.spread import first_plan

Plan = tuple[Transfer, ...]
ATTEMPTS = 3
"""Other routings of the same time that are tried when the joint problem stays open."""
MOST_CHOICES = 20_000
"""Transfers to choose from (representatives x links) beyond which one routing is all that the time allows."""


@dataclass(eq=False)
class _Search:
    """Where a solve stands: the best plan, the bound that counts, and what was done."""

    problem: Problem
    budget: Budget
    plan: Plan
    bound: int
    kind: str
    ended: Ended = Ended.HEURISTIC
    wider: Schedule | None = None
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The makespan of the best plan."""
        return makespan(self.problem, self.plan)

    @property
    def wishes(self) -> bool:
        """Whether the sketch prefers some routings to others of the same time."""
        return bool(self.problem.rules.switches or self.problem.rules.spread)

    def offer(self, plan: Plan, preferred: bool = False) -> None:
        """Keep a plan that is better, or as good and preferred, once it keeps the order that the sketch asks for."""
        plan = with_own_first(self.problem, plan)
        if makespan(self.problem, plan) < self.end + preferred:
            self.plan = plan

    def stage(self, name: str, work: Callable[[], None]) -> None:
        """Do a stage and note its seconds."""
        began = time.monotonic()
        work()
        self.stages.append(Stage(name, time.monotonic() - began))
        self.budget.report(Progress(name, self.end, self.bound, self.budget.left))


def solve_taccl(problem: Problem, budget: Budget, bound: int = 0, incumbent: Plan | None = None) -> Outcome:
    """The best schedule found (see synth.engine.Engine); ``bound`` and the outcome's bound are ticks.

    The routing's bound counts only where a proof about symmetric schedules is one about all; else it is a note.

    Raises:
        SynthesisError: a destination cannot be reached over the links that its item may use.
        SolverError: there is no solver for the routing.
    """
    began = time.monotonic()
    distance = distance_bound(problem)
    least, kind = (bound, "given") if bound >= distance else (distance, "distance")
    plan = first_plan(problem, budget, least) if incumbent is None else incumbent
    search = _Search(problem, budget, with_own_first(problem, plan), least, kind)
    search.stages.append(Stage("incumbent", time.monotonic() - began))
    if search.end > least or search.wishes:
        _run(search)
    return _outcome(search)


def _outcome(search: _Search) -> Outcome:
    end = search.end if search.wider is None else min(search.end, search.wider.ticks)
    if end <= search.bound:
        search.ended = Ended.PROOF
    elif search.ended is Ended.PROOF:  # about symmetric schedules only
        search.ended = Ended.HEURISTIC
    stages, notes = tuple(search.stages), tuple(search.notes)
    return Outcome("taccl", search.plan, search.bound, search.kind, search.ended, stages, notes, search.wider)


def _run(search: _Search) -> None:
    problem = search.problem
    found: list[Routing] = []
    start = routes_of(problem, search.plan)
    part = 0.5 if search.end > search.bound else 0.1  # the time is proven already: only preferences are left
    search.stage("routing", lambda: found.append(route(problem, _share(search, part), search.bound, start)))
    routing = found[0]
    _learn(search, routing)
    _schedule(search, routing.routes, routing.bound)
    if search.end > search.bound:
        search.stage("joint", lambda: _close(search))
    if search.end > max(search.bound, routing.bound) and search.ended is not Ended.PROOF:
        search.stage("other routes", lambda: _try_others(search, routing))


def _share(search: _Search, part: float) -> Budget:
    """A part of the time that is left, with all of the work."""
    return replace(search.budget, seconds=search.budget.left * part, began=time.monotonic())


def _learn(search: _Search, routing: Routing) -> None:
    """What the routing proves: a bound for the problem, or only for schedules with its symmetry."""
    if routing.ended is Ended.HEURISTIC:
        search.notes.append("the routing program was not written: there are too many transfers to choose from")
    if routing.ended is not Ended.PROOF:
        search.ended = routing.ended
    if routing.bound <= search.bound:
        return
    if search.problem.quotient_is_exact:
        search.bound, search.kind = routing.bound, "routing"
    else:
        least = search.problem.time(routing.bound)
        search.notes.append(f"no routing with the symmetry that was found takes less than {least}")


def _schedule(search: _Search, routes: Routes, bound: int) -> None:
    """Stages 2 and 3 for given routes."""
    plans: list[Plan] = []
    search.stage("ordering", lambda: plans.append(order_routes(search.problem, routes, bound, search.budget)))
    target = max(bound, routed_time(search.problem, routes))
    share = _share(search, 0.2)
    search.stage("scheduling", lambda: plans.append(schedule_exactly(search.problem, plans[0], target, share)))
    search.offer(plans[-1], preferred=search.wishes)


def _try_others(search: _Search, routing: Routing) -> None:
    """Other routings that take no longer: short trees first, then any."""
    problem = search.problem
    if len(problem.representatives) * problem.costs.links > MOST_CHOICES:
        return
    chance = random.Random(search.budget.seed)
    for attempt in range(ATTEMPTS):
        if search.end <= routing.bound or search.budget.left == 0:
            break
        weight = short_trees(problem) if attempt == 0 else _any(chance)
        routes = another(problem, _share(search, 0.1), routing.time, routing.bound, weight)
        if routes is not None:
            plan = order_routes(problem, routes, routing.bound, search.budget)
            search.offer(schedule_exactly(problem, plan, routing.bound, _share(search, 0.1)))


def _any(chance: random.Random) -> Weight:
    return lambda item, link: chance.random()


def _close(search: _Search) -> None:
    """The joint problem, with the schedule as incumbent."""
    try:
        outcome = solve_exact(search.problem, _share(search, 0.8), search.bound, search.plan)
    except SolverError as error:
        search.notes.append(f"no joint schedule was sought: {error}")
        return
    search.offer(outcome.plan)
    if outcome.bound > search.bound:
        search.bound, search.kind = outcome.bound, outcome.bound_kind
    search.ended, search.wider = outcome.ended, outcome.wider
    search.notes += outcome.notes
