"""``commlib run``, ``bench`` and ``demo`` on real processes: exact results, tables, exit statuses."""

import json
import re
from importlib.metadata import EntryPoint

import pytest

from commlib.algorithms import find
from commlib.cli import plugins
from commlib.cli.bench import CHOICE
from commlib.cli.demo import LibraryStage
from commlib.formats import load

ROW = {"collective", "algorithm", "ranks", "size", "dtype", "op", "in_place", "time_us", "algbw", "busbw", "wrong"}


def table_rows(text):
    """The data lines of an nccl-tests table, split."""
    return [line.split() for line in text.splitlines() if re.match(r" *\d+ ", line)]


def test_run_a_library_algorithm(command):
    done = command("run", "ring_allreduce", "-n", 3, "--size", "0,10,1K", "--dtype", "bfloat16", "--iterations", 2)
    assert (done.returncode, done.stderr) == (0, "")
    rows = table_rows(done.stdout)
    assert [(row[0], row[1], row[2], row[3], row[4]) for row in rows] == [
        ("0", "0", "bfloat16", "sum", "-1"),
        ("10", "5", "bfloat16", "sum", "-1"),
        ("1024", "512", "bfloat16", "sum", "-1"),
    ]
    assert [(row[8], row[12]) for row in rows] == [("0", "0")] * 3
    assert "# Out of bounds values : 0 OK" in done.stdout


def test_run_a_file_in_json(command, saved):
    path = saved("binomial_reduce", 3, ".xml", "--root", 1)
    line = ("run", path, "-n", 3, "--root", 1, "--op", "max", "--dtype", "int32", "--placement", "out", "--json")
    done = command(*line, "--size", "400")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is True
    (row,) = document["rows"]
    assert {key: row[key] for key in ("collective", "ranks", "size", "count", "op", "dtype", "root", "in_place")} == {
        "collective": "reduce",
        "ranks": 3,
        "size": 400,
        "count": 100,
        "op": "max",
        "dtype": "int32",
        "root": 1,
        "in_place": False,
    }
    assert row["wrong"] == 0


def test_run_refuses_what_is_not_proved(cli, wrong_file):
    result = cli("run", wrong_file)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not proved, so not run (--unsafe runs it all the same)" in result.stderr


def test_json_of_a_refused_run_has_the_findings(cli_json, wrong_file):
    status, found = cli_json("run", wrong_file, "--placement", "out")
    assert (status, found["ok"]) == (1, False)
    assert {(f["kind"], f["placement"]) for f in found["findings"]} == {("postcondition", "out")}
    assert found["error"]["kind"] == "VerificationError"
    assert found["error"]["message"] == "not proved, so not run (--unsafe runs it all the same)"


def test_run_unsafe_reports_what_came_out(command, wrong_file):
    done = command("run", wrong_file, "--unsafe", "--size", "1K", "--json")
    assert done.returncode == 1
    assert "is not proved out of place; it runs as --unsafe says" in done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is False
    # Each rank misses one contribution in each of its 256 elements; it shows where that is not 0, in 3 of 4.
    assert [(row["in_place"], row["wrong"]) for row in document["rows"]] == [(False, 384), (True, 384)]


STUCK = """algorithm "stuck"
collective "sendrecv" ranks 2 chunks 1
protocol "Simple"
placements in out
scratch 0 0

rank 0
tb 0 send 1 recv 1 channel 0
  0 r -> o[0]
  1 s i[0]

rank 1
tb 0 send 0 recv 0 channel 0
  0 r -> o[0]
  1 s i[0]
"""


def test_run_unsafe_ends_by_its_deadline(command, tmp_path):
    path = tmp_path / "stuck.txt"
    path.write_text(STUCK)
    done = command("run", path, "--unsafe", "--placement", "out", "--timeout", 1, "--json", timeout=40)
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["ok"] is False
    assert document["error"]["kind"] in ("DeadlineError", "PeerFailedError", "ExecutionError")


def test_run_knows_that_its_messages_are_never_cut(command, tmp_path):
    text = STUCK.replace("  0 r -> o[0]\n  1 s i[0]", "  0 s i[0:16]\n  1 r -> o[0:16]").replace(
        "chunks 1", "chunks 16"
    )
    path = tmp_path / "wide.txt"
    path.write_text(text)
    strict = command("verify", path, "--placement", "out")
    assert (strict.returncode, "smallest that works: 16" in strict.stdout) == (1, True)
    done = command("run", path, "--placement", "out", "--size", "1K")
    assert (done.returncode, done.stderr) == (0, "")


def test_run_a_placement_that_is_not_proved(cli, saved):
    path = saved("direct_alltoall", 2)
    result = cli("run", path, "--placement", "in")
    assert result.exit_code == 1
    assert "not proved, so not run" in result.stderr


