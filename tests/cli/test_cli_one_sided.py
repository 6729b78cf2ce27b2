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


def test_verify(cli, one_sided):
    assert cli("verify", one_sided).exit_code == 0
