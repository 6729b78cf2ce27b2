"""Who may import whom, what a light import loads, and that every public name is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
from layering import SOLVERS, imports, loaded_by

import commlib

ROOT = Path(commlib.__file__).resolve().parents[1]
LOW = {"errors", "files", "collectives", "reductions", "topology"}
MIDDLE = LOW | {"ir", "demand"}
MAY_IMPORT = {
    "errors": set(),
    "reductions": {"errors"},
    "collectives": {"errors"},
    "files": {"errors"},
    "topology": {"errors", "files"},
    "demand": LOW,
    "bounds": LOW | {"demand"},
    "ir": LOW,
    "dsl": MIDDLE,
    "verify": MIDDLE,
    "compiler": MIDDLE | {"verify"},
    "formats": MIDDLE,
    "algorithms": MIDDLE | {"dsl", "compiler", "verify", "formats"},
    "native": {"errors"},
    "runtime": MIDDLE | {"dsl", "compiler", "verify", "formats", "native"},
    "torch_entry": {"torch_backend"},
    "torch_backend": MIDDLE | {"dsl", "compiler", "verify", "formats", "algorithms", "runtime", "torch_entry"},
    "cli": MIDDLE | {"dsl", "compiler", "verify", "formats", "algorithms", "runtime", "torch_backend"},
}
FILES = sorted((ROOT / "commlib").rglob("*.py"))
TORCH_ROOMS = {"runtime", "torch_backend", "torch_entry", "cli"}


def room(path: Path) -> str:
    return path.relative_to(ROOT / "commlib").parts[0].removesuffix(".py")


def test_every_file_has_a_room_with_rules():
    assert {room(path) for path in FILES} - {"__init__"} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", [p for p in FILES if room(p) != "__init__"], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "commlib" and len(parts) > 1 and parts[1] != here:
            allowed = MAY_IMPORT[here] | ({"__version__"} if here == "cli" else set())
            assert parts[1] in allowed, f"{here} may not import {name}"
        assert parts[0] != "synth", f"commlib never imports synth: {name}"
        assert parts[0] != "pickle", "no pickle on any path"
        assert parts[0] not in SOLVERS, f"solvers belong to synth: {name}"
        assert parts[0] != "torch" or here in TORCH_ROOMS, f"{here} may not import torch"


@pytest.mark.parametrize(
    "statement",
    [
        "import commlib",
        "from commlib import Program, compile_trace, load, prove, record, save",
        "import commlib.algorithms",
        "import commlib.cli",
        "from commlib.cli import main",
    ],
)
def test_light_imports_load_neither_torch_nor_a_solver(statement):
    assert not loaded_by(statement) & ({"torch"} | SOLVERS)


def modules() -> list[str]:
    return ["commlib", *(m.name for m in pkgutil.walk_packages(commlib.__path__, "commlib."))]


@pytest.mark.parametrize("name", modules())
def test_every_public_name_is_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__ or not inspect.getsource(module).strip(), f"{name} has no docstring"
    for public, thing in vars(module).items():
        if public.startswith("_") or getattr(thing, "__module__", None) != name:
            continue
        if inspect.isfunction(thing) or inspect.isclass(thing):
            assert thing.__doc__, f"{name}.{public} has no docstring"
        if inspect.isclass(thing):
            for method, function in vars(thing).items():
                if not method.startswith("_") and inspect.isfunction(function):
                    assert inspect.getdoc(getattr(thing, method)), f"{name}.{public}.{method} has no docstring"


def test_the_facade_names_exist():
    for name in commlib.__all__:
        assert getattr(commlib, name) is not None
    assert set(commlib.__all__) <= set(dir(commlib))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        commlib.nonsense  # noqa: B018


def test_no_prints_outside_the_cli():
    for path in FILES:
        if room(path) == "cli":
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not [n for n in calls if getattr(n.func, "id", "") == "print"], path


def test_no_paths_of_a_machine_and_no_registry_hosts():
    words = ["/work" + "/", "/tmp/" + "w/", "pypi" + ".org", "download." + "pytorch"]
    for path in [*FILES, *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "pyproject.toml", ROOT / ".ci/run"]:
        text = path.read_text()
        assert not [word for word in words if word in text], path
