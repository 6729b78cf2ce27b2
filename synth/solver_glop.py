"""GLOP, the simplex solver of OR-Tools, for linear programs whose optimum is then proved in whole numbers.

Every program is: minimise ``cost`` . x subject to rows . x >= right, x >= 0, with whole coefficients. Weak duality
makes any y >= 0 with rows^T y <= cost a proof that the optimum is at least right . y. The solver's duals are rounded
to fractions with a small common denominator and that inequality is checked exactly, so no rounding is believed.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from synth.errors import SolverError
from synth.interrupts import interruptible
from synth.symmetry import Ints

_DENOMINATORS = 720
"""Duals are tried as multiples of 1, 1/2, ... down to one over this."""


@dataclass
class Program:
    """A linear program, built entry by entry; see the module's text."""

    cost: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)

    def variable(self, cost: int = 0) -> int:
        """A new variable; its number."""
        self.cost.append(cost)
        return len(self.cost) - 1

    def row(self, right: int) -> int:
        """A new row, with no entries yet; its number."""
        self.right.append(right)
        return len(self.right) - 1

    def entry(self, row: int, column: int, value: int) -> None:
        """Add ``value`` times a variable to a row."""
        self.rows.append(row)
        self.columns.append(column)
        self.values.append(value)


@dataclass(frozen=True)
class Least:
    """The optimum of a program in floating point, and the best lower bound that was proved exactly."""

    value: float
    proved: Fraction


def solve(program: Program, seconds: float) -> Least | None:
    """Solve a program; None when time runs out or it has no solution.

    Raises:
        SolverError: OR-Tools is missing.
    """
    try:
        module: Any = importlib.import_module("ortools.linear_solver.pywraplp")
    except ImportError as error:
        raise SolverError("the frontier needs OR-Tools: install 'ortools>=9.11'", solver="ortools") from error
    solver = module.Solver.CreateSolver("GLOP")
    if math.isfinite(seconds):
        solver.set_time_limit(max(1, int(seconds * 1000)))
    infinity = solver.infinity()
    variables = [solver.NumVar(0, infinity, "") for _ in program.cost]
    rows = [solver.Constraint(float(right), infinity) for right in program.right]
    sums: dict[tuple[int, int], int] = {}
    for row, column, value in zip(program.rows, program.columns, program.values, strict=True):
        sums[row, column] = sums.get((row, column), 0) + value
    for (row, column), value in sums.items():
        rows[row].SetCoefficient(variables[column], float(value))
    objective = solver.Objective()
    for variable, cost in zip(variables, program.cost, strict=True):
        objective.SetCoefficient(variable, float(cost))
    objective.SetMinimization()
    if interruptible(solver.Solve, solver.InterruptSolve) != module.Solver.OPTIMAL:
        return None
    duals = np.array([row.dual_value() for row in rows])
    return Least(float(objective.Value()), proved_bound(program, duals))


def proved_bound(program: Program, duals: npt.NDArray[np.float64]) -> Fraction:
    """The largest bound that duals prove when rounded to a common denominator; 0 when none does. Exact."""
    rows, columns = np.array(program.rows, dtype=np.int64), np.array(program.columns, dtype=np.int64)
    values = np.array(program.values, dtype=np.int64)
    cost, right = np.array(program.cost, dtype=np.int64), np.array(program.right, dtype=np.int64)
    best = Fraction(0)
    for denominator in range(1, _DENOMINATORS + 1):
        whole: Ints = np.maximum(np.rint(duals * denominator), 0).astype(np.int64)
        bound = Fraction(int(right @ whole), denominator)
        if bound > best:
            reached = np.zeros(len(cost), dtype=np.int64)
            np.add.at(reached, columns, values * whole[rows])
            if (reached <= cost * denominator).all():
                best = bound
    return best
