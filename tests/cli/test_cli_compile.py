"""``commlib compile``: what it accepts, proves, writes and refuses."""

import pytest

from commlib.formats import load, xml_info
from commlib.ir.stats import statistics


def refused(result):
    """The message of a refusal: one typed error, no traceback, nothing on stdout."""
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("commlib: ")
    return result.stderr.removeprefix("commlib: ")


def test_a_function_with_a_collective(cli, ring_py, tmp_path):
    path = tmp_path / "ring.xml"
    result = cli("compile", ring_py, "--collective", "allreduce", "-n", 4, "--chunks", 4, "-o", path)
    assert result.exit_code == 0
    algorithm = load(path)
    assert str(algorithm.collective) == "allreduce(ranks=4, chunks=4)"
    assert (algorithm.name, algorithm.step_count, algorithm.channels) == ("ring", 4 * 7, 1)
    assert result.stdout.splitlines() == [
        "ring: allreduce(ranks=4, chunks=4)",
        "  meant for      in place, out of place",
        "  protocol       Simple",
        "  steps          28",
        "  threadblocks   4 (the longest has 7 steps)",
        "  channels       1",
        "  messages       24 (24 chunks; 6 from the rank that sends most)",
        "  critical path  6 messages",
        "  proved for in place, out of place; free of deadlock from FIFO depth 1 on",
        f"  written to {path}",
    ]


def test_json(cli_json, ring_py, tmp_path):
    path = tmp_path / "ring.json"
    status, found = cli_json("compile", ring_py, "--collective", "allreduce", "-n", 3, "--chunks", 3, "-o", path)
    assert status == 0
    assert (found["ok"], found["algorithm"], found["collective"], found["ranks"]) == (True, "ring", "allreduce", 3)
    assert (found["steps"], found["critical_path"], found["chunks_sent"]) == (15, 4, [4, 4, 4])
    assert found["output"] == str(path)
    assert found["verification"]["placements"]["in"]["ok"] is True


@pytest.mark.parametrize("ending", [".xml", ".json", ".txt"])
def test_every_form_holds_the_same(saved, ending):
    from commlib.algorithms import find
    from commlib.compiler import compile_trace

    compiled = compile_trace(find("ring_allgather").trace(3))
    assert load(saved("ring_allgather", 3, ending)) == compiled


def test_a_library_name_with_parameters(cli, tmp_path):
    def sends(nodes):
        path = tmp_path / f"{nodes}.json"
        line = ("compile", "hierarchical_allreduce", "--ranks", 4, "--param", f"nodes={nodes}", "-o", path)
        assert cli(*line).exit_code == 0
        return statistics(load(path)).critical_path

    assert sends(2) != sends(4)


def test_a_short_name_with_its_collective(cli):
    assert cli("compile", "ring", "--collective", "allgather", "-n", 2).stdout.startswith("ring_allgather: ")


def test_a_rooted_collective(cli, tmp_path):
    path = tmp_path / "b.json"
    assert cli("compile", "binomial_broadcast", "-n", 4, "--root", 3, "-o", path).exit_code == 0
    assert load(path).collective.root == 3


def test_instances_blocked_and_protocol(cli, ring_py, tmp_path):
    def compiled(*options):
        path = tmp_path / "x.json"
        line = ("compile", ring_py, "--collective", "allreduce", "-n", 2, "--chunks", 2, "-o", path, *options)
        assert cli(*line).exit_code == 0
        return load(path)

    plain, two = compiled(), compiled("--instances", 2)
    assert (two.collective.chunks, two.step_count) == (4, 2 * plain.step_count)
    assert compiled("--instances", 2, "--blocked") != two
    assert compiled("--protocol", "LL128").protocol == "LL128"
    assert compiled("--no-fuse").step_count > plain.step_count
    assert compiled("--placement", "out").placements < plain.placements


def test_fifo_depth_is_the_depth_of_the_proof(cli_json, ring_py):
    line = ("compile", ring_py, "--collective", "allreduce", "-n", 2, "--chunks", 2)
    assert cli_json(*line, "--fifo-depth", 3)[1]["verification"]["fifo_depth"] == 3
    assert cli_json(*line)[1]["verification"]["fifo_depth"] == 8


