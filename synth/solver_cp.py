"""CP-SAT, the constraint solver of OR-Tools: models of intervals and flags, and searches that can be repeated.

Imports ortools' CP-SAT only when a model is made. Searches interleave the solver's strategies in batches of fixed size
on one thread: a search that ends by proof or by its work limit (CP-SAT's deterministic time) gives the same result
every time, one that the clock ends may not. More threads would break that: in a batch whose tasks run at once, the
first to finish decides what is found (seen with OR-Tools 9.15, in spite of its interleaved search).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from synth.engine import Ended
from synth.errors import SolverError
from synth.interrupts import interruptible

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

    Var: TypeAlias = cp_model.IntVar
    Interval: TypeAlias = cp_model.IntervalVar
    Linear: TypeAlias = cp_model.LinearExprT

_STRATEGIES = ("default_lp", "max_lp", "no_lp", "quick_restart_no_lp")
"""The strategies of an interleaved search. Large neighbourhoods are left out: in models of optional intervals a single
one can take seconds for a tenth of a unit of deterministic time, and then neither clock nor work limit is kept."""
_BATCH = 4
"""Tasks between two synchronisations of an interleaved search."""


class Status(Enum):
    """What a search says about its model."""

    OPTIMAL = "optimal"
    """Found and proven (for a model without objective: found)."""
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    TIMED_OUT = "timed out"
    """Nothing found, nothing proven."""


@dataclass(frozen=True)
class Solved:
    """The end of a search: ``value`` of the objective (None: nothing found or no objective) and its lower ``bound``.

    ``work`` is the deterministic time that it took; ``ended`` why it ended.
    """

    status: Status
    value: int | None
    bound: int
    work: float
    ended: Ended
    values: Callable[[Var], int] = field(repr=False)

    @property
    def found(self) -> bool:
        """Whether there is a solution to read."""
        return self.status in (Status.OPTIMAL, Status.FEASIBLE)


@dataclass(frozen=True)
class Limits:
    """When a search ends at the latest.

    ``seconds`` is wall-clock time, ``work`` deterministic time (None: unlimited). ``interleave``: several strategies
    in turn; else one strategy alone, which needs less work on models that propagation almost solves.
    """

    seconds: float
    work: float | None = None
    seed: int = 0
    interleave: bool = True


class Model:
    """A constraint model, minimised or satisfied. Variables are whole numbers; flags are 0 or 1."""

    def __init__(self) -> None:
        try:
            from ortools.sat.python import cp_model
        except ImportError as error:
            raise SolverError("the exact engine needs OR-Tools: install 'ortools>=9.11'", solver="ortools") from error
        self._cp = cp_model
        self._model = cp_model.CpModel()
        self._objective: Var | None = None

    def number(self, low: int, high: int) -> Var:
        """A whole number in low..high."""
        return self._model.new_int_var(low, high, "")

    def flag(self) -> Var:
        """A variable that is 0 or 1."""
        return self._model.new_bool_var("")

    def interval(self, start: Linear, ticks: int, present: Var) -> Interval:
        """start..start + ticks, there only if ``present``."""
        return self._model.new_optional_fixed_size_interval_var(start, ticks, present, "")

    def no_overlap(self, intervals: Iterable[Interval]) -> None:
        """No two of those that are there overlap."""
        self._model.add_no_overlap(intervals)

    def exactly_one(self, flags: Sequence[Var]) -> None:
        """One flag is 1."""
        self._model.add_exactly_one(flags)

    def at_most_one(self, flags: Sequence[Var]) -> None:
        """At most one flag is 1."""
        self._model.add_at_most_one(flags)

    def implies_any(self, condition: Var, flags: Sequence[Var]) -> None:
        """If ``condition``, one of the flags is 1."""
        self._model.add_bool_or([condition.negated(), *flags])

    def at_least(self, left: Linear, right: Linear, condition: Var | None = None) -> None:
        """left >= right, if ``condition``."""
        constraint = self._model.add(left >= right)
        if condition is not None:
            constraint.only_enforce_if(condition)

    def at_most_sum(self, flags: Sequence[Var], weights: Sequence[int], limit: Linear) -> None:
        """The weights of the flags that are 1 sum to ``limit`` at most."""
        self._model.add(self._cp.LinearExpr.weighted_sum(flags, weights) <= limit)

    def minimise(self, objective: Var) -> None:
        """Search for the least value of a variable."""
        self._objective = objective
        self._model.minimize(objective)

    def hint(self, values: Mapping[Var, int]) -> None:
        """Where the search looks first."""
        for variable, value in values.items():
            self._model.add_hint(variable, value)

    def solve(self, limits: Limits, report: Callable[[int | None, int], None] | None = None) -> Solved:
        """Search until the proof or a limit; ``report`` hears of every (incumbent, bound).

        Raises:
            SolverError: the solver refuses the model.
        """
        began = time.monotonic()
        solver, status = self._searched(limits, report)
        kinds = {
            self._cp.OPTIMAL: Status.OPTIMAL,
            self._cp.FEASIBLE: Status.FEASIBLE,
            self._cp.INFEASIBLE: Status.INFEASIBLE,
            self._cp.UNKNOWN: Status.TIMED_OUT,
        }
        if status not in kinds:
            raise SolverError(f"OR-Tools refuses the model: {self._model.validate()}", solver="ortools")
        kind = kinds[status]
        has_value = self._objective is not None and kind in (Status.OPTIMAL, Status.FEASIBLE)
        return Solved(
            kind,
            round(solver.objective_value) if has_value else None,
            -1 if self._objective is None else round(solver.best_objective_bound),
            solver.deterministic_time,
            _why(kind, limits, time.monotonic() - began, solver.deterministic_time),
            solver.value,
        )

    def _searched(
        self, limits: Limits, report: Callable[[int | None, int], None] | None
    ) -> tuple[cp_model.CpSolver, cp_model.CpSolverStatus]:
        """(the solver with its answer, its status)."""
        solver = self._solver(limits)
        try:
            return solver, self._run(solver, report)
        except IndexError:
            # OR-Tools 9.15 loses its way in the presolve of some models that are infeasible (a look-up in a hash map
            # fails after "duplicate: false after merging"). The search itself does not need the presolve.
            solver = self._solver(limits)
            solver.parameters.cp_model_presolve = False
            return solver, self._run(solver, report)

    def _run(
        self, solver: cp_model.CpSolver, report: Callable[[int | None, int], None] | None
    ) -> cp_model.CpSolverStatus:
        watch = self._watched(solver, report)
        return interruptible(lambda: solver.solve(self._model, watch), solver.stop_search)

    def _solver(self, limits: Limits) -> cp_model.CpSolver:
        solver = self._cp.CpSolver()
        settings = solver.parameters
        settings.max_time_in_seconds = max(0.0, limits.seconds)
        if limits.work is not None:
            settings.max_deterministic_time = max(0.0, limits.work)
        settings.random_seed = limits.seed
        settings.num_workers = 1
        settings.catch_sigint_signal = False  # it would end the search and say nothing; see synth.interrupts
        settings.interleave_search = limits.interleave
        settings.interleave_batch_size = _BATCH
        if limits.interleave:
            settings.subsolvers.extend(_STRATEGIES)
            settings.use_lns = False
            settings.use_feasibility_jump = False
        return solver

    def _watched(
        self, solver: cp_model.CpSolver, report: Callable[[int | None, int], None] | None
    ) -> cp_model.CpSolverSolutionCallback | None:
        if report is None or self._objective is None:
            return None
        best: list[int | None] = [None]
        hear = report

        class Watch(self._cp.CpSolverSolutionCallback):  # type: ignore[name-defined,misc]
            def on_solution_callback(self) -> None:
                best[0] = round(self.objective_value)
                hear(best[0], round(self.best_objective_bound))

        solver.best_bound_callback = lambda bound: report(best[0], round(bound))
        return Watch()


def _why(kind: Status, limits: Limits, seconds: float, work: float) -> Ended:
    if kind in (Status.OPTIMAL, Status.INFEASIBLE):
        return Ended.PROOF
    if limits.work is not None and seconds < limits.seconds and work >= 0.9 * limits.work:
        return Ended.WORK
    return Ended.TIME
