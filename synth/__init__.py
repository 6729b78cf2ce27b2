"""synth: collective algorithms synthesized from a topology and a sketch, with a proof of how good they are.

The names below are the public API; each is imported when it is first used: ``import synth`` loads no solver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    "Budget": "synth.engine",
    "Cache": "synth.cache",
    "Problem": "synth.problem",
    "Question": "synth.pipeline",
    "Result": "synth.result",
    "Sketch": "synth.sketch",
    "load_result": "synth.stored",
    "matrix_demand": "synth.demands",
    "multi_root": "synth.demands",
    "question": "synth.pipeline",
    "question_bounds": "synth.pipeline",
    "read_demand": "synth.demands",
    "read_sketch": "synth.sketch",
    "save_result": "synth.stored",
    "solve": "synth.pipeline",
    "solve_cached": "synth.cache",
    "solve_range": "synth.auto",
}

if TYPE_CHECKING:
    from synth.auto import solve_range as solve_range
    from synth.cache import Cache as Cache
    from synth.cache import solve_cached as solve_cached
    from synth.demands import matrix_demand as matrix_demand
    from synth.demands import multi_root as multi_root
    from synth.demands import read_demand as read_demand
    from synth.engine import Budget as Budget
    from synth.pipeline import Question as Question
    from synth.pipeline import question as question
    from synth.pipeline import question_bounds as question_bounds
    from synth.pipeline import solve as solve
    from synth.problem import Problem as Problem
    from synth.result import Result as Result
    from synth.sketch import Sketch as Sketch
    from synth.sketch import read_sketch as read_sketch
    from synth.stored import load_result as load_result
    from synth.stored import save_result as save_result

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'synth' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