def test_in_place_without_a_meaning(cli, tmp_path):
    text = STUCK.replace(
        '"sendrecv" ranks 2 chunks 1', '"mine" ranks 2 chunks 1\ncustom specified\ninputs 1 1\noutputs 1 1'
    )
    path = tmp_path / "mine.txt"
    path.write_text(text.replace("placements in out", "placements out"))
    for options in ((), ("--unsafe",)):
        result = cli("run", path, "--placement", "in", *options)
        assert (result.exit_code, result.stdout) == (1, "")
    assert "mine has no in-place form" in result.stderr


def test_a_placement_that_is_not_proved_is_left_out(command, saved):
    done = command("run", saved("direct_alltoall", 2), "--size", "1K")
    assert done.returncode == 0, done.stderr
    assert [len(row) for row in table_rows(done.stdout)] == [9]


def test_results_that_nobody_defined_are_not_called_right(command, saved):
    path = saved("direct_sendrecv", 2)
    path.write_text(path.read_text().replace('coll="sendrecv"', 'coll="custom"'))
    done = command("run", path, "--size", "1K", "--placement", "out")
    assert done.returncode == 0
    assert "has no postcondition (see --collective): its results are not checked" in done.stderr
    assert "# Out of bounds values : N/A" in done.stdout
    done = command("run", path, "--size", "1K", "--placement", "out", "--collective", "sendrecv")
    assert (done.returncode, done.stderr) == (0, "")
    assert "# Out of bounds values : 0 OK" in done.stdout


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("-n", 3), 1, "is for 2 ranks, not 3; leave -n out, or give -n 2"),
        (("--dtype", "float33"), 1, "no element type is called 'float33'"),
        (("--op", "median"), 1, "no reduction is called 'median'"),
        (("--op", "band"), 1, "band"),
        (("--size", "many"), 2, "is not a size"),
        (("--param", "nodes=2"), 1, "parameters are for library algorithms"),
    ],
)
def test_run_refusals(cli, saved, options, status, message):
    result = cli("run", saved("ring_allreduce", 2), *options)
    assert result.exit_code == status
    assert message in result.stderr


def test_bench_prints_the_table_beside_gloo(command):
    line = ("bench", "allreduce", "-n", 2, "-b", "1K", "-e", "4K", "-f", 4, "--algorithm", "ring", "--vs", "gloo")
    done = command(*line, "--iterations", 3, "--warmup", 1)
    assert done.returncode == 0, done.stderr
    assert "# Collective test starting: allreduce" in done.stdout
    assert "step: 4(factor) warmup iters: 1 iters: 3 validation: 1" in done.stdout
    rows = table_rows(done.stdout)
    assert [row[:5] for row in rows] == [
        ["1024", "256", "float", "sum", "-1"],
        ["4096", "1024", "float", "sum", "-1"],
    ]
    assert all(len(row) == 17 for row in rows)
    assert all(float(row[k]) > 0 for row in rows for k in (5, 9, 13, 15))
    assert re.search(r"# Avg bus bandwidth    : \S+\n#\n$", done.stdout)


def test_bench_json(command):
    line = ("bench", "allgather", "-n", 3, "-b", "600", "-e", "600", "--vs", "gloo", "--json")
    done = command(*line, "--iterations", 2, "-d", "half")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["ok"] is True
    out, into = document["rows"]
    assert set(out) >= ROW | {"count", "root", "peers"}
    assert (out["in_place"], into["in_place"]) == (False, True)
    for row in (out, into):
        assert (row["collective"], row["ranks"], row["size"], row["dtype"]) == ("allgather", 3, 600, "float16")
        assert (row["op"], row["wrong"]) == ("none", 0)
        assert row["algbw"] == pytest.approx(600 / row["time_us"] / 1e3)
        assert row["busbw"] == pytest.approx(row["algbw"] * 2 / 3)
        assert set(row["peers"]["gloo"]) == {"time_us", "busbw"}


def test_bench_chooses_for_small_and_for_large_messages(command):
    line = ("bench", "allreduce", "-n", 3, "-b", "32K", "-e", "128K", "-i", "96K", "--json")
    done = command(*line, "--iterations", 1, "--warmup", 0, "--placement", "in")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["size"], row["in_place"]) for row in rows] == [(32_768, True), (131_072, True)]
    assert [row["algorithm"] for row in rows] == ["allpairs_one_shot_allreduce", "ring_allreduce"]


def test_bench_names_once_what_it_chose_for_both(command):
    line = ("bench", "broadcast", "-n", 2, "-b", "64K", "-e", "128K", "--root", 1, "--placement", "in")
    done = command(*line, "--iterations", 1, "--warmup", 0)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^# (\S+ to \S+): (\S+) on processes", done.stdout, re.MULTILINE) == [
        ("64K to 128K", "binomial_broadcast")
    ]
    assert [(row[0], row[4]) for row in table_rows(done.stdout)] == [("65536", "1"), ("131072", "1")]


