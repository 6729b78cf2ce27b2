"""Linear and mixed integer programs: known optima, limits, what is proven, and CBC where HiGHS is absent."""

import math
import random
import sys

import pulp  # before any test hides HiGHS from it
import pytest

from synth.errors import SolverError
from synth.solver import Feasible, Infeasible, Limits, Model, Optimal, TimedOut, solve, solver_name


@pytest.fixture(params=["HiGHS", "CBC"])
def by(request, monkeypatch):
    """Each test runs by both solvers; None in sys.modules makes the import of HiGHS fail."""
    if request.param == "CBC":
        monkeypatch.setitem(sys.modules, "highspy", None)
    return request.param


def knapsack(seed: int, items: int = 60, rows: int = 20) -> Model:
    chance, model = random.Random(seed), Model()
    chosen = [model.binary(-chance.randint(10, 100)) for _ in range(items)]
    for _ in range(rows):
        model.row([(x, chance.randint(1, 60)) for x in chosen], "<=", 600)
    return model


def test_the_solver_says_its_name_and_version(by):
    assert solver_name().startswith(by)
    assert any(c.isdigit() for c in solver_name())


@pytest.mark.usefixtures("by")
def test_a_linear_program():
    model = Model()
    x, y = model.variable(cost=1.0), model.variable(low=-2.0, high=3.0, cost=-1.0)
    model.row([(x, 1.0), (y, -2.0)], ">=", 0.5)
    solution = solve(model, Limits())
    assert isinstance(solution, Optimal)
    assert solution.objective == pytest.approx(0.25)
    assert solution.values == pytest.approx((0.0, -0.25))


@pytest.mark.usefixtures("by")
def test_whole_variables_and_equal_rows():
    model = Model()
    a, b = model.variable(whole=True, cost=3.0), model.variable(whole=True, cost=5.0)
    model.row([(a, 4.0), (b, 7.0)], "==", 41.0)
    solution = solve(model, Limits())
    assert isinstance(solution, Optimal)
    assert solution.values == pytest.approx((5.0, 3.0))
    assert solution.objective == pytest.approx(30.0)
    assert solution.bound == pytest.approx(30.0)


@pytest.mark.usefixtures("by")
def test_a_variable_that_no_row_names_keeps_its_place():
    model = Model()
    model.variable(low=2.0, high=4.0)
    second = model.variable(cost=1.0)
    model.row([(second, 1.0)], ">=", 7.0)
    solution = solve(model, Limits())
    assert isinstance(solution, Optimal)
    assert 2.0 <= solution.values[0] <= 4.0
    assert solution.values[1] == pytest.approx(7.0)


@pytest.mark.usefixtures("by")
def test_what_has_no_answer_is_infeasible():
    model = Model()
    model.row([(model.binary(), 2.0)], "==", 1.0)
    assert isinstance(solve(model, Limits()), Infeasible)
    endless = Model()
    endless.row([(endless.variable(cost=-1.0), -1.0)], "<=", 1.0)
    assert isinstance(solve(endless, Limits()), Infeasible)


@pytest.mark.usefixtures("by")
def test_a_node_limit_proves_nothing_and_gives_the_same_twice():
    first, second = (solve(knapsack(1), Limits(nodes=1)) for _ in range(2))
    assert isinstance(first, Feasible)
    assert first.limit == "work"
    assert first == second
    assert first.bound < -1452.5 < first.objective
    assert 0 < first.gap < 0.2


@pytest.mark.usefixtures("by")
def test_a_time_limit_is_no_proof():
    solution = solve(knapsack(2, items=150, rows=60), Limits(seconds=0.2))
    assert isinstance(solution, Feasible | TimedOut)
    assert solution.limit == "time"
    if isinstance(solution, Feasible):
        assert solution.bound < solution.objective


@pytest.mark.usefixtures("by")
def test_an_answer_to_start_from_is_taken():
    model = knapsack(3, items=30, rows=5)
    best = solve(model, Limits())
    assert isinstance(best, Optimal)
    again = solve(model, Limits(), start=best.values)
    assert isinstance(again, Optimal)
    assert again.objective == pytest.approx(best.objective)


def test_both_solvers_agree(monkeypatch):
    highs = solve(knapsack(4, items=25, rows=6), Limits())
    monkeypatch.setitem(sys.modules, "highspy", None)
    cbc = solve(knapsack(4, items=25, rows=6), Limits())
    assert isinstance(highs, Optimal)
    assert isinstance(cbc, Optimal)
    assert highs.objective == pytest.approx(cbc.objective)


def test_threads_may_change_between_solves():
    values = [solve(knapsack(5, items=25, rows=6), Limits(threads=n)) for n in (1, 2, 1)]
    assert all(isinstance(each, Optimal) and each == values[0] for each in values)


def test_work_becomes_nodes():
    assert Limits.of(5.0, None, 2, 7) == Limits(5.0, None, 2, 7)
    assert Limits.of(5.0, 0.001, 1, 0).nodes == 1
    assert Limits.of(-1.0, 2.0, 0, 0) == Limits(0.01, 400, 1, 0)


def test_no_solver_at_all_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pulp", None)
    with pytest.raises(SolverError, match="pip install"):
        solve(Model(), Limits())


def test_neither_highs_nor_cbc_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "highspy", None)
    monkeypatch.setattr(pulp.PULP_CBC_CMD, "available", lambda self: False)
    with pytest.raises(SolverError, match="neither HiGHS nor CBC"):
        solve(knapsack(1), Limits())


def test_nothing_proven_is_minus_infinity():
    from synth.solver import _bound_in

    assert _bound_in("no such line") == -math.inf
    assert _bound_in("Lower bound:                    912.000\n") == pytest.approx(911.9995)
