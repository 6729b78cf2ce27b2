"""Linear and mixed integer programs, solved by HiGHS or CBC through PuLP; the only module that imports them.

A model is numbered variables and rows; PuLP is loaded when the first one is solved. HiGHS comes first (in this
process), CBC (which PuLP brings along) where HiGHS is absent. What comes back says what is proven: PuLP itself calls
an answer "Optimal" when the clock ran out on it, so its word is not taken; see ``Optimal`` and ``Feasible``.
"""

from __future__ import annotations

import importlib
import math
import re
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synth.errors import SolverError
from synth.interrupts import interruptible

Terms = Iterable[tuple[int, float]]
"""A linear expression: (variable, coefficient) pairs, each variable once."""
NODES_PER_WORK = 200
"""Branch-and-bound nodes for one unit of ``Budget.work``: HiGHS and CBC have no deterministic clock but this count."""


@dataclass(frozen=True)
class Limits:
    """When a solver stops: ``seconds`` of wall-clock time, ``nodes`` of the search tree (None: no limit).

    Only the latter is deterministic. ``gap`` is the relative gap at which an answer counts as optimal.
    """

    seconds: float = 60.0
    nodes: int | None = None
    threads: int = 1
    seed: int = 0
    gap: float = 0.0

    @staticmethod
    def of(seconds: float, work: float | None, threads: int, seed: int) -> Limits:
        """The limits that stand for ``work`` units of deterministic time (None: unlimited)."""
        nodes = None if work is None else max(1, int(work * NODES_PER_WORK))
        return Limits(max(0.01, seconds), nodes, max(1, threads), seed)


@dataclass(frozen=True)
class Optimal:
    """A proven optimum; ``bound`` is the proven dual bound, equal to ``objective`` within the solver's tolerance."""

    values: tuple[float, ...] = field(repr=False)
    objective: float
    bound: float


@dataclass(frozen=True)
class Feasible:
    """The best answer when a limit was reached; nothing says that it is the optimum.

    ``bound`` is proven (minus infinity where the solver gives none). ``limit`` is "time" or "work".
    """

    values: tuple[float, ...] = field(repr=False)
    objective: float
    bound: float
    limit: str

    @property
    def gap(self) -> float:
        """How far the objective may be from the optimum, relative to the objective; infinite when unknown."""
        return abs(self.objective - self.bound) / max(abs(self.objective), 1e-12)


@dataclass(frozen=True)
class Infeasible:
    """No answer exists, or no best one; ``why`` is the solver's word for it: "Infeasible" or "Unbounded"."""

    why: str


@dataclass(frozen=True)
class TimedOut:
    """A limit was reached before any answer was found; ``bound`` is proven, minus infinity where there is none."""

    bound: float
    limit: str


Solution = Optimal | Feasible | Infeasible | TimedOut


@dataclass(eq=False)
class Model:
    """A linear program to minimise, with some variables whole; built row by row."""

    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    rows: list[tuple[list[tuple[int, float]], str, float]] = field(default_factory=list)

    def variable(self, low: float = 0.0, high: float = math.inf, whole: bool = False, cost: float = 0.0) -> int:
        """A new variable; its number."""
        self.low.append(low)
        self.high.append(high)
        self.whole.append(whole)
        self.cost.append(cost)
        return len(self.low) - 1

    def binary(self, cost: float = 0.0) -> int:
        """A new variable that is 0 or 1; its number."""
        return self.variable(0.0, 1.0, True, cost)

    def row(self, terms: Terms, sense: str, right: float) -> None:
        """A new row: ``terms`` <=, >= or == (``sense``) the right side."""
        self.rows.append((list(terms), sense, right))


def solver_name() -> str:
    """The solver that ``solve`` will use, with its version.

    Raises:
        SolverError: there is none.
    """
    if has_highs():
        highs = importlib.import_module("highspy").Highs()
        return f"HiGHS {highs.version()}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        _cbc(Limits())
    return f"CBC of PuLP {_pulp().__version__}"


def solve(model: Model, limits: Limits, start: Sequence[float] | None = None) -> Solution:
    """Minimise a model; ``start`` is an answer to begin with (one value per variable).

    Raises:
        SolverError: no solver is there, or it failed; the message says which.
    """
    pulp, by = _pulp(), _by_highs if has_highs() else _by_cbc
    with warnings.catch_warnings():  # PuLP 3.3 announces what PuLP 4 will call these; 3.1 knows no other names
        warnings.simplefilter("ignore", DeprecationWarning)
        program, variables = _program(pulp, model)
        return by(pulp, program, variables, limits, start)


def _pulp() -> Any:
    try:
        return importlib.import_module("pulp")
    except ImportError as error:
        raise SolverError("PuLP is not there: pip install 'pulp>=3.1' 'highspy>=1.11,<1.15'", module="pulp") from error


def has_highs() -> bool:
    """Whether HiGHS can be loaded; highspy 1.15 cannot where OR-Tools 9.15 is loaded already."""
    try:
        importlib.import_module("highspy")
    except ImportError:
        return False
    return bool(_pulp().HiGHS(msg=False).available())


