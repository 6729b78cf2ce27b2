"""synth: collective algorithms synthesized from a topology and a sketch, with a proof of how good they are.

The names below are the public API; each is imported when it is first used: ``import synth`` loads no solver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

_HOME = {
    "Budget": "synth.engine",
    "Problem": "synth.problem",
    "Question": "synth.pipeline",
    "Result": "synth.result",
    "Sketch": "synth.sketch",
    "question": "synth.pipeline",
    "read_sketch": "synth.sketch",
    "solve": "synth.pipeline",
}

if TYPE_CHECKING:
    from synth.engine import Budget as Budget
    from synth.pipeline import Question as Question
    from synth.pipeline import question as question
    from synth.pipeline import solve as solve
    from synth.problem import Problem as Problem
    from synth.result import Result as Result
    from synth.sketch import Sketch as Sketch
    from synth.sketch import read_sketch as read_sketch

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'synth' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