def test_bench_measures_each_size_once(command):
    line = ("bench", "alltoall", "-n", 2, "-b", 0, "-e", 16, "--iterations", 1, "--warmup", 0)
    done = command(*line)
    assert done.returncode == 0, done.stderr
    rows = table_rows(done.stdout)
    assert [(row[0], row[1]) for row in rows] == [("0", "0"), ("8", "1"), ("16", "2")]
    assert all(len(row) == 13 for row in rows)  # the choice for alltoall is proved in both placements


def test_every_choice_of_bench_is_in_the_library():
    for (collective, _), name in CHOICE.items():
        assert find(name).collective == collective


def test_bench_a_file(command, saved):
    path = saved("chain_broadcast", 2, ".xml", "--param", "chunks=2")
    line = ("-n", 2, "-b", "1K", "-e", "1K", "--algorithm", path, "--iterations", 1)
    done = command("bench", "broadcast", *line)
    assert done.returncode == 0, done.stderr
    assert "# 1K to 1K: chain_broadcast on processes" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("allredduce",), "no collective is called 'allredduce'"),
        (("allreduce", "--algorithm", "rong"), "did you mean 'ring'?"),
        (("allreduce", "-n", "3", "--algorithm", "hierarchical"), "multiple of nodes=2"),
        (("allreduce", "-n", "2", "--param", "nodes=2"), "--param is for a named --algorithm"),
        (("allgather", "-n", "2", "--algorithm", "FILE"), "allreduce"),
        (("allreduce", "-n", "4", "--algorithm", "FILE"), "is for 2 ranks, not 4"),
    ],
)
def test_bench_refusals(cli, saved, options, message):
    path = saved("ring_allreduce", 2)
    result = cli("bench", *(path if option == "FILE" else option for option in options))
    assert result.exit_code == 1
    assert message in result.stderr


def test_an_unknown_peer_and_an_empty_range(cli):
    assert "there is no such peer; there is gloo" in cli("bench", "allreduce", "--vs", "nccl").stderr
    result = cli("bench", "allreduce", "-b", "2K", "-e", "1K")
    assert (result.exit_code, "the range of sizes is empty: 2K to 1K" in result.stderr) == (2, True)


@pytest.mark.timeout(120)
def test_demo(command, tmp_path):
    keep = tmp_path / "kept" / "here"
    done = command("demo", "--keep", keep)
    assert (done.returncode, done.stderr) == (0, "")
    titles = re.findall(r"^(\d)\. ", done.stdout, re.MULTILINE)
    assert titles == ["1", "2", "3", "4", "5", "6", "7"]
    assert "3. Synthesize an allreduce of 1 MiB" in done.stdout
    assert re.search(r"predicted .* us, lower bound .* us", done.stdout)
    assert {file.name for file in keep.iterdir()} == {"topology.json", "sketch.json", "synthesized_allreduce.xml"}
    assert done.stdout.count("proved for in place, out of place") == 2
    rows = [row for row in table_rows(done.stdout) if len(row) == 13]  # not the topology's matrix
    assert [int(row[0]) for row in rows] == [1 << 10, 16 << 10, 256 << 10, 1 << 20, 4 << 20]
    assert all((row[8], row[12]) == ("0", "0") for row in rows)
    assert "# Out of bounds values : 0 OK" in done.stdout
    assert "demo: all right" in done.stdout
    algorithm = load(keep / "synthesized_allreduce.xml")
    assert (algorithm.ranks, algorithm.collective.name) == (8, "allreduce")


def test_without_a_stage_the_demo_compiles_a_library_algorithm(monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    assert plugins.load_demo_stage() is None
    titles, algorithm = LibraryStage().make(tmp_path)
    assert titles == ["Compile hierarchical_allreduce for 2 nodes x 4 ranks"]
    assert (algorithm.name, algorithm.ranks) == ("hierarchical_allreduce", 8)


def test_a_broken_stage_of_the_demo_is_told(cli, monkeypatch):
    broken = EntryPoint("bad", "no.such.module:stage", plugins.DEMO_GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [broken] if group == plugins.DEMO_GROUP else [])
    result = cli("demo")
    assert result.exit_code == 1
    assert result.stderr.startswith("commlib: the demo's stage 'bad' (no.such.module:stage) cannot be loaded: ")


def test_demo_where_it_cannot_write(cli, tmp_path):
    (tmp_path / "file").write_text("")
    result = cli("demo", "--keep", tmp_path / "file")
    assert result.exit_code == 1
    assert result.stderr.startswith("commlib: --keep ")
