"""The exact engine: routing and scheduling together, to a proof where time allows.

The order of questions is what makes it fast: is there a schedule that meets the bound (the tightest pruning, and a yes
is a proof)? Only if that stays open: what is the least makespan below the incumbent's?
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from synth.balance import balanced_routes
from synth.engine import Budget, Ended, Outcome, Progress, Stage
from synth.errors import SynthesisError
from synth.joint import Joint, joint
from synth.listing import list_schedule
from synth.problem import NEVER, Problem
from synth.schedule import Transfer, makespan
from synth.solver_cp import Limits, Solved, Status
from synth.spread import first_plan

Plan = tuple[Transfer, ...]
_TRIES = 16
_DECISION_WORK = 20.0
"""Deterministic time for the question whether the bound is met, before the search for less than that begins."""


@dataclass
class _Search:
    """Where a solve stands: the best plan and its makespan, the proven bound, the work left, the stages so far."""

    problem: Problem
    budget: Budget
    plan: Plan
    end: int
    bound: int
    work: float | None
    kind: str = "given"
    ended: Ended = Ended.TIME
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether the plan meets the bound."""
        return self.end <= self.bound


def solve_exact(problem: Problem, budget: Budget, bound: int = 0, incumbent: Plan | None = None) -> Outcome:
    """The best schedule found, proven optimal where the search ends in time (see synth.engine.Engine).

    ``bound`` and the result's bound are ticks. Never without a plan: a greedy one is the start of the search.

    Raises:
        SynthesisError: a destination cannot be reached over the links that its item may use.
        SolverError: OR-Tools is missing.
    """
    began = time.monotonic()
    least = max(bound, distance_bound(problem))
    plan = first_plan(problem, budget, least) if incumbent is None else incumbent
    search = _Search(problem, budget, plan, makespan(problem, plan), least, budget.work)
    search.stages.append(Stage("incumbent", time.monotonic() - began))
    _run(search)
    return Outcome(
        "exact", search.plan, search.bound, search.kind, search.ended, tuple(search.stages), tuple(search.notes)
    )


def distance_bound(problem: Problem) -> int:
    """The largest weighted distance from an item's origin to a destination, in ticks.

    Raises:
        SynthesisError: there is no way.
    """
    largest = 0
    for item in problem.representatives:
        demanded = problem.demand.items[item]
        distance = problem.distances(item)
        for rank in demanded.destinations:
            if distance[rank] >= NEVER:
                raise SynthesisError(
                    f"item {item} of rank {demanded.origin} cannot reach rank {rank} over the links that it may use",
                    item=item,
                    origin=demanded.origin,
                    rank=rank,
                )
            largest = max(largest, distance[rank])
    return largest


def _run(search: _Search) -> None:
    if search.done:
        search.ended = Ended.PROOF
        return
    for step in (_route, _decide, _minimise):
        step(search)
        if search.done:
            search.ended = Ended.PROOF
            return
        if _over(search):
            search.ended = Ended.WORK if search.budget.left else Ended.TIME
            return


def _over(search: _Search) -> bool:
    return search.budget.left == 0 or (search.work is not None and search.work <= 0)


def _route(search: _Search) -> None:
    """Routes with even loads, scheduled by list: on regular graphs that often meets the bound at once."""
    began = time.monotonic()
    for attempt, limit in enumerate((search.bound, search.bound, search.end)):
        if search.done or search.budget.left == 0:
            break
        seeded = replace(search.budget, seed=search.budget.seed + attempt)
        routes = balanced_routes(search.problem, limit, seeded)
        if routes is not None:
            _take(search, list_schedule(search.problem, routes, search.bound, _TRIES, seeded))
    search.stages.append(Stage("balanced routes", time.monotonic() - began))


def _decide(search: _Search) -> None:
    """Is there a schedule that ends at the bound?"""
    began = time.monotonic()
    model = joint(search.problem, search.bound, search.bound, minimise=False)
    if model is None:
        search.bound += 1
        search.ended = Ended.PROOF
        return
    solved = _solve(search, model, "meets the bound?", _DECISION_WORK)
    search.stages.append(Stage("meets the bound?", time.monotonic() - began))
    if solved.found:
        _take(search, model.plan(solved))
    elif solved.status is Status.INFEASIBLE and search.problem.quotient_is_exact:
        search.bound, search.kind = search.bound + 1, "exhaustive search"


def _minimise(search: _Search) -> None:
    """The least makespan below the incumbent's."""
    began = time.monotonic()
    model = joint(search.problem, search.bound, search.end, minimise=True)
    if model is None:
        return
    model.hint(search.plan)
    solved = _solve(search, model, "minimise", None)
    search.stages.append(Stage("minimise", time.monotonic() - began))
    if solved.found:
        _take(search, model.plan(solved))
    proven = search.end if solved.status in (Status.OPTIMAL, Status.INFEASIBLE) else solved.bound
    if proven <= search.bound:
        return
    if search.problem.quotient_is_exact:
        search.bound, search.kind = proven, "exhaustive search"
    else:
        search.notes.append(f"no symmetric schedule ends before tick {proven}")


def _solve(search: _Search, model: Joint, stage: str, work: float | None) -> Solved:
    budget = search.budget
    limits = [each for each in (work, search.work) if each is not None]

    def hear(incumbent: int | None, bound: int) -> None:
        best = search.end if incumbent is None else min(incumbent, search.end)
        budget.report(Progress(stage, best, max(bound, search.bound), budget.left))

    solved = model.model.solve(Limits(budget.left, min(limits) if limits else None, budget.threads, budget.seed), hear)
    search.ended = solved.ended
    if search.work is not None:
        search.work -= solved.work
    return solved


def _take(search: _Search, plan: Plan) -> None:
    end = makespan(search.problem, plan)
    if end < search.end:
        search.plan, search.end = plan, end
