"""The commands cope with one-sided algorithms: summary, traffic, steps, JSON, and the refusal to write XML."""

from __future__ import annotations

import pytest

from commlib import OneSidedProgram, collective, save


@pytest.fixture
def one_sided(tmp_path):
    k = OneSidedProgram("one_shot", collective("allreduce", ranks=2))
    for r in range(2):
        tb = k.threadblock(r)
        tb.copy(k.input(r)[0], k.scratch(r)[0])
        tb.signal(1 - r)
        tb.wait(1 - r)
        tb.read_reduce([k.scratch(p)[0] for p in range(2)], k.output(r)[0])
    path = tmp_path / "one_shot.json"
    save(k.algorithm(), path)
    return path


def test_show_for_people(cli, one_sided):
    shown = cli("show", one_sided).stdout
    assert "  messages       0 (2 chunks; 1 from the rank that sends most)\n" in shown
    assert "  one-sided      2 signals; 2 reads and 0 writes of other ranks' memory\n" in shown
    assert "  critical path  1 message or signal\n" in shown
    assert "     0 . 1\n     1 1 .\n" in shown
    assert "       2  wait 1\n       3  rr s[0] + 1.s[0] -> o[0]\n" in shown


def test_show_as_json(cli_json, one_sided):
    status, found = cli_json("show", one_sided)
    assert status == 0
    assert [found[key] for key in ("signals", "remote_reads", "remote_writes", "critical_path")] == [2, 2, 0, 1]
    copy, signal, _, reduce = found["programs"][1]["threadblocks"][0]["steps"]
    assert "sources" not in copy
    assert (signal["op"], signal["peer"], signal["sources"]) == ("signal", 0, [])
    assert reduce["sources"] == [
        {"rank": 0, "buffer": "scratch", "index": 0},
        {"rank": 1, "buffer": "scratch", "index": 0},
    ]
    assert reduce["destinations"] == [{"rank": 1, "buffer": "output", "index": 0}]


PROGRAM = """from commlib import OneSidedProgram, collective

k = OneSidedProgram("pull", collective("sendrecv", ranks=2), placement="out")
blocks = [k.threadblock(r) for r in range(2)]
for r in range(2):
    blocks[r].copy(k.input(r)[0], k.scratch(r)[0])
    blocks[r].signal(1 - r)
    blocks[r].wait(1 - r)
    blocks[r].get(k.scratch(1 - r)[0], k.output(r)[0])
"""


def test_compile_proves_and_writes_a_one_sided_program(cli, tmp_path):
    source, output = tmp_path / "pull.py", tmp_path / "pull.txt"
    source.write_text(PROGRAM)
    done = cli("compile", source, "-o", output)
    assert (done.exit_code, "proved for out of place" in done.stdout) == (0, True)
    assert "  3 get 1.s[0] -> o[0]\n" in output.read_text()
    source.write_text(PROGRAM.replace("    blocks[r].wait(1 - r)\n", ""))
    refused = cli("compile", source, "-o", tmp_path / "no.txt")
    assert (refused.exit_code, (tmp_path / "no.txt").exists()) == (1, False)
    assert "not proved, so nothing is written" in refused.stderr
    assert f"{source}:7" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--no-fuse",), "pull is written out step by step; --no-fuse is for what is compiled"),
        (("--ranks", 4), "k is recorded in the file, which also fixes its ranks"),
        (("-o", "pull.xml"), "MSCCL XML cannot hold the one-sided step 'signal 1'"),
    ],
)
def test_what_a_one_sided_program_cannot_obey_is_refused(cli, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pull.py").write_text(PROGRAM)
    refused = cli("compile", "pull.py", *options)
    assert refused.exit_code != 0
    assert message in refused.stderr
    assert not (tmp_path / "pull.xml").exists()


def test_verify(cli, one_sided):
    assert cli("verify", one_sided).exit_code == 0
