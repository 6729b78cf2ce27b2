"""``commlib verify`` and ``commlib show``: what they say of saved algorithms, and that they execute nothing."""

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "../shared/data/msccl_xml"


def test_a_right_algorithm(cli, saved):
    result = cli("verify", saved("ring_allreduce", 3))
    assert (result.exit_code, result.stdout) == (
        0,
        "ring_allreduce: ok, FIFO depth 8 (smallest that works: 1)\n  in place: proved\n  out of place: proved\n",
    )


def test_a_wrong_algorithm(cli, wrong_file):
    result = cli("verify", wrong_file)
    assert result.exit_code == 1
    first, *rest = result.stdout.splitlines()
    assert first.startswith("ring_allreduce: NOT PROVED")
    assert any("postcondition: rank 0 o[0]: the contribution of" in line for line in rest)


def test_json_of_a_right_and_of_a_wrong_algorithm(cli_json, saved, wrong_file):
    status, found = cli_json("verify", saved("ring_allgather", 2))
    assert (status, found["ok"], found["findings"]) == (0, True, [])
    assert found["placements"] == {
        "in": {"ok": True, "findings": [], "more": {}},
        "out": {"ok": True, "findings": [], "more": {}},
    }
    assert (found["fifo_depth"], found["postcondition"], found["algorithm"]) == (8, "proved", "ring_allgather")
    status, found = cli_json("verify", wrong_file)
    assert (status, found["ok"]) == (1, False)
    finding = next(f for f in found["findings"] if f["placement"] == "out")
    assert finding["kind"] == "postcondition"
    assert (finding["rank"], finding["buffer"], finding["chunk"]) == (0, "output", 0)
    assert "is lost" in finding["message"]


def test_one_placement(cli, cli_json, saved):
    path = saved("direct_alltoall", 3)
    assert cli("verify", path).exit_code == 0
    assert cli("verify", path, "--placement", "out").exit_code == 0
    status, found = cli_json("verify", path, "--placement", "in")
    assert (status, found["ok"], list(found["placements"])) == (1, False, ["in"])


def test_root_is_the_callers(cli, saved):
    path = saved("binomial_broadcast", 3, ".xml", "--root", 2)
    refusal = cli("verify", path).stderr
    assert refusal.endswith("broadcast needs a root, which MSCCL XML does not hold: give it with --root RANK\n")
    assert cli("verify", path, "--root", 2).exit_code == 0
    assert cli("verify", path, "--root", 0).exit_code == 1


def test_fifo_depth(cli, saved):
    stdout = cli("verify", saved("ring_allreduce", 3), "--fifo-depth", 2).stdout
    assert stdout.startswith("ring_allreduce: ok, FIFO depth 2 (")


def test_a_custom_file_and_its_conditions(cli, cli_json, saved, tmp_path):
    path = saved("direct_sendrecv", 2)
    path.write_text(path.read_text().replace('coll="sendrecv"', 'coll="custom"'))
    status, found = cli_json("verify", path)
    assert (status, found["ok"], found["postcondition"]) == (0, True, "not given")
    assert "no postcondition was given" in cli("verify", path).stdout
    status, found = cli_json("verify", path, "--collective", "sendrecv")
    assert (status, found["postcondition"]) == (0, "proved")
    swap, keep = tmp_path / "swap.json", tmp_path / "keep.json"
    for file, other in ((swap, True), (keep, False)):
        sources = [[r, 0, [[1 - r if other else r, 0]]] for r in (0, 1)]
        text = f'{{"name": "mine", "inputs": [1, 1], "outputs": [1, 1], "sources": {sources}}}'
        file.write_text(text)
    assert cli("verify", path, "--collective", swap).exit_code == 0
    assert cli("verify", path, "--collective", keep).exit_code == 1


def test_python_is_not_executed(cli, tmp_path):
    path = tmp_path / "evil.py"
    path.write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    for name in ("verify", "show", "run"):
        result = cli(name, path)
        assert result.exit_code == 1
        assert "a program, not a compiled algorithm" in result.stderr
    assert not (tmp_path / "ran").exists()


def test_show_is_readable(cli, saved):
    lines = cli("show", saved("ring_allreduce", 2)).stdout.splitlines()
    assert lines[0] == "ring_allreduce: allreduce(ranks=2, chunks=2)"
    assert "chunks sent, row to column" in lines
    start = lines.index("rank 0")
    assert lines[start : start + 5] == [
        "rank 0",
        "  threadblock 0  channel 0  recv from 1  send to 1",
        "       0  s i[0]                            (0) => 1",
        "       1  rrcs i[1] -> o[1]                 1 => (0) => 1",
        "       2  r -> o[0]                         1 => (0)",
    ]
    matrix = lines[lines.index("chunks sent, row to column") :][1:4]
    assert matrix == ["       0 1", "     0 . 2", "     1 2 ."]


def test_show_one_rank_and_no_steps(cli, saved):
    path = saved("ring_allreduce", 3, ".txt")
    assert [line for line in cli("show", path, "--rank", 2).stdout.splitlines() if line[:4] == "rank"] == ["rank 2"]
    assert "threadblock 0  " not in cli("show", path, "--no-steps").stdout
    result = cli("show", path, "--rank", 3)
    assert (result.exit_code, "has ranks 0 to 2" in result.stderr) == (2, True)


def test_show_json(cli_json, saved):
    status, found = cli_json("show", saved("ring_allreduce", 2))
    assert (status, found["collective"], found["ranks"], found["steps"]) == (0, "allreduce", 2, 6)
    assert found["conditions"] == {"name": "allreduce", "ranks": 2, "chunks": 2, "root": None}
    assert found["xml"]["coll"] == "allreduce"
    block = found["programs"][0]["threadblocks"][0]
    assert (block["index"], block["channel"], block["send"], block["recv"]) == (0, 0, 1, 1)
    step = block["steps"][1]
    assert (step["op"], step["source"], step["destination"]) == (
        "rrcs",
        {"buffer": "input", "index": 1},
        {"buffer": "output", "index": 1},
    )
    assert step["line"] > 1


def test_show_of_many_ranks_says_that_the_matrix_is_left_out(cli, saved):
    path = saved("ring_allgather", 33, ".json")
    assert "no traffic matrix: 33 ranks" in cli("show", path, "--no-steps").stdout


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize(
    ("name", "options", "status", "proved"),
    [
        ("alltonext_forward_2_1", (), 0, {"out"}),
        ("alltonext_forward_2_1", ("--collective", "alltonext"), 0, {"out"}),
        ("alltonext_forward_2_1", ("--placement", "in"), 1, set()),
        ("allreduce_a100_pcie_hierarchical_8_1", (), 1, set()),
        ("allgather_recursive_doubling_8_2", (), 1, set()),
        ("allgather_recursive_doubling_8_1", (), 0, {"in"}),
        ("allreduce-allpairs-8n-ll-32tb", (), 0, {"in"}),
        ("alltoall-8n-0-9kb", (), 0, {"out"}),
    ],
)
def test_files_of_other_tools(cli_json, name, options, status, proved):
    found_status, found = cli_json("verify", DATA / f"{name}.xml", *options)
    assert found_status == status
    assert {placement for placement, verdict in found["placements"].items() if verdict["ok"]} == proved
