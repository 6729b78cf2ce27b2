"""The synth command's files and options: what is written when, what is refused before a search, what is read again."""

import json

import pytest
from typer.testing import CliRunner

from commlib.cli.app import build_app as commlib_app
from commlib.errors import FormatError, SpecError
from commlib.formats import read_collective, xml_info
from commlib.topology import named
from synth import question
from synth.cli import delivering
from synth.cli.app import build_app
from synth.demands import multi_root


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    """A working folder and a cache that no other test sees."""
    monkeypatch.setenv("COMMLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments):
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def call_json(*arguments):
    result = call(*arguments, "--json")
    return result.exit_code, json.loads(result.stdout)


def said(result):
    return " ".join(result.stderr.split())


def test_the_files_of_a_range_cover_every_size():
    line = ("solve", "allreduce", "-t", "h100", "--size", "8-64M", "--mode", "greedy", "--chunks", 1, "-o", "ar.xml")
    status, document = call_json(*line)
    infos = [xml_info(part["xml"]) for part in document["ranges"]]
    assert (status, len(infos)) == (0, 2)
    assert (infos[0].min_bytes, infos[-1].max_bytes) == (8, 64 << 20)
    assert infos[1].min_bytes == infos[0].max_bytes + 1


def test_nothing_is_written_unless_all_is_proved(monkeypatch, own_folder):
    proved = delivering._proved

    def second_fails(result):
        second_fails.calls += 1
        if second_fails.calls == 2:
            raise SpecError("the second is wrong")
        return proved(result)

    second_fails.calls = 0
    monkeypatch.setattr(delivering, "_proved", second_fails)
    line = ("solve", "allreduce", "-t", "h100", "--size", "8-64M", "--mode", "greedy", "--chunks", 1, "-o", "ar.xml")
    assert call(*line).exit_code == 1
    assert not list(own_folder.glob("*.xml"))


@pytest.mark.parametrize(("name", "chunks"), [("allreduce", 1), ("allreduce", 2), ("allgather", 2)])
def test_solve_and_show_mean_the_same_size_where_none_is_given(name, chunks):
    line = ("solve", name, "-t", "ring:4", "--mode", "greedy", "--chunks", chunks, "-o", "a.xml")
    status, solved = call_json(*line)
    shown = call_json("show", "a.xml", "-t", "ring:4")[1]
    assert (status, shown["time"]) == (0, pytest.approx(solved["time"]))


def test_a_root_is_not_for_a_collective_that_has_its_own(own_folder):
    (own_folder / "roots.json").write_text('{"roots": [0, 2]}')
    result = call("solve", "roots.json", "-t", "ring:4", "--root", 1)
    assert (result.exit_code, "has its root already" in said(result)) == (1, True)
    with pytest.raises(SpecError, match="has its root already"):
        question(named("ring:4"), multi_root(4, [0]), root=0)


@pytest.mark.parametrize("content", ['{"roots": [0, 2]}', "[[0, 1, 1], [1, 0, 0], [0, 2, 0]]"])
@pytest.mark.parametrize("chunks", [1, 3])
def test_a_demand_of_ones_own_is_proved_from_its_xml(own_folder, content, chunks):
    (own_folder / "own.json").write_text(content)
    assert call("solve", "own.json", "-t", "ring:3", "--mode", "greedy", "-c", chunks, "-o", "own.xml").exit_code == 0
    proved = CliRunner().invoke(commlib_app(), ["verify", "own.xml", "--collective", "own.json", "--placement", "out"])
    assert (proved.exit_code, "out of place: proved" in proved.stdout) == (0, True)
    assert call("show", "own.xml", "-t", "ring:3", "--collective", "own.json").exit_code == 0
    (own_folder / "other.json").write_text("[[0, 2, 0], [1, 0, 0], [0, 2, 0]]")
    wrong = CliRunner().invoke(commlib_app(), ["verify", "own.xml", "--collective", "other.json"])
    assert wrong.exit_code == 1


def test_roots_alone_say_no_number_of_ranks(own_folder):
    (own_folder / "roots.json").write_text('{"roots": [0, 2]}')
    with pytest.raises(FormatError, match='"ranks": 8') as error:
        read_collective("roots.json")
    assert (error.value.fields["file"], error.value.fields["key"]) == ("roots.json", "ranks")
    (own_folder / "roots.json").write_text('{"roots": [0, 2], "ranks": 3}')
    assert read_collective("roots.json") == multi_root(3, [0, 2])
    assert "is for 3 ranks" in said(call("solve", "roots.json", "-t", "ring:4"))
