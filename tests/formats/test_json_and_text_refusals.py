"""Our own forms are read strictly: each mistake is refused with file and key, or file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commlib.collectives import broadcast, custom
from commlib.errors import FormatError, LimitError
from commlib.files.json_fields import parse_json
from commlib.formats import ReaderLimits, collective_from_json, from_json, load, read_collective, read_json, save
from commlib.ir.text import algorithm_from_text

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
JSON = (GOLDEN / "exchange.json").read_text()
TEXT = (GOLDEN / "exchange.txt").read_text()
Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda j: j.update(format="x"), "the file.format: must be 'commlib-algorithm'"),
        (lambda j: j.update(version=3), "the file.version: must be 1 or 2, the versions that this library reads"),
        (lambda j: j.update(version=True), "the file.version: must be 1 or 2"),
        (lambda j: j.pop("name"), "the file.name: key 'name' is missing"),
        (lambda j: j.update(color=1), "the file.color: key 'color' is unknown"),
        (lambda j: j.update(name=1), "the file.name: must be a string, not 1"),
        (lambda j: j.update(placements=["up"]), "the file.placements: must hold only in, out"),
        (lambda j: j.update(placements=[["in"]]), "the file.placements: must hold only in, out"),
        (lambda j: j.update(steps=[]), "steps must be an object, not a list"),
        (lambda j: j["steps"].pop("op"), "steps.op: key 'op' is missing"),
        (lambda j: j["steps"].update(op=["jump"]), "steps.op: must hold only cpy, nop"),
        (lambda j: j["steps"]["count"].__setitem__(0, True), "steps.count: must hold integers from 0"),
        (lambda j: j["steps"]["count"].__setitem__(0, 1.0), "steps.count: must hold integers from 0"),
        (lambda j: j["steps"]["count"].__setitem__(0, -1), "steps.count: must hold integers from 0"),
        (lambda j: j["steps"]["count"].__setitem__(0, 2**31), "steps.count: must hold integers from 0"),
        (
            lambda j: j["steps"]["count"].__setitem__(0, 3),
            "rank 0 threadblock 0 step 0 has a source outside its buffer",
        ),
        (lambda j: j["steps"]["count"].pop(), "column count has 6 rows for 7 steps"),
        (lambda j: j["steps"].update(source_buffer="iiiiiix"), "steps.source_buffer: must hold only the letters"),
        (lambda j: j["steps"]["source_index"].__setitem__(0, None), "step 0 has a source index that cannot be"),
        (lambda j: j["threadblocks"]["send"].__setitem__(0, 2), "a threadblock names a rank outside 0..1"),
        (
            lambda j: j["threadblocks"]["send"].__setitem__(0, None),
            "step 0 sends, but its threadblock has no",
        ),
        (lambda j: j.update(depends=[1, 2, 7]), "a dependence names a step that does not exist"),
        (lambda j: j.update(depends=[1, 2, 6]), "depends on a step of another rank"),
        (lambda j: j.update(scratch_chunks=[1]), "scratch sizes for 1 ranks, not 2"),
        (lambda j: j["origins"]["line"].pop(), "origins: must have one file and one line for each of the 7 steps"),
        (lambda j: j["origins"]["file"].__setitem__(0, 1), "origins.file: names a file beyond the 1 there are"),
        (lambda j: j["origins"].update(files=[]), "origins.files: must name at least one file"),
        (lambda j: j["collective"].update(name="sum"), "collective: no collective is called 'sum'"),
        (lambda j: j["collective"].update(root=0), "collective: allreduce takes no root"),
    ],
)
def test_a_json_file_that_is_wrong_is_refused_with_the_key(tmp_path: Path, change: Change, message: str) -> None:
    value = json.loads(JSON)
    change(value)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(value))
    with pytest.raises(FormatError) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert error.value.fields["file"] == str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"f:1: not JSON"),
        ('{\n"a": ]', r"f:2: not JSON"),
        ('{"a": 1, "a": 2}', "f:1: key 'a' is there twice"),
        ('{"a": NaN}', "f:1: NaN is not a JSON number"),
        ('{"a": ' + "1" * 5000 + "}", "f:1: a number has too many digits"),
        ("[" * 200_000, "f:1: nested too deeply"),
        ("[]", "f: the file must be an object, not a list"),
    ],
)
def test_what_is_not_our_json_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").write_text(text)
    with pytest.raises(FormatError, match=f"^{message}"):
        read_json("f")


def test_sizes_are_bounded_in_our_forms_too() -> None:
    value = json.loads(JSON)
    from_json(value, "f", ReaderLimits(max_steps=7, max_slots=10, max_work=70))
    for limits in (ReaderLimits(max_steps=6), ReaderLimits(max_slots=9), ReaderLimits(max_work=69)):
        with pytest.raises(LimitError, match="over the limit max_"):
            from_json(value, "f", limits)
    value["collective"]["chunks"] = 2**30
    with pytest.raises(LimitError, match="max_slots"):
        from_json(value, "f")
    with pytest.raises(LimitError, match="max_slots"):
        collective_from_json({"name": "m", "inputs": [0], "outputs": [2**31 - 1], "sources": []})
    for sizes in ("inputs 0\noutputs 2000000000", "inputs 2000000000\noutputs 0"):
        with pytest.raises(LimitError, match="input and output chunks"):
            algorithm_from_text(f'algorithm "a"\ncollective "m" ranks 1 chunks 1\ncustom specified\n{sizes}')


def test_offsets_that_begin_far_away_are_refused() -> None:
    far = {"name": "m", "inputs": [1], "outputs": [1], "sources": [], "offsets": [[2**31 - 1, 0]]}
    with pytest.raises(FormatError, match=r"^f: collective: m: in place, .* cannot begin at 2147483647 and 0"):
        collective_from_json(far, "f")
    text = 'algorithm "a"\ncollective "m" ranks 1 chunks 1\ncustom specified\ninputs 1\noutputs 1\n'
    with pytest.raises(FormatError, match=r"^f:6: m: in place, .* cannot begin at 2147483647 and 0"):
        algorithm_from_text(f'{text}offsets 2147483647:0\nprotocol "LL"', "f")


HALF = '"\\ud800x"'


@pytest.mark.parametrize("old", ['"ex\\"change & reduce"', '"LL128"', '"allreduce"'])
def test_half_of_a_surrogate_pair_is_no_name(tmp_path: Path, old: str) -> None:
    for text, path in ((JSON, tmp_path / "a.json"), (TEXT, tmp_path / "a.txt")):
        assert old in text
        path.write_text(text.replace(old, HALF, 1))
        with pytest.raises(FormatError, match="half of a surrogate pair, which is no character") as error:
            load(path)
        assert str(error.value).isprintable()
    algorithm = replace(load(GOLDEN / "exchange.json"), name="\ud800x")
    for path in (tmp_path / "b.json", tmp_path / "b.txt"):
        with pytest.raises(FormatError, match="half of a surrogate pair") as error:
            save(algorithm, path)
        assert str(error.value).isprintable()
        assert not path.exists()


def test_half_of_a_surrogate_pair_elsewhere_in_json(tmp_path: Path) -> None:
    value = json.loads(JSON)
    value["origins"]["files"] = ["\udc80.py"]
    with pytest.raises(FormatError, match=r"origins\.files: .* half of a surrogate pair"):
        from_json(value, "f")
    with pytest.raises(FormatError, match="key") as error:
        from_json(json.loads(JSON) | {"\ud800": 1}, "f")
    assert str(error.value).isprintable()
    algorithm = load(GOLDEN / "exchange.json")
    origins = replace(algorithm.origins, files=("\udc80.py",)) if algorithm.origins else None
    save(replace(algorithm, origins=origins), tmp_path / "a.json")
    assert load(tmp_path / "a.json").origin(6) == ("\ufffd.py", 7)


def test_a_users_collective_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        '{"name": "swap", "inputs": [1, 1], "outputs": [1, 1], "sources": [[0, 0, [[1, 0]]], [1, 0, [[0, 0]]]]}'
    )
    assert read_collective(path) == custom("swap", [1, 1], [1, 1], {(0, 0): [(1, 0)], (1, 0): [(0, 0)]})
    path.write_text('{"name": "broadcast", "ranks": 4, "root": 3}')
    assert read_collective(path) == broadcast(4, 1, root=3)


ONE = {"name": "m", "inputs": [1], "outputs": [1]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "broadcast", "ranks": 4}, "broadcast takes a root"),
        ({"name": "broadcast", "ranks": 4, "root": 4}, "root 4 is not one of the 4 ranks"),
        ({"name": "allreduce", "ranks": "4"}, "collective.ranks: must be an integer from 1"),
        ({"name": "allreduce", "ranks": 4, "chunk": 2}, "key 'chunk' is unknown"),
        ({"ranks": 4}, "key 'name' is missing"),
        ({"name": "allreduce", "inputs": [1], "outputs": [1], "sources": []}, "'allreduce' is a standard collective"),
        ({"name": "m", "inputs": [1], "outputs": [1, 1], "sources": []}, "must have one entry per rank"),
        (ONE | {"sources": [[0, 0]]}, "each of its sources must be"),
        (ONE | {"sources": [[0, 1, []]]}, "there is no output chunk 1 on rank 0"),
        (ONE | {"sources": [[0, 0, [[0, 1]]]]}, "which does not exist"),
        (
            ONE | {"sources": [[0, 0, [[0]]]]},
            "must be a list of .number, number.",
        ),
        (
            ONE | {"sources": [[0, 0, []], [0, 0, []]]},
            "output chunk 0 of rank 0 twice",
        ),
        (ONE | {"sources": [[0, 0, [[0, 0], [0, 0]]]]}, "wants a chunk twice"),
        (ONE | {"sources": [], "offsets": [1]}, "must be a list of .number"),
    ],
)
def test_a_collective_that_is_wrong_is_refused(value: object, message: str) -> None:
    with pytest.raises(FormatError, match=rf"^f: .*{message}"):
        collective_from_json(value, "f")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("algorithm", "program", 1, "a line 'algorithm' belongs here, not 'program"),
        ("collective", "coll", 2, "a line 'collective' belongs here"),
        ('"allreduce"', "allreduce", 2, 'the form is: collective "NAME" ranks N chunks C'),
        ('"allreduce"', '"sum"', 2, "no collective is called 'sum'"),
        ('"LL128"', "LL128", 3, "'LL128' is not a string in double quotes"),
        ("placements out", "placements out out", 4, "placements are 'in' and 'out'"),
        ("scratch 2 0", "scratch 2", 5, "scratch has 1 sizes for 2 ranks"),
        ("scratch 2 0", "scratch 2 -1", 5, "'-1' is not a number from 0"),
        ("scratch 2 0", "scratch 2 99999999999", 5, "'99999999999' is not a number from 0"),
        ("rank 1", "rank 2", 17, "rank 1 belongs here"),
        ("tb 1 ch", "tb 2 ch", 11, "tb 1 belongs here, not tb 2"),
        ("tb 1 channel 0", "tb 1", 11, "the form is: tb NUMBER"),
        ("0 s i", "0 s x", 9, "the form is: NUMBER OP"),
        ("0 s i", "1 s i", 9, "step 0 belongs here, not step 1"),
        ("0 s i[0:2]", "0 s i[0:2] -> o[0:2]", 9, "s takes SOURCE"),
        ("0 s i[0:2]", "0 s i[2:2]", 9, r"i\[2:2\] holds no chunk"),
        ("0 s i[0:2]", "0 s i[1:3]", 9, "rank 0 threadblock 0 step 0 has a source outside its buffer"),
        ("1 cpy i[1]", "1 cpy i[0:2]", 13, "source and destination differ in size"),
        ("after 0.1,", "after 0.2,", 15, "depends on threadblock 0 step 2, which does not exist"),
        ("after 0.1,", "after 0.1", 15, "the form is: NUMBER OP"),
    ],
)
def test_a_text_that_is_wrong_is_refused_with_its_line(old: str, new: str, line: int, message: str) -> None:
    assert old in TEXT
    with pytest.raises(FormatError, match=f"^f.txt:{line}: .*{message}") as error:
        algorithm_from_text(TEXT.replace(old, new, 1), "f.txt")
    assert (error.value.fields["file"], error.value.fields["line"]) == ("f.txt", line)


def test_text_after_the_end_and_before_it_is_refused() -> None:
    with pytest.raises(FormatError, match="'rank 2' after the last rank"):
        algorithm_from_text(TEXT + "rank 2\n")
    with pytest.raises(FormatError, match="a line 'algorithm' belongs here, not 'the end'"):
        algorithm_from_text("")


def test_steps_of_a_text_carry_its_lines_and_comments_count() -> None:
    algorithm = algorithm_from_text("# mine\n" + TEXT.replace("  1 r", "\n  # then\n  1 r"), "f.txt")
    assert [algorithm.origin(s) for s in range(2)] == [("f.txt", 10), ("f.txt", 13)]


def test_load_refuses_other_files_and_contradictions(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text("GIF89a")
    with pytest.raises(FormatError, match=r"f\.json:1: neither MSCCL XML"):
        load(path)
    path.write_bytes(b'{"format"\n: "\xff"}')
    with pytest.raises(FormatError, match=r"f\.json:2: not UTF-8 text"):
        load(path)
    path.write_text(JSON)
    assert load(path, collective="allreduce").collective == load(path).collective
    with pytest.raises(FormatError, match=r"the file's collective is allreduce.*, not alltoall"):
        load(path, collective="alltoall")
    with pytest.raises(FormatError, match="not allreduce with root 1"):
        load(path, root=1)


def test_load_gives_conditions_to_an_algorithm_without(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    head = 'algorithm "a"\ncollective "custom" ranks 2 chunks 1\ncustom unspecified\ninputs 2 2\noutputs 2 2\n'
    path.write_text(head + 'protocol "LL"\nplacements out\nscratch 0 0\nrank 0\nrank 1\n')
    assert not load(path).collective.specified
    assert str(load(path, collective="alltonext").collective) == "alltonext(ranks=2, chunks=2)"
    assert load(path, collective="broadcast", root=1).collective == broadcast(2, 2, root=1)
    with pytest.raises(FormatError, match="broadcast needs a root: pass root=RANK"):
        load(path, collective="broadcast")
    with pytest.raises(FormatError, match="no collective is called 'sum'"):
        load(path, collective="sum")


DAMAGE = ["", "0", "9", "-1", '"', "\n", "null", "[", "}", ",", " "]


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from([JSON, TEXT]))
def test_nothing_but_typed_errors_escapes_from_damaged_texts(data: st.DataObject, text: str) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(at, min(len(text), at + 10)))
        text = text[:at] + data.draw(st.sampled_from(DAMAGE)) + text[end:]
    with suppress(FormatError):
        from_json(parse_json(text, "f"), "f") if text.startswith("{") else algorithm_from_text(text, "f")
