"""Large linear programs for the bounds: HiGHS by whole columns, without PuLP's row by row; CBC where it is absent."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from commlib.bounds.flow import LinearProgram
from synth.interrupts import interruptible
from synth.solver import Limits, Model, Optimal, has_highs, solve

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LpSolver:
    """A solver for ``commlib.bounds``: maximise c x subject to A x <= b, x >= 0.

    ``seconds`` is a limit (None comes back when it is reached), which ``left`` lowers to what is left of a budget.
    """

    seconds: float = 30.0
    threads: int = 1
    left: Callable[[], float] = lambda: float("inf")

    def __call__(self, program: LinearProgram) -> Floats | None:
        """An x, optimal within the solver's tolerance; None where there is none or the time is over.

        Raises:
            SolverError: there is no solver, or it failed.
        """
        seconds = min(self.seconds, self.left())
        if seconds <= 0:
            return None
        if has_highs():
            return _by_highs(program, seconds, self.threads)
        return _by_cbc(program, seconds)


def _by_highs(program: LinearProgram, seconds: float, threads: int) -> Floats | None:
    highspy = importlib.import_module("highspy")
    highspy.Highs.resetGlobalScheduler(True)
    highs = highspy.Highs()
    options = {"output_flag": False, "time_limit": seconds, "threads": threads}
    for name, value in options.items():
        highs.setOptionValue(name, value)
    highs.passModel(_lp_of(highspy, program))
    highs.HandleUserInterrupt = True
    interruptible(highs.run, highs.cancelSolve)
    if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    return np.array(highs.getSolution().col_value, dtype=np.float64)


def _lp_of(highspy: Any, program: LinearProgram) -> Any:
    """The program as HiGHS takes it: columns of numbers."""
    lp = highspy.HighsLp()
    rows, columns = len(program.upper), len(program.objective)
    lp.num_row_, lp.num_col_ = rows, columns
    lp.sense_ = highspy.ObjSense.kMaximize
    lp.col_cost_ = program.objective
    lp.col_lower_, lp.col_upper_ = np.zeros(columns), np.full(columns, highspy.kHighsInf)
    lp.row_lower_, lp.row_upper_ = np.full(rows, -highspy.kHighsInf), program.upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = program.row_start
    lp.a_matrix_.index_ = program.column
    lp.a_matrix_.value_ = program.value
    return lp


def _by_cbc(program: LinearProgram, seconds: float) -> Floats | None:
    model = Model()
    for value in program.objective.tolist():
        model.variable(cost=-value)
    starts, columns, values = program.row_start.tolist(), program.column.tolist(), program.value.tolist()
    for row, upper in enumerate(program.upper.tolist()):
        part = slice(starts[row], starts[row + 1])
        model.row(zip(columns[part], values[part], strict=True), "<=", upper)
    solution = solve(model, Limits(seconds))
    return np.array(solution.values, dtype=np.float64) if isinstance(solution, Optimal) else None
