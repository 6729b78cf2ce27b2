"""Portfolio: which engines run for a problem, in which order, and what comes of it.

Mode ``auto`` starts with the heuristics; when they meet the bound, that is the proof. Otherwise the exact engine
tries problems that it can hope to close, the bandwidth engine those with many chunks, and the best is kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module

from synth.engine import Budget, Ended, Engine, Outcome, Stage
from synth.errors import SynthesisError
from synth.problem import Problem
from synth.schedule import Transfer, check, expand, makespan
from synth.spread import first_plan

Plan = tuple[Transfer, ...]
ENGINES = {
    "taccl": "synth.taccl:solve_taccl",
    "exact": "synth.exact:solve_exact",
    "bandwidth": "synth.bandwidth:solve_bandwidth",
}
MODES = ("auto", "greedy", *ENGINES)
CLOSABLE = 30_000
"""Transfers to choose from (representatives x links) up to which the exact engine is worth its while."""
LARGE = 200_000
"""Transfers of all items beyond which heuristics that come near the bound are left at that."""
NEAR = 1.05
"""What "near" is: times the bound."""


def engine(name: str) -> Engine:
    """The engine of this name; its module, and so its solver, is imported now.

    Raises:
        SynthesisError: there is none of this name.
    """
    if name == "greedy":
        return solve_greedy
    if name not in ENGINES:
        raise SynthesisError(f"no engine is called {name!r}; there are {', '.join(MODES)}", mode=name)
    module, function = ENGINES[name].split(":")
    found: Engine = getattr(import_module(module), function)
    return found


def run(mode: str, problem: Problem, budget: Budget, bound: int, known: Plan | None = None) -> Outcome:
    """Solve a problem in a mode; ``bound`` (ticks) and ``known`` (a plan) are what is known already.

    Raises:
        SynthesisError: no such mode, or a destination that cannot be reached.
    """
    outcome = _auto(problem, budget, bound, known) if mode == "auto" else engine(mode)(problem, budget, bound, known)
    began = time.monotonic()
    check(outcome.wider or expand(problem, outcome.plan))
    stages = (*outcome.stages, Stage("check", time.monotonic() - began))
    return _settled(problem, replace(outcome, stages=stages), bound)


def end_of(problem: Problem, outcome: Outcome) -> int:
    """The last arrival of what an engine found, in ticks."""
    return makespan(problem, outcome.plan) if outcome.wider is None else outcome.wider.ticks


def _settled(problem: Problem, outcome: Outcome, bound: int) -> Outcome:
    """An outcome that meets its bound has ended by proof, however it got there."""
    if bound > outcome.bound:
        outcome = replace(outcome, bound=bound, bound_kind="")
    if end_of(problem, outcome) <= outcome.bound:
        outcome = replace(outcome, ended=Ended.PROOF)
    elif outcome.ended is Ended.PROOF:
        outcome = replace(outcome, ended=Ended.HEURISTIC)
    return outcome


def solve_greedy(problem: Problem, budget: Budget, bound: int, incumbent: Plan | None = None) -> Outcome:
    """The heuristics as an engine: ``greedy`` and load-aware routes, list scheduled. Proves nothing itself."""
    began = time.monotonic()
    plan = first_plan(problem, budget, bound)
    if incumbent is not None and makespan(problem, incumbent) <= makespan(problem, plan):
        plan = incumbent
    ended = Ended.HEURISTIC if budget.left else Ended.TIME
    return Outcome("greedy", plan, bound, "", ended, (Stage("greedy", time.monotonic() - began),))


def _auto(problem: Problem, budget: Budget, bound: int, known: Plan | None) -> Outcome:
    best = solve_greedy(problem, budget, bound, known)
    stages = list(best.stages)
    for name, seconds in _promising(problem, budget, best):
        if end_of(problem, best) <= max(bound, best.bound) or budget.left == 0:
            break
        share = replace(budget, seconds=min(seconds, budget.left), began=time.monotonic())
        tried = engine(name)(problem, share, max(bound, best.bound), best.plan)
        stages += tried.stages
        best = _better(problem, best, tried)
    if best.ended is Ended.HEURISTIC and not budget.left:
        best = replace(best, ended=Ended.TIME)
    return replace(best, stages=tuple(stages))


def _promising(problem: Problem, budget: Budget, best: Outcome) -> Iterator[tuple[str, float]]:
    """(engine, seconds) in the order to try."""
    if len(best.plan) * problem.symmetry.order > LARGE and makespan(problem, best.plan) <= NEAR * best.bound:
        return
    choices = len(problem.representatives) * problem.costs.links
    if choices <= CLOSABLE:
        yield "exact", budget.left * 0.6
    yield "bandwidth", budget.left * 0.5
    if choices <= CLOSABLE:
        yield "exact", budget.left


def _better(problem: Problem, first: Outcome, second: Outcome) -> Outcome:
    """The shorter plan with the higher bound of two outcomes."""
    shorter = min((first, second), key=lambda outcome: end_of(problem, outcome))
    higher = max((first, second), key=lambda outcome: outcome.bound)
    ended = second.ended.after(first.ended) if end_of(problem, shorter) > higher.bound else Ended.PROOF
    notes = tuple(dict.fromkeys(first.notes + second.notes))
    return replace(shorter, bound=higher.bound, bound_kind=higher.bound_kind, ended=ended, notes=notes)
