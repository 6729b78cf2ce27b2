"""CP-SAT behind its wrapper: statuses, limits, repeatability."""

from __future__ import annotations

import builtins
import sys

import pytest

from synth.engine import Ended
from synth.errors import SolverError
from synth.solver_cp import Limits, Model, Status


def jobs(model: Model, ticks: list[int], horizon: int) -> list[object]:
    """Jobs on one machine; their start times."""
    starts, intervals = [], []
    for length in ticks:
        start, there = model.number(0, horizon - length), model.flag()
        model.exactly_one([there])
        intervals.append(model.interval(start, length, there))
        starts.append(start)
    model.no_overlap(intervals)
    return starts


def test_an_optimum_is_found_and_proven():
    model, heard = Model(), []
    starts = jobs(model, [3, 4, 5], 30)
    end = model.number(0, 30)
    for start, length in zip(starts, [3, 4, 5], strict=True):
        model.at_least(end, start + length)
    model.minimise(end)
    solved = model.solve(Limits(20), lambda incumbent, bound: heard.append((incumbent, bound)))
    assert (solved.status, solved.value, solved.bound, solved.ended) == (Status.OPTIMAL, 12, 12, Ended.PROOF)
    assert sorted(solved.values(start) for start in starts)[0] == 0
    assert solved.found
    assert heard[-1][0] in (12, None)


def test_what_does_not_fit_is_infeasible():
    model = Model()
    jobs(model, [3, 4, 5], 11)
    solved = model.solve(Limits(20))
    assert (solved.status, solved.value, solved.ended) == (Status.INFEASIBLE, None, Ended.PROOF)
    assert not solved.found


def pigeons(count: int) -> Model:
    """One hole too few, stated so that only search finds out."""
    model = Model()
    flags = [[model.flag() for _ in range(count - 1)] for _ in range(count)]
    for row in flags:
        model.implies_any(row[0].negated(), row[1:])
    for column in zip(*flags, strict=True):
        for i, first in enumerate(column):
            for second in column[:i]:
                model.at_least(1, first + second)
    return model


@pytest.mark.parametrize("interleave", [False, True])
def test_limits_end_a_search_without_an_answer(interleave):
    timed = pigeons(14).solve(Limits(0.0, interleave=interleave))
    assert (timed.status, timed.ended) == (Status.TIMED_OUT, Ended.TIME)
    worked = pigeons(14).solve(Limits(60.0, work=1e-4, interleave=interleave))
    assert worked.ended is (Ended.PROOF if worked.status is Status.INFEASIBLE else Ended.WORK)


def test_a_weighted_sum_and_a_hint():
    model = Model()
    flags = [model.flag() for _ in range(4)]
    model.at_most_sum(flags, [2, 3, 4, 5], 9)
    model.implies_any(flags[0], [flags[1]])
    model.at_most_one(flags[2:])
    end = model.number(-20, 0)
    model.at_least(end, -sum(weight * flag for weight, flag in zip([2, 3, 4, 5], flags, strict=True)))
    model.minimise(end)
    model.hint({flags[0]: 1, flags[1]: 1})
    solved = model.solve(Limits(10))
    assert solved.value == -9
    assert sum(w * solved.values(f) for w, f in zip([2, 3, 4, 5], flags, strict=True)) == 9


def test_repetition_changes_nothing():
    def answer() -> list[int]:
        model = Model()
        starts = jobs(model, [3, 4, 5, 2, 7, 6], 27)
        solved = model.solve(Limits(20, seed=3))
        return [solved.values(start) for start in starts]

    assert answer() == answer() == answer()


def test_a_missing_solver_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("ortools"):
            raise ImportError(name)
        return real(name, *rest)

    for name in [name for name in sys.modules if name.startswith("ortools.sat")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SolverError, match="install 'ortools"):
        Model()