def test_xml_options(cli, tmp_path):
    path = tmp_path / "x.xml"
    options = ("--dialect", "executor", "--min-bytes", "1K", "--max-bytes", "2M")
    assert cli("compile", "ring_allreduce", "-n", 2, "-o", path, *options).exit_code == 0
    info = xml_info(path)
    assert (info.dialect, info.min_bytes, info.max_bytes) == ("executor", 1024, 2 << 20)
    message = refused(cli("compile", "ring_allreduce", "-n", 2, "-o", tmp_path / "x.json", *options))
    assert "--dialect, --min-bytes and --max-bytes are for .xml files" in message
    assert "no dialect is called 'nccl'" in refused(
        cli("compile", "ring_allreduce", "-n", 2, "-o", path, "--dialect", "nccl")
    )


def test_bounds_that_hold_no_size(cli, tmp_path):
    path = tmp_path / "x.xml"
    result = cli("compile", "ring_allreduce", "-n", 2, "-o", path, "--min-bytes", "5K", "--max-bytes", "1K")
    assert (result.exit_code, path.exists()) == (2, False)
    assert "--min-bytes 5K is more than --max-bytes 1K" in result.stderr


def test_a_directory_is_not_a_program(cli, tmp_path):
    assert refused(cli("compile", tmp_path)) == f"{tmp_path}: a directory, not a Python file\n"


def test_counts_of_one(cli):
    lines = cli("compile", "binomial_broadcast", "-n", 2).stdout.splitlines()
    assert "  threadblocks   3 (the longest has 1 step)" in lines
    assert "  messages       1 (1 chunk; 1 from the rank that sends most)" in lines
    assert "  critical path  1 message" in lines


def test_without_output_nothing_is_written(cli):
    result = cli("compile", "ring_allreduce", "-n", 2)
    assert "nothing written: no --output" in result.stdout


OBJECTS = {
    "trace": "trace = record(ring, allreduce(2, 2))\n",
    "program": "program = Program(allreduce(2, 2), 'ring')\nring(program)\n",
    "twice named": "trace = record(ring, allreduce(2, 2))\nsame = trace\n",
    "collective in the file": "COLLECTIVE = allreduce(2, 2)\n",
}
IMPORTS = "from commlib import record\nfrom commlib.collectives import allreduce\n"


@pytest.mark.parametrize("source", OBJECTS.values(), ids=OBJECTS)
def test_what_a_file_may_hold(cli, ring_py, source):
    ring_py.write_text(ring_py.read_text() + IMPORTS + source)
    result = cli("compile", ring_py)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("ring: allreduce(ranks=2, chunks=2)\n")


def test_the_function_is_chosen(cli, ring_py):
    ring_py.write_text(ring_py.read_text() + "\ndef other(p: 'Program', n: int = 1) -> None:\n    ring(p)\n")
    line = ("compile", ring_py, "--collective", "allreduce", "-n", 2, "--chunks", 2)
    message = "several functions take a Program (ring, other); choose one with --function\n"
    assert refused(cli(*line)) == f"{ring_py}: {message}"
    assert cli(*line, "--function", "other").stdout.startswith("other: ")
    assert "no function is called 'third'; there are: ring, other" in refused(cli(*line, "--function", "third"))


def test_the_collective_of_a_file(cli, tmp_path):
    swap = tmp_path / "swap.json"
    swap.write_text(
        '{"name": "swap", "inputs": [1, 1], "outputs": [1, 1],'
        ' "sources": [[0, 0, [[1, 0]]], [1, 0, [[0, 0]]]], "offsets": null}'
    )
    program = tmp_path / "swap.py"
    program.write_text(
        "def swap(p):\n    for r in (0, 1):\n        p.chunk(r, 'input').copy(1 - r, 'output', 0)\n"
        "def _helper(p):\n    pass\n"
    )
    out = tmp_path / "swap_out.json"
    assert cli("compile", program, "--collective", swap, "-o", out).exit_code == 0
    assert load(out).collective.name == "swap"
    assert "--ranks, --chunks and --root are for one given by name" in refused(
        cli("compile", program, "--collective", swap, "--ranks", 2)
    )
    assert "which has none for swap" in refused(cli("compile", "ring_allreduce", "--collective", swap, "-n", 2))


