"""The synthesizer's own rules: one way of imports, solvers behind one door, light imports, documented names."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
from layering import SOLVERS, imports, loaded_by

import synth

ROOT = Path(synth.__file__).resolve().parent
FILES = sorted(ROOT.rglob("*.py"))
STAGES = [
    {"errors"},
    {"symmetry", "sketch"},
    {"problem"},
    {"schedule", "engine", "own_first", "discover", "crossing", "logical", "explain"},
    {"pose"},
]


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_solvers_are_behind_one_door_and_nothing_knows_torch(path):
    for name in imports(path):
        first = name.split(".")[0]
        assert first not in SOLVERS or room(path).startswith("solver"), f"{path.name} may not import {name}"
        assert first not in {"torch", "pickle"}, f"{path.name} may not import {name}"


def rank_of(name: str) -> int:
    return next((k for k, names in enumerate(STAGES) if name in names), len(STAGES))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_below_knows_nothing_of_what_is_above(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "synth" or len(parts) < 2 or here in {"__init__", "cli"}:
            continue
        assert parts[1] != "cli", f"{here} may not import the command line"
        assert rank_of(parts[1]) <= rank_of(here), f"{here} may not import {name}"


@pytest.mark.parametrize("statement", ["import synth", "from synth import solve, Budget", "import synth.cli"])
def test_light_imports_load_neither_torch_nor_a_solver(statement):
    assert not loaded_by(statement) & ({"torch", "networkx"} | SOLVERS)


def modules() -> list[str]:
    return ["synth", *(m.name for m in pkgutil.walk_packages(synth.__path__, "synth."))]


@pytest.mark.parametrize("name", modules())
def test_every_public_name_is_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    for public, thing in vars(module).items():
        if public.startswith("_") or getattr(thing, "__module__", None) != name:
            continue
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert inspect.getdoc(thing), f"{name}.{public} has no docstring"


@pytest.mark.parametrize("path", [p for p in FILES if room(p) != "cli"], ids=lambda path: path.name)
def test_nothing_prints_but_the_command_line(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [node for node in calls if getattr(node.func, "id", "") == "print"]
