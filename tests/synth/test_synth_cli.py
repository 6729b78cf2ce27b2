"""The synth command: what it prints, for a person and for a program, what it writes, how it fails."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from typer.testing import CliRunner

import commlib
from commlib.cli.app import build_app as commlib_app
from commlib.formats import load, xml_info
from commlib.topology import load_topology, ring, write_topology
from commlib.verify import verify
from synth.cli import progress
from synth.cli.app import build_app
from synth.engine import Progress

COMMANDS = ("solve", "machines", "bounds", "show")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "taccl"
JSON_KEYS = {
    *("engine", "time", "bound", "bound_kind", "gap", "proven", "seconds", "ranks", "chunks", "steps", "xml"),
    *("time_profile", "bound_profile"),
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """A cache that no other test sees."""
    monkeypatch.setenv("COMMLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def call(*arguments):
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def call_json(*arguments):
    result = call(*arguments, "--json")
    return result.exit_code, json.loads(result.stdout)


def test_help_and_version():
    result = call("--help")
    assert (result.exit_code, result.stdout.isascii()) == (0, True)
    assert all(f"\n  {name} " in result.stdout for name in COMMANDS)
    for name in COMMANDS:
        assert call(name, "--help").exit_code == 0
    assert call("--version").stdout == f"synth (commlib {commlib.__version__})\n"
    assert call().exit_code == 2


def test_entry_points():
    scripts = {point.name: point.value for point in entry_points(group="console_scripts")}
    assert scripts["synth"] == "synth.cli:main"
    through = CliRunner().invoke(commlib_app(), ["synth", "machines", "ring:3"])
    assert (through.exit_code, "3 ranks, 6 links" in through.stdout) == (0, True)
    wrong = CliRunner().invoke(commlib_app(), ["synth", "machines", "nonsense"])
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (1, 1)
    debugged = CliRunner().invoke(commlib_app(), ["--debug", "synth", "machines", "nonsense"])
    assert type(debugged.exception).__name__ == "TopologyError"


def test_solve_prints_and_writes_a_proved_algorithm(tmp_path):
    output = tmp_path / "ag.xml"
    result = call("solve", "allgather", "--topology", "ring:4", "-o", output)
    assert (result.exit_code, result.stderr) == (0, "")
    for line in ("time        20 us", "bound       20 us", "gap         none: proven optimal", "written     "):
        assert line in result.stdout
    algorithm = load(output)
    assert verify(algorithm).proved == algorithm.placements


def test_solve_in_json(tmp_path):
    output = tmp_path / "ag.xml"
    status, document = call_json("solve", "allgather", "-t", "ndv2", "-o", output, "--mode", "greedy")
    assert (status, document.keys() >= JSON_KEYS) == (0, True)
    assert document["xml"] == str(output)
    assert document["bound"] == pytest.approx(69.9e-6)
    assert document["bound_profile"] == pytest.approx(69.9)
    assert document["time"] == pytest.approx(document["time_profile"] * 1e-6)
    assert document["proven"] is (document["gap"] == 0)
    assert (document["ranks"], document["chunks"], document["steps"]) == (8, 1, load(output).step_count)


@pytest.mark.parametrize(
    "name", ["alltoall", "broadcast", "scatter", "gather", "reducescatter", "reduce", "allreduce", "sendrecv"]
)
def test_every_collective(name):
    status, document = call_json("solve", name, "-t", "ring:3", "--mode", "greedy", "--size", "3K", "--no-cache")
    assert (status, document["collective"], document["xml"]) == (0, name, None)
    assert document["time"] >= document["bound"] > 0


def test_alltoallv_takes_a_matrix_of_sizes(tmp_path):
    path = tmp_path / "sizes.json"
    path.write_text("[[0, 1024, 5], [2048, 0, 7], [1, 1, 1]]")
    assert call_json("solve", "alltoallv", "-t", "ring:3", "--sizes", path, "--mode", "greedy")[0] == 0
    for text in ("[[1]]", "{}", "[[1, 2, 3], [1, 2, 3], [1, 2, -3]]", '[[1,2,3],[1,2,3],[1,2,"x"]]'):
        path.write_text(text)
        assert call("solve", "alltoallv", "-t", "ring:3", "--sizes", path).exit_code == 1


MATRIX = [[9, 1024, 5], [2048, 0, 7], [1, 1, 1]]
"""What stays on a rank, in the diagonal, is not moved."""


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_matrix_is_told_by_its_total_and_its_largest_size(chunks, tmp_path):
    (tmp_path / "sizes.json").write_text(json.dumps(MATRIX))
    where = ("--sizes", tmp_path / "sizes.json", "--chunks", chunks)
    solved = ("solve", "alltoallv", "-t", "ring:3", *where, "--mode", "greedy")
    bounded = ("bounds", "ring:3", "alltoallv", *where)
    for line in (solved, bounded):
        assert "on ring: 3 ranks, 3086 B in all, at most 2K from one rank to another\n" in call(*line).stdout
        document = call_json(*line)[1]
        assert (document["total_bytes"], document["largest_bytes"], document["chunk_bytes"]) == (3086, 2048, None)
        for size in ("1K", "1K-1M"):
            refused = call(*line, "--size", size)
            assert (refused.exit_code, refused.stdout) == (2, "")
            assert "leave --size out" in " ".join(refused.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "moved"),
    [
        (("allgather", "--size", "1K"), "1 chunk of 256 B per shard"),
        (("allgather", "--size", "1M", "--chunks", 2), "2 chunks of 128K per shard"),
        (("alltoall", "--size", "6", "--chunks", 4), "4 chunks of 0.375 B per shard"),
        (("allreduce", "--size", "1K", "--mode", "taccl"), "4 chunks of 256 B per buffer"),
        (("alltoallv", "--size", "1K"), "3K in all, at most 256 B from one rank to another"),
    ],
)
def test_sizes_have_units(arguments, moved):
    assert f"on ring: 4 ranks, {moved}\n" in call("solve", *arguments, "-t", "ring:4", "--time-limit", 5).stdout


def test_a_plan_that_an_earlier_search_found_is_said_to_be_its():
    line = ("solve", "allgather", "-t", "ndv2")
    call(*line, "--mode", "exact")
    status, document = call_json(*line, "--mode", "greedy")
    assert (status, document["engine"], document["proven"]) == (0, "exact", True)
    assert document["notes"] == ["from an earlier search"]
    printed = call(*line, "--mode", "greedy", "--seed", 1).stdout
    assert "engine      exact, ended by proof\n" in printed
    assert "note        from an earlier search\n" in printed


def test_the_second_answer_comes_from_the_cache(own_cache):
    line = ("solve", "allgather", "-t", "ring:4", "--instances", "2")
    assert "from the cache" not in call(*line, "--no-cache").stdout
    assert not own_cache.exists()
    assert "from the cache" not in call(*line).stdout
    assert "from the cache" in call(*line).stdout


def test_a_range_of_sizes_has_a_file_for_each_part(tmp_path):
    line = ("solve", "allgather", "-t", "ring:4", "--size", "1K-1M", "--mode", "greedy", "-o", tmp_path / "ag.xml")
    status, document = call_json(*line)
    parts = document["ranges"]
    assert (status, parts[0]["low"], parts[-1]["high"]) == (0, 1 << 10, 1 << 20)
    assert [part["low"] for part in parts[1:]] == [part["high"] + 1 for part in parts[:-1]]
    for part in parts:
        info = xml_info(part["xml"])
        assert (info.min_bytes, info.max_bytes) == (part["low"], part["high"])
    assert "each algorithm proved" in call(*line).stdout


def test_machines_and_a_topology_that_is_read_again(tmp_path):
    listed = call("machines").stdout
    assert all(name in listed for name in ("ndv2", "dgx1", "a100", "torus:8x8x8"))
    assert {made["name"] for made in call_json("machines")[1]["machines"]} >= {"ndv2", "dgx2"}
    (tmp_path / "two.json").write_text(call("machines", "ndv2", "--nodes", 2, "--json").stdout)
    assert load_topology(tmp_path / "two.json").ranks == 16
    write_topology(ring(3), tmp_path / "ring.json")
    assert "3 ranks, 6 links" in call("machines", tmp_path / "ring.json").stdout


def test_bounds_have_certificates():
    printed = call("bounds", "ndv2", "allgather", "--nodes", 2).stdout
    assert "912.2 us" in printed
    assert "8 items must enter ranks" in printed
    status, document = call_json("bounds", "ring:4", "allreduce", "--size", "1M")
    assert (status, document["bound_kind"]) == (0, document["bounds"][0]["kind"])
    assert document["bound"] == pytest.approx(7.5e-6)
    assert call("bounds", "ring:4", "allgather", "--size", "1K-1M").exit_code == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="TACCL's files are not here")
def test_bounds_with_a_sketch_are_for_both_problems():
    sketch = sorted(SHARED.rglob("sk1-ndv2-n2.json"))
    if not sketch:
        pytest.skip("that sketch is not here")
    printed = call("bounds", "ndv2", "allgather", "--nodes", 2, "--sketch", sketch[0]).stdout
    assert "the whole topology, without the sketch" in printed


def test_show_draws_results_and_algorithms(tmp_path):
    xml, kept, svg = tmp_path / "ag.xml", tmp_path / "kept.json", tmp_path / "ag.svg"
    call("solve", "allgather", "-t", "ring:3", "-o", xml, "--save", kept, "--mode", "greedy")
    for arguments in ((kept,), (xml, "--topology", "ring:3", "--svg", svg)):
        shown = call("show", *arguments)
        assert shown.exit_code == 0
        assert "chunk 0 of rank 0: 0 -> 1, 0 -> 2" in shown.stdout
        assert "0 -> 1 |AAAA" in shown.stdout
    assert svg.read_text().startswith("<svg")
    status, document = call_json("show", kept)
    assert (status, len(document["flights"])) == (0, 6)
    assert document["time"] == pytest.approx(10e-6)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("solve", "allgather", "-t", "ndv3"), 1, "'ndv3' is no known topology; near: ndv2"),
        (("solve", "allgather", "-t", "nowhere.json"), 1, "nowhere.json: cannot be read"),
        (("solve", "nonsense", "-t", "ring:3"), 1, "no collective is called 'nonsense'"),
        (("solve", "allgather", "-t", "ring:3", "--sketch", "nowhere.json"), 1, "nowhere.json"),
        (("solve", "allgather", "-t", "ring:3", "--profile", "nowhere.json"), 1, "nowhere.json"),
        (("solve", "allgather", "-t", "ring:3", "-o", "a.png"), 1, "a.png: what is written ends in .xml, .json, .txt"),
        (("solve", "allgather", "-t", "ring:3", "-o", "no/where.xml"), 1, "there is no folder no"),
        (("solve", "broadcast", "-t", "ring:3", "--root", "7"), 1, "root 7 is not one of the 3 ranks"),
        (("solve", "allgather", "-t", "ring:3", "--mode", "magic"), 2, "--mode is auto"),
        (("solve", "allgather", "-t", "ring:3", "--cost", "free"), 2, "--cost is exact or taccl"),
        (("solve", "allgather", "-t", "ring:3", "--size", "2K-1K"), 2, "a range goes upwards"),
        (("solve", "allgather", "-t", "ring:3", "--size", "much"), 2, "is not a size"),
        (("solve", "allgather"), 2, "Missing option"),
        (("show", "nowhere.json"), 1, "nowhere.json: cannot be read"),
        (("show", "some.xml"), 1, "some.xml: cannot be read"),
        (("bounds", "ring:3", "nonsense"), 1, "no collective is called 'nonsense'"),
    ],
)
def test_failures_are_told_in_one_place(arguments, status, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert message in " ".join(result.stderr.split())
    if status == 1:
        assert result.stderr.startswith("synth: ")
    status, document = call_json(*arguments)
    assert (status, document["ok"]) == (result.exit_code, False)
    assert document["error"]["message"]


def test_an_unreachable_rank_is_named(tmp_path):
    path = tmp_path / "broken.json"
    kinds = {"a": {"alpha": 0.0, "beta": 1e-12}}
    value = {"format": "commlib-topology", "version": 1, "name": "broken", "ranks": 3, "kinds": kinds}
    path.write_text(json.dumps({**value, "links": [[0, 1, "a"], [1, 0, "a"], [2, 0, "a"]]}))
    result = call("solve", "allgather", "-t", path)
    assert result.exit_code == 1
    assert "rank 2" in result.stderr


def test_progress_in_words():
    assert progress.describe(Progress("exact", 120, 100, 7.4, 1e-6)) == (
        "exact: 120 us, bound 100 us, gap 20.0%, 7 s left"
    )
    assert progress.describe(Progress("flow", None, 3, 0.2, 1e-3)) == "flow: nothing yet, bound 3 ms, 0 s left"
    assert progress.duration(2.5) == "2.5 s"


def test_a_bar_is_drawn_on_terminals_only(monkeypatch, capsys):
    quiet = progress.Bar(10.0)
    quiet(Progress("exact", 1, 1, 5.0, 1e-6))
    quiet.hide()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    bar = progress.Bar(10.0)
    bar(Progress("exact", 1, 1, 5.0, 1e-6))
    bar.hide()
    drawn = capsys.readouterr().out
    assert drawn.startswith("\r\x1b[K[############------------] exact: 1 us, bound 1 us")
    assert drawn.endswith("\r\x1b[K")


def test_as_a_process(tmp_path):
    line = [sys.executable, "-m", "synth.cli", "solve", "allgather", "-t", "ring:3", "--json", "--mode", "greedy"]
    env = {**os.environ, "COMMLIB_CACHE": str(tmp_path)}
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["proven"] is True