def test_parameters_reach_the_function(cli, ring_py):
    ring_py.write_text(
        "from commlib import Program\n"
        "def f(p: Program, far: int) -> None:\n    p.chunk(0, 'input').copy(far, 'output', 0)\n"
    )
    line = ("compile", ring_py, "--collective", "alltonext", "-n", 2)
    assert cli(*line, "--param", "far=1").exit_code == 0
    assert "missing a required argument: 'far' (see --param)" in refused(cli(*line))
    more = ("--param", "far=1", "--param", "near=1")
    assert "got an unexpected keyword argument 'near'" in refused(cli(*line, *more))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("x = 1\n", (), "no function that takes a Program"),
        ("def f(p):\n    pass\n", (), "which collective? give --collective NAME --ranks N"),
        ("def f(p):\n    pass\n", ("--collective", "allreduce"), "on how many ranks?"),
        ("x = 1\n1/0\n", (), ":2: ZeroDivisionError: division by zero"),
        ("def f(\n", (), ":1: SyntaxError"),
        ("import sys\n\nsys.exit(3)\n", (), ":3: SystemExit: 3"),
        ("def f(p):\n    p.boom()\n", ("--collective", "allreduce", "-n", "2"), ":2: AttributeError"),
        ("def f(p):\n    p.chunk(9, 'input')\n", ("--collective", "allreduce", "-n", "2"), ":2: there is no rank 9"),
    ],
)
def test_refusals_name_the_users_line(cli, tmp_path, source, options, message):
    path = tmp_path / "program.py"
    path.write_text(source)
    error = refused(cli("compile", path, *options))
    assert error.startswith(str(path))
    assert message in error


def test_options_that_a_recorded_program_fixes(cli, ring_py):
    ring_py.write_text(ring_py.read_text() + IMPORTS + OBJECTS["trace"])
    message = refused(cli("compile", ring_py, "--ranks", 4, "--instances", 2))
    assert "trace is recorded in the file, which also fixes its ranks, instances" in message
    ring_py.write_text(ring_py.read_text() + "other = record(ring, allreduce(3, 3))\n")
    assert "it records several programs (trace, other)" in refused(cli("compile", ring_py))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("ring_allreduc", "-n", 2), "did you mean 'ring_allreduce'?"),
        (("ring_allreduce",), "on how many ranks? Give --ranks N"),
        (("ring_allreduce", "-n", 2, "--chunks", 3), "fixes its own chunks"),
        (("ring_allreduce", "-n", 2, "--collective", "allgather"), "no allgather algorithm is called 'ring_allreduce'"),
        (("ring_allreduce", "-n", 2, "--protocol", "foo"), "no protocol is called 'foo'; there are Simple, LL, LL128"),
        (("ring_allreduce", "-n", 2, "--param", "nodes=2"), "no parameter 'nodes'"),
        (("ring_allreduce", "-n", 2, "--param", "instances=2"), "no parameter 'instances'"),
        (("hierarchical_allreduce", "-n", 5), "multiple of nodes=2"),
        (("nowhere.py",), "there is no such file"),
        (("nowhere.py", "--collective", "alreduce"), "no collective is called 'alreduce'"),
        (("nowhere.xml",), "compiled already"),
    ],
)
def test_refusals_of_names(cli, options, message):
    assert message in refused(cli("compile", *options))


def test_what_is_not_proved_is_not_written(cli, lossy_py, tmp_path):
    path = tmp_path / "lossy.xml"
    line = ("compile", lossy_py, "--collective", "allreduce", "-n", 2, "--placement", "out", "-o", path)
    message = refused(cli(*line))
    assert message.startswith("not proved, so nothing is written\n")
    assert "postcondition: rank 0 o[0]: the contribution of rank 0 i[0] is lost" in message
    assert not path.exists()
    result = cli(*line, "--unsafe")
    assert result.exit_code == 0
    assert "NOT PROVED" in result.stdout
    assert load(path).step_count == 4


def test_json_of_what_is_not_proved_has_the_findings(cli_json, lossy_py):
    line = ("compile", lossy_py, "--collective", "allreduce", "-n", 2, "--placement", "out")
    status, found = cli_json(*line)
    assert (status, found["ok"]) == (1, False)
    assert [(f["kind"], f["rank"], f["buffer"], f["chunk"]) for f in found["findings"]] == [
        ("postcondition", 0, "output", 0),
        ("postcondition", 1, "output", 0),
    ]
    assert found["error"] == {"kind": "VerificationError", "message": "not proved, so nothing is written"}


def test_compiling_leaves_no_traces(command, lossy_py, tmp_path):
    (tmp_path / "helper.py").write_text("RANKS = 2\n")
    program = lossy_py.rename(tmp_path / "uses_helper.py")
    program.write_text("import helper\nfrom commlib.collectives import allreduce\n" + program.read_text())
    done = command("compile", program, "--collective", "sendrecv", "-n", 2, "--placement", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["helper.py", "uses_helper.py"]
