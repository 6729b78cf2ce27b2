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
ROOMS = {
    "types": "errors symmetry discover problem schedule engine moves retiming waiting own_first",
    "solvers": "interrupts solver solver_cp solver_flow solver_glop solver_lp",
    "posing": "sketch crossing logical explain pose demands",
    "heuristics": "listing greedy spread",
    "engines": "network throughput packing concurrent bandwidth rates steps pareto joint balance exact routing_model "
    "routing ordering contiguity taccl",
    "composition": "placing columns compose trees lowering flights picture",
    "whole": "result portfolio pipeline auto stored cache",
    "command": "cli",
}
MAY_IMPORT = {
    "types": set(),
    "solvers": {"types"},
    "posing": {"types"},
    "heuristics": {"types"},
    "engines": {"types", "solvers", "heuristics"},
    "composition": {"types"},
    "whole": {"types", "solvers", "posing", "heuristics", "engines", "composition"},
    "command": {"types", "posing", "engines", "composition", "whole"},
}
ROOM_OF = {module: kind for kind, modules in ROOMS.items() for module in modules.split()}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_solvers_are_behind_one_door_and_nothing_knows_torch(path):
    for name in imports(path):
        first = name.split(".")[0]
        assert first not in SOLVERS or room(path).startswith("solver"), f"{path.name} may not import {name}"
        assert first not in {"torch", "pickle"}, f"{path.name} may not import {name}"


def test_every_module_has_a_room():
    assert {room(path) for path in FILES} - {"__init__"} == set(ROOM_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "synth" and len(parts) > 1 and parts[1] in ROOM_OF and here != "__init__":
            there = ROOM_OF[parts[1]]
            assert there == ROOM_OF[here] or there in MAY_IMPORT[ROOM_OF[here]], f"{here} may not import {name}"


def test_no_module_imports_itself_in_a_circle():
    known = {room(path): {n.split(".")[1] for n in imports(path) if n.startswith("synth.")} for path in FILES}
    left = {name: wanted & known.keys() for name, wanted in known.items() if name not in ("__init__", "cli")}
    while left:
        free = {name for name, wanted in left.items() if not wanted & left.keys() - {name}}
        assert free, f"a circle among {sorted(left)}"
        left = {name: wanted for name, wanted in left.items() if name not in free}


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
