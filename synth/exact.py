"""The exact engine: routing and scheduling together, to a proof where time allows.

The order of questions is what makes it fast: do balanced routes meet the bound? Is there any schedule that meets it
(the tightest pruning, and a yes is a proof)? Only if that stays open: what is the least makespan below the
incumbent's? Last, where a symmetry was only found and not asked for: do schedules without it do better?
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from synth.balance import balanced_routes
from synth.engine import Budget, Ended, Outcome, Progress, Stage
from synth.errors import SynthesisError
from synth.joint import Joint, joint
from synth.listing import list_schedule
from synth.problem import NEVER, Problem
from synth.schedule import Schedule, Transfer, expand, makespan
from synth.solver_cp import Limits, Solved, Status
from synth.spread import first_plan
from synth.symmetry import Symmetry

Plan = tuple[Transfer, ...]
_TRIES = 16
_ALONE, _TOGETHER = 0.3, 2.0
"""Deterministic time for whether the bound is met: with one strategy, then with several in turn. In models of
optional intervals a unit is some 30 s of one core."""
_CLIMB = 16
"""Ticks between bound and incumbent up to which the bound is raised tick by tick, by the same question."""
_QUOTIENT = 1.0
"""Deterministic time for the symmetric optimum where the problem without its symmetry is small enough to follow."""
_SMALL = 6_000
"""Transfers to choose from (items x links) up to which a problem is also searched without its symmetry."""


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
    wider: Schedule | None = None
    ended: Ended = Ended.PROOF
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
    distance = distance_bound(problem)
    least, kind = (bound, "given") if bound >= distance else (distance, "distance")
    plan = first_plan(problem, budget, least) if incumbent is None else incumbent
    search = _Search(problem, budget, plan, makespan(problem, plan), least, budget.work, kind)
    search.stages.append(Stage("incumbent", time.monotonic() - began))
    _run(search, (_route, _decide, _minimise, _without_symmetry))
    stages, notes = tuple(search.stages), tuple(search.notes)
    return Outcome("exact", search.plan, search.bound, search.kind, search.ended, stages, notes, search.wider)


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


def _run(search: _Search, steps: Sequence[Callable[[_Search], None]]) -> None:
    """One step after the other until the bound is met or a limit is reached."""
    for step in steps:
        if search.done:
            break
        if search.budget.left == 0:
            search.ended = Ended.TIME
            return
        if search.work is not None and search.work <= 0:
            search.ended = Ended.WORK
            return
        step(search)
    if search.done:
        search.ended = Ended.PROOF
    elif search.ended is not Ended.TIME:
        search.ended = Ended.HEURISTIC if search.work is None or search.work > 0 else Ended.WORK


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
    """Is there a schedule that ends at the bound? If not, and it is near, at the next tick?"""
    while True:
        before = search.bound
        for interleave, work in ((False, _ALONE), (True, _TOGETHER)):
            status = _meets_bound(search, interleave, work)
            if status is not Status.TIMED_OUT or search.budget.left == 0:
                break
        raised = search.bound > before
        if not raised or search.done or search.end - search.bound > _CLIMB or search.budget.left == 0:
            return


def _meets_bound(search: _Search, interleave: bool, work: float) -> Status:
    """Whether a schedule ends at the bound; takes it over, or raises the bound, where that is known."""
    began = time.monotonic()
    model = joint(search.problem, search.bound, search.bound, minimise=False)
    status = Status.INFEASIBLE
    if model is not None:
        solved = _solve(search, model, "meets the bound?", work, interleave)
        status = solved.status
        if solved.found:
            _take(search, model.plan(solved))
    search.stages.append(Stage("meets the bound?", time.monotonic() - began))
    if status is Status.INFEASIBLE:
        _raise_bound(search, search.bound + 1)
    return status


def _minimise(search: _Search) -> None:
    """The least makespan below the incumbent's."""
    began = time.monotonic()
    model = joint(search.problem, search.bound, search.end, minimise=True)
    if model is None:
        return
    model.hint(search.plan)
    limit = search.end
    solved = _solve(search, model, "minimise", _QUOTIENT if _may_widen(search.problem) else None, True)
    search.stages.append(Stage("minimise", time.monotonic() - began))
    if solved.found:
        _take(search, model.plan(solved))
    # The proof is the solver's: were a plan longer than the optimum that it was read from, it would not be proven.
    _raise_bound(search, limit if solved.status is Status.INFEASIBLE else solved.bound)


def _raise_bound(search: _Search, proven: int) -> None:
    """Take over a bound of the search; one of symmetric schedules only is a note."""
    if proven <= search.bound:
        return
    if search.problem.quotient_is_exact:
        search.bound, search.kind = proven, "exhaustive search"
    else:
        note = f"no symmetric schedule ends before {search.problem.time(proven)}"
        search.notes += [note] * (note not in search.notes)


def _may_widen(problem: Problem) -> bool:
    return not problem.quotient_is_exact and len(problem.demand.items) * problem.costs.links <= _SMALL


def _without_symmetry(search: _Search) -> None:
    """What symmetric schedules cannot show: a bound for all schedules, and perhaps a schedule that is shorter."""
    if not _may_widen(search.problem):
        return
    whole = replace(search.problem, symmetry=Symmetry.trivial(search.problem.costs.ranks))
    schedule = expand(search.problem, search.plan)
    columns = (schedule.start.tolist(), schedule.item.tolist(), schedule.link.tolist())
    plan = tuple(map(Transfer, *columns))
    wide = _Search(whole, search.budget, plan, search.end, search.bound, search.work, search.kind)
    _run(wide, (_decide, _minimise))
    search.stages += [Stage(f"{stage.name} (any schedule)", stage.seconds) for stage in wide.stages]
    search.bound, search.kind, search.work, search.ended = wide.bound, wide.kind, wide.work, wide.ended
    if wide.end < search.end:
        search.wider = expand(whole, wide.plan)
        shorter, longer = whole.time(wide.end), whole.time(search.end)
        search.notes.append(f"a schedule without the symmetry takes {shorter}, not {longer}")


def _solve(search: _Search, model: Joint, stage: str, work: float | None, interleave: bool) -> Solved:
    budget = search.budget
    limits = [each for each in (work, search.work) if each is not None]

    def hear(incumbent: int | None, bound: int) -> None:
        best = search.end if incumbent is None else min(incumbent, search.end)
        # What is proved of symmetric schedules only is no bound.
        proved = max(bound, search.bound) if search.problem.quotient_is_exact else search.bound
        budget.report(Progress(stage, best, proved, budget.left))

    hear(None, search.bound)
    allowed = min(limits) if limits else None
    solved = model.model.solve(Limits(budget.left, allowed, budget.seed, interleave), hear)
    search.ended = solved.ended
    if search.work is not None:
        search.work -= solved.work
    return solved


def _take(search: _Search, plan: Plan) -> None:
    end = makespan(search.problem, plan)
    if end < search.end:
        search.plan, search.end = plan, end