def _program(pulp: Any, model: Model) -> tuple[Any, list[Any]]:
    """The model as PuLP knows it, and its variables in order."""
    category = {False: pulp.LpContinuous, True: pulp.LpInteger}
    variables = [
        pulp.LpVariable(f"x{k:07d}", low, None if high == math.inf else high, category[whole])
        for k, (low, high, whole) in enumerate(zip(model.low, model.high, model.whole, strict=True))
    ]
    senses = {"<=": pulp.LpConstraintLE, ">=": pulp.LpConstraintGE, "==": pulp.LpConstraintEQ}
    program = pulp.LpProblem("commlib", pulp.LpMinimize)
    # All variables stand in the objective, so that none that no row names is lost.
    program.setObjective(pulp.LpAffineExpression(list(zip(variables, model.cost, strict=True))))
    for number, (terms, sense, right) in enumerate(model.rows):
        left = pulp.LpAffineExpression([(variables[k], value) for k, value in terms])
        program.addConstraint(pulp.LpConstraint(left, senses[sense], f"r{number}", right))
    return program, variables


def _by_highs(pulp: Any, program: Any, variables: list[Any], limits: Limits, start: Sequence[float] | None) -> Solution:
    highspy = importlib.import_module("highspy")
    highspy.Highs.resetGlobalScheduler(True)  # a scheduler of another number of threads would refuse to run
    options: dict[str, object] = {"random_seed": limits.seed}
    if limits.nodes is not None:
        options["mip_max_nodes"] = limits.nodes
    solver = pulp.HiGHS(
        msg=False, threads=limits.threads, timeLimit=limits.seconds, gapRel=limits.gap, gapAbs=1e-9, **options
    )
    solver.createAndConfigureSolver(program)
    solver.buildSolverModel(program)
    highs = program.solverModel
    place = [variable.index for variable in variables]
    if start is not None:
        _start_highs(highspy, highs, place, start)
    highs.HandleUserInterrupt = True
    interruptible(lambda: solver.callSolver(program), highs.cancelSolve)
    return _answer_of_highs(highspy, highs, place)


def _start_highs(highspy: Any, highs: Any, place: list[int], start: Sequence[float]) -> None:
    values = [0.0] * len(place)
    for column, value in zip(place, start, strict=True):
        values[column] = value
    solution = highspy.HighsSolution()
    solution.col_value = values
    highs.setSolution(solution)


def _answer_of_highs(highspy: Any, highs: Any, place: list[int]) -> Solution:
    status, info, kinds = highs.getModelStatus(), highs.getInfo(), highspy.HighsModelStatus
    if status in (kinds.kInfeasible, kinds.kUnboundedOrInfeasible, kinds.kUnbounded):
        return Infeasible(highs.modelStatusToString(status))
    limited = {kinds.kTimeLimit: "time", kinds.kIterationLimit: "work", kinds.kSolutionLimit: "work"}
    if status not in limited and status not in (kinds.kOptimal, kinds.kModelEmpty):
        raise SolverError(f"HiGHS gave up: {highs.modelStatusToString(status)}", solver="HiGHS")
    whole = info.mip_node_count >= 0
    objective = float(highs.getObjectiveValue())
    bound = float(info.mip_dual_bound) if whole else (objective if status == kinds.kOptimal else -math.inf)
    feasible = info.primal_solution_status == 2
    if status in limited and not feasible:
        return TimedOut(bound, limited[status])
    column = highs.getSolution().col_value
    values = tuple(float(column[k]) for k in place)
    if status in limited:
        return Feasible(values, objective, bound, limited[status])
    return Optimal(values, objective, bound)


def _cbc(limits: Limits, log: str | None = None, start: bool = False) -> Any:
    solver = _pulp().PULP_CBC_CMD(
        msg=False,
        timeLimit=None if math.isinf(limits.seconds) else limits.seconds,
        threads=limits.threads if limits.threads > 1 else None,
        gapRel=limits.gap,
        maxNodes=limits.nodes,
        logPath=log,
        warmStart=start,
        options=[f"randomCbcSeed {limits.seed}"],
    )
    if not solver.available():
        raise SolverError("neither HiGHS nor CBC is there: pip install 'highspy>=1.11,<1.15'", solvers=("HiGHS", "CBC"))
    return solver


def _by_cbc(pulp: Any, program: Any, variables: list[Any], limits: Limits, start: Sequence[float] | None) -> Solution:
    for variable, value in zip(variables, start or (), strict=False):
        variable.setInitialValue(value)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "cbc.log"
        try:
            program.solve(_cbc(limits, str(log), start is not None))
        except pulp.PulpSolverError as error:
            raise SolverError(f"CBC failed: {error}", solver="CBC") from error
        text = log.read_text(errors="replace")
    if program.status in (pulp.LpStatusInfeasible, pulp.LpStatusUnbounded):
        return Infeasible(pulp.LpStatus[program.status])
    limit = "time" if re.search(r"Stopped on time|Exiting on maximum time", text) else "work"
    if program.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return TimedOut(_bound_in(text), limit)
    values = tuple(float(variable.varValue or 0.0) for variable in variables)
    objective = float(pulp.value(program.objective))
    if program.sol_status == pulp.LpSolutionOptimal and "Stopped on" not in text:
        return Optimal(values, objective, objective)
    return Feasible(values, objective, _bound_in(text), limit)


def _bound_in(log: str) -> float:
    """The dual bound that CBC printed last, less the half digit that it rounded off; minus infinity if none."""
    found = re.findall(r"^Lower bound:\s+(-?[0-9.eE+-]+)", log, re.MULTILINE)
    return float(found[-1]) - 5e-4 if found else -math.inf
