"""commlib tune: measures on processes, writes the table, keeps what it did not measure, and says what it found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from commlib.collectives import Placement
from commlib.errors import FormatError, SpecError
from commlib.runtime.contest import uneven
from commlib.runtime.registry import Machine, Range, Registry, Row, read_registry, this_machine, write_registry
from commlib.runtime.shm.load import native_is_built

QUICK = ("--min", "4K", "--max", "16K", "--rounds", "1")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the table is written."""
    monkeypatch.delenv("COMMLIB_TUNING", raising=False)
    monkeypatch.setenv("COMMLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tuning" / "tuning.json"


def test_the_fastest_become_rows_and_the_rest_is_kept(cli, place):
    kept = Row("reduce", "mine", Range(2, 2))
    place.parent.mkdir(parents=True)
    native = native_is_built()
    write_registry(Registry((kept, replace(kept, collective="broadcast")), "", this_machine(native)), place)
    done = cli("tune", "-n", "2", "-c", "broadcast", "-c", "alltoallv", *QUICK)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["collective", "ranks", "size", "taken,", "us", "next,", "us", "registered,", "us"]
    assert [line.split()[:3] for line in lines[1:-1]] == [
        [name, "2", size] for name in ("alltoallv", "broadcast") for size in ("4K", "16K")
    ]
    assert lines[-1] == f"written to {place}"
    table = read_registry(place)
    assert table.machine == this_machine(native)
    for name in ("alltoallv", "broadcast"):
        plain = [row for row in table.rows if row.collective == name and row.reach == "any"]
        assert plain[0].bytes.low == 0
        assert plain[-1].bytes.high is None
        assert {(row.ranks, row.hosts, row.placement) for row in plain} == {(Range(2, 2), Range(1, 1), None)}
    assert kept in table.rows
    assert {row.collective for row in table.rows} == {"alltoallv", "broadcast", "reduce"}
    assert [entry.name for entry in place.parent.iterdir()] == ["tuning.json"]


def test_json_has_every_time(cli, tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    path.write_text("damaged")
    monkeypatch.setenv("COMMLIB_TUNING", str(path))
    done = cli("tune", "-n", "3", "-c", "allreduce", *QUICK, "--json")
    assert done.exit_code == 0, done.stderr
    assert "the earlier table is replaced" in done.stderr
    document = json.loads(done.stdout)
    assert document["file"] == str(path)
    (measured,) = document["measured"]
    assert (measured["collective"], measured["ranks"]) == ("allreduce", 3)
    ran = {(time["bytes"], time["algorithm"], time["reach"]) for time in measured["times"]}
    assert {(4096, "one_shot", "any"), (16384, "staged", "any"), (4096, "shared", "registered")} <= ran
    assert (4096, "shared", "readv") not in ran, "it writes to other ranks' tensors"
    assert any(time["seconds"] for time in measured["times"])
    assert read_registry(path).rows


def test_wrong_usage_is_told_before_anything_runs(cli, place):
    assert "no collective to tune is called 'allredcue'" in cli("tune", "-c", "allredcue").stderr
    assert "is not between 1 and 1G" in cli("tune", "--max", "2G").stderr
    assert cli("tune", "-n", "1").exit_code == 2
    assert not place.parent.exists()


def test_a_table_that_cannot_be_written_is_told(cli, tmp_path):
    (tmp_path / "file").write_text("")
    done = cli("tune", "-o", str(tmp_path / "file" / "t.json"), "-n", "2", "-c", "gather", *QUICK)
    assert done.exit_code == 1
    assert "cannot be written" in done.stderr


def test_ranks_that_far_outnumber_the_cores_are_refused_or_warned_of(cli, place, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    done = cli("tune", "-n", "1000", "-c", "allreduce")
    assert done.exit_code == 2
    assert "1000 ranks on 1 core: at most 32 are measured" in " ".join(done.stderr.replace("│", " ").split())
    assert not place.exists()
    done = cli("tune", "-n", "5", "-c", "gather", "--min", "4K", "--max", "4K", "--rounds", "1")
    assert done.exit_code == 0, done.stderr
    assert "5 ranks on 1 core take turns" in done.stderr


def test_the_bar_counts_cells_on_a_terminal(tmp_path):
    """script gives it a terminal."""
    if shutil.which("script") is None:
        pytest.skip("no command script, which makes a terminal")
    tune = f"{sys.executable} -m commlib.cli tune -n 2 -c gather -c scatter -o {tmp_path}/t.json"
    line = ["script", "-qec", f"{tune} --min 4K --max 16K --rounds 1", f"{tmp_path}/typescript"]
    shown = subprocess.run(line, capture_output=True, text=True, timeout=60).stdout
    places = [shown.index(f"tuning {name} on 2 ranks [") for name in ("gather", "scatter")]
    assert places == sorted(places)
    counts = re.findall(r"\] (\d)/4", shown)
    assert list(dict.fromkeys(counts)) == ["0", "1", "2", "3", "4"]


def test_a_pipe_is_not_replaced_by_a_table(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FormatError, match="pipe: cannot be written: not a regular file"):
        write_registry(Registry(()), pipe)
    assert pipe.is_fifo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


def test_uneven_sizes_are_the_same_in_both_directions():
    sizes = uneven(5, 100)
    assert {sum(row) for row in sizes} | {sum(column) for column in zip(*sizes, strict=True)} <= set(range(400, 600))
    assert len({size for row in sizes for size in row}) == 3


def test_machines_are_told_apart():
    assert this_machine(True) == this_machine(True) != this_machine(False)
    assert str(Machine("cpu", 2, True)) == "cpu, 2 cores, native core"
    with pytest.raises(SpecError, match="no collective"):
        Row("x", "y", placement=Placement.IN)
