"""The backend's benchmark prints the tables of a run that was kept, and judges the goals by its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "backend"


def record(crew: str, subject: str, seconds: float, right: bool = True) -> dict[str, Any]:
    """A subject's figures in the cell allreduce, 2 ranks, 1 KB."""
    cell = {"collective": "allreduce", "ranks": 2, "bytes": 1024, "condition": "cells", "right": right}
    return {"crew": crew, "subject": subject, "p10": seconds, "median": 2 * seconds, **cell}


def shown(tmp_path: Path, records: list[dict[str, Any]], *options: str) -> subprocess.CompletedProcess[str]:
    """What the benchmark prints of these records, and of a run of the memory's limit."""
    found = {"machine": {"cores": "2"}, "versions": {}, "lost": [], "missing": ["mpich"], "seconds": 1, "ddp": []}
    calls = {"registered": [4e-3, 4e-3, 2e-3]}
    limit = [{"ranks": 2, "reads": [40e9, 40e9, 60e9], "updates": [30e9] * 3, "calls": calls, "torch": [2e-6] * 9}]
    runs = {"cells.json": {"limit": [], "records": records}, "limit.json": {"limit": limit, "records": []}}
    for name, run in runs.items():
        (tmp_path / name).write_text(json.dumps({**found, **run}))
    command = [sys.executable, str(BENCHMARK), "--show", *(str(tmp_path / name) for name in runs), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_tables_and_goals_of_a_kept_run(tmp_path: Path) -> None:
    records = [
        record("native", "gloo", 200e-6),
        record("native", "commlib", 4e-6),
        record("native", "library", 0.5e-6),
        record("openmpi", "mpi", 2e-6),
        record("impi", "mpi", 1e-6),
    ]
    done = shown(tmp_path, records)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "not installed, left out: mpich" in lines
    assert "2 1K 200.0 400.0 4.0 8.0 50.0 50.0 - -" in lines
    assert "2 1K 2.0 - 1.0 0.5 2.00 - - 4.0 0.25" in lines
    assert "allreduce / gloo >= 6.5x 1 of 1 50.00x allreduce 2 ranks 1K" in lines
    assert "library allreduce / best MPI >= 1x 1 of 1 2.00x allreduce 2 ranks 1K" in lines
    assert "a call of 1K through torch <= 3, 15, 30 us 0 of 1 4.0 us (torch itself 2.0) allreduce 2 ranks 1K" in lines
    assert "measured in 2 s" in lines
    assert "2 40.0 30.0 registered 4000 84 112" in lines
    assert "registered allreduce of 64M / memory limit >= 85% 0 of 1 84% 2 ranks" in lines
    assert "allgather / gloo >= 4x not measured - -" in lines


def test_a_wrong_result_is_said_and_is_the_exit_code(tmp_path: Path) -> None:
    done = shown(tmp_path, [record("native", "commlib", 4e-6, right=False)], "--markdown", "--only", "goals")
    assert done.returncode == 1
    assert "WRONG RESULTS: 1" in done.stdout
    assert "| what | goal | cells that meet it | worst | where |" in done.stdout
    assert "torch.distributed, us" not in done.stdout
