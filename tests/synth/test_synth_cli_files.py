"""The synth command's files and options: what is written when, what is refused before a search, what is read again."""

import contextlib
import io
import json
import sys

import pytest
from typer.testing import CliRunner

import synth
from commlib.cli.app import build_app as commlib_app
from commlib.cli.failures import report
from commlib.errors import FormatError, SpecError
from commlib.formats import read_collective, xml_info
from commlib.topology import named, ring, write_topology
from synth import question
from synth.cli import delivering, progress
from synth.cli.app import build_app
from synth.demands import multi_root
from synth.engine import Progress


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


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("solve", "allgather", "-t", "ring:3", "--save", "kept.xml"), 1, "kept.xml: what --save keeps ends in .json"),
        (("solve", "allgather", "-t", "ring:3", "-o", "a.json", "--save", "./a.json"), 1, "are different files"),
        (("solve", "allgather", "-t", "ring:3", "-o", "folder.xml"), 1, "folder.xml: is a folder"),
        (("solve", "allgather", "-t", "ring:3", "--size", "-5"), 2, "--size -5: sizes are from 1 byte up"),
        (("solve", "allgather", "-t", "ring:3", "--size", "5-"), 2, "--size 5-: sizes are from 1 byte up"),
        (("show", "folder.xml"), 1, "folder.xml: cannot be read: Is a directory"),
        (("show", "matrix.json"), 1, "matrix.json:1: neither MSCCL XML"),
        (("show", "roots.json"), 1, "roots.json: "),
        (("machines", "-k", 3), 2, "name it"),
    ],
)
def test_wrong_files_are_refused_before_a_search(own_folder, monkeypatch, arguments, status, message):
    (own_folder / "folder.xml").mkdir()
    (own_folder / "matrix.json").write_text("[[0, 1], [1, 0]]")
    (own_folder / "roots.json").write_text('{"roots": [0]}')
    monkeypatch.setattr("synth.pipeline.solve", None)
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert message in said(result)


def test_a_folder_without_the_right_to_write_is_refused_before_a_search(monkeypatch):
    monkeypatch.setattr("synth.cli.solve.os.access", lambda *_: False)
    result = call("solve", "allgather", "-t", "ring:3", "-o", "a.xml")
    assert (result.exit_code, "a.xml: cannot be written: no right" in said(result)) == (1, True)


def test_an_algorithm_is_shown_on_a_topology():
    assert call("solve", "allgather", "-t", "ring:3", "--mode", "greedy", "-o", "a.xml").exit_code == 0
    result = call("show", "a.xml")
    assert (result.exit_code, "say with --topology" in said(result)) == (2, True)


def test_errors_in_json_have_their_lists(own_folder):
    kinds = {"a": {"alpha": 0.0, "beta": 1e-12}}
    value = {"format": "commlib-topology", "version": 1, "name": "broken", "ranks": 3, "kinds": kinds}
    (own_folder / "broken.json").write_text(json.dumps({**value, "links": [[0, 1, "a"], [1, 0, "a"], [2, 0, "a"]]}))
    status, document = call_json("solve", "allgather", "-t", "broken.json")
    lists = [value for value in document["error"].values() if isinstance(value, list)]
    assert (status, document["ok"], bool(lists)) == (1, False, True)
    assert report_fields(FormatError("x", link=(0, 1), statements=["a", "b"], odd={1})) == {
        "kind": "FormatError",
        "message": "x",
        "link": [0, 1],
        "statements": ["a", "b"],
    }


def report_fields(error):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        report(error, as_json=True)
    return json.loads(printed.getvalue())["error"]


def test_the_bar_is_narrower_than_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for columns in (20, 60, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        progress.Bar(10.0)(Progress("reducescatter exact", 1234567, 1234561, 5.0, 1e-9))
        drawn = capsys.readouterr().out.removeprefix("\r\x1b[K")
        assert len(drawn) == min(columns - 1, len(drawn.rstrip()))
        assert drawn.endswith("5 s left") == (columns == 200)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 ns"), (2.5e-9, "2.5 ns"), (999.9999e-9, "1 us"), (1e-6, "1 us"), (1e-3, "1 ms"), (1.0, "1 s")],
)
def test_times_are_in_the_unit_that_suits_them(seconds, text):
    assert progress.duration(seconds) == text


PROFILE = {
    "name": "NDv2_1MB",
    "gpus_per_node": 8,
    "alpha": 0.7,
    "node_betas_list": [46, 23],
    "node_invbws_list": [47, 23],
}


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
    [
        (("-t", "dgx2"), "gpus_per_node", "p.json: profile NDv2_1MB: gpus_per_node is 8, but dgx2 has 16 GPUs"),
        (("-t", "ndv2", "-k", 2), "nics_per_node", "p.json: ndv2: nothing is known of its NICs"),
    ],
)
def test_a_profile_that_does_not_fit_is_named(own_folder, arguments, key, message):
    (own_folder / "p.json").write_text(json.dumps(PROFILE))
    status, document = call_json("solve", "allgather", *arguments, "--profile", "p.json")
    assert (status, document["error"]["file"], document["error"]["key"]) == (1, "p.json", key)
    assert message in document["error"]["message"]


def test_a_file_without_nics_is_named(own_folder):
    write_topology(ring(3), own_folder / "r.json")
    status, document = call_json("solve", "allgather", "-t", "r.json", "-k", 2)
    assert (status, document["error"]["file"]) == (1, "r.json")
    assert document["error"]["message"].startswith("r.json: ring: nothing is known of its NICs")


def test_a_range_is_answered_from_the_cache(own_folder):
    line = ("solve", "allgather", "-t", "ring:4", "--size", "1K-64K", "--chunks", 1, "--mode", "greedy")
    assert call(*line, "--no-cache").exit_code == 0
    assert not (own_folder / "cache").exists()
    first, second = call_json(*line)[1]["ranges"], call_json(*line)[1]["ranges"]
    assert not any("from the cache" in note for part in first for note in part["notes"])
    assert all(any("from the cache" in note for note in part["notes"]) for part in second)
    assert [part["times"] for part in first] == [part["times"] for part in second]


def test_the_facade_has_every_name_that_it_promises():
    for name in synth.__all__:
        assert callable(getattr(synth, name))
    assert {"solve_range", "Cache", "solve_cached", "matrix_demand", "multi_root", "read_demand"} <= set(synth.__all__)
    assert {"load_result", "save_result", "question_bounds"} <= set(synth.__all__)
