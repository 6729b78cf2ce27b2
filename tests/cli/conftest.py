"""The command line, called in this process or as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from commlib.cli.app import build_app

RING = '''
from commlib import Program


def ring(p: Program) -> None:
    """Ring allreduce."""
    n = p.ranks
    for i in range(n):
        c = p.chunk(i, "input", i)
        for hop in range(1, n):
            c = p.chunk((i + hop) % n, "input", i).reduce(c, into="output")
        for hop in range(n, 2 * n - 1):
            c = c.copy((i + hop) % n)
'''
Call = Callable[..., Any]


@pytest.fixture
def cli() -> Call:
    """``cli("verify", path)`` -> the result, with exit_code, stdout and stderr."""
    return lambda *args: CliRunner().invoke(build_app(), [str(arg) for arg in args])


@pytest.fixture
def cli_json(cli: Call) -> Call:
    """As ``cli``, with --json: (exit status, the document)."""

    def call(*args: object) -> tuple[int, Any]:
        result = cli(*args, "--json")
        return result.exit_code, json.loads(result.stdout)

    return call


@pytest.fixture
def command() -> Call:
    """``command("run", ...)`` as a process of its own, from another folder than the repository's."""

    def call(*args: object, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 100) -> Any:
        line = [sys.executable, "-m", "commlib.cli", *map(str, args)]
        return subprocess.run(
            line, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=timeout
        )

    return call


LOSSY = """
def lossy(p):
    p.chunk(0, "input").copy(1, "output", 0)
    p.chunk(1, "input").copy(0, "output", 0)
"""


@pytest.fixture
def lossy_py(tmp_path: Path) -> Path:
    """A Python file with an exchange: as an allreduce on 2 ranks it loses each rank's own contribution."""
    path = tmp_path / "lossy.py"
    path.write_text(LOSSY)
    return path


@pytest.fixture
def ring_py(tmp_path: Path) -> Path:
    """A Python file with a ring allreduce."""
    path = tmp_path / "ring.py"
    path.write_text(RING)
    return path


@pytest.fixture
def saved(cli: Call, tmp_path: Path) -> Call:
    """``saved("ring_allreduce", 3)`` -> a file with the compiled library algorithm."""

    def save(name: str, ranks: int, ending: str = ".xml", *more: object) -> Path:
        path = tmp_path / f"{name}{ending}"
        result = cli("compile", name, "--ranks", ranks, "-o", path, *more)
        assert result.exit_code == 0, result.stderr
        return path

    return save


@pytest.fixture
def wrong_file(saved: Call) -> Path:
    """A ring allreduce on 2 ranks that copies where it should reduce: each result misses one contribution."""
    path: Path = saved("ring_allreduce", 2, ".txt")
    text = path.read_text()
    for chunk in (0, 1):
        assert f"rrcs i[{chunk}] -> o[{chunk}]" in text
        text = text.replace(f"rrcs i[{chunk}] -> o[{chunk}]", f"rcs -> o[{chunk}]")
    path.write_text(text)
    return path
