"""One-sided algorithms in text and JSON: loss-free, strict and bounded; XML refuses them by the step."""

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
from onesided_strategies import one_sided_algorithms

from commlib.errors import FormatError, LimitError
from commlib.files.json_fields import parse_json
from commlib.formats import ReaderLimits, from_json, load, save, to_json
from commlib.formats.json_form import json_text
from commlib.formats.msccl_xml import parse_xml, xml_text
from commlib.formats.waits import without_nops
from commlib.ir.algorithm import Algorithm, Op
from commlib.ir.text import algorithm_from_text, algorithm_to_text

TEXT = """algorithm "all of them"
collective "allreduce" ranks 2 chunks 4
protocol "Simple"
placements in out
scratch 4 4

rank 0
tb 0 send 1 channel 0
  0 s i[0]
tb 1 channel 3
  0 put i[0] -> 1.s[3]
  1 get 1.s[2:4] -> o[0:2] after 0.0
  2 signal 1
  3 wait 1 after 0.0, 1.0
  4 flush 1
  5 rr i[0] + 1.s[0] + i[0] -> o[0]
  6 st s[0] -> 1.o[0], o[0]
  7 rrst i[0] + 1.i[0] -> o[0], 1.o[0] after 0.0
  8 nop

rank 1
tb 0 recv 0 channel 0
  0 r -> s[0]
tb 1 channel 3
  0 signal 0
  1 wait 0
"""
Change = Callable[[dict[str, Any]], object]


@settings(max_examples=150, deadline=None)
@given(one_sided_algorithms())
def test_one_sided_text_is_loss_free_but_for_origins(algorithm: Algorithm) -> None:
    text = algorithm_to_text(algorithm)
    assert algorithm_from_text(text) == algorithm
    assert algorithm_to_text(algorithm_from_text(text)) == text


@settings(max_examples=150, deadline=None)
@given(one_sided_algorithms())
def test_one_sided_json_is_loss_free_with_origins(algorithm: Algorithm) -> None:
    read = from_json(json.loads(json_text(algorithm)))
    assert read == algorithm
    assert json_text(read) == json_text(algorithm)
    assert [read.origin(s) for s in range(read.step_count)] == [algorithm.origin(s) for s in range(read.step_count)]


@settings(max_examples=100, deadline=None)
@given(one_sided_algorithms())
def test_folding_nops_keeps_the_operands_of_the_other_steps(algorithm: Algorithm) -> None:
    folded = without_nops(algorithm)
    assert [step.sources + step.destinations for step in folded.steps()] == [
        step.sources + step.destinations for step in algorithm.steps() if step.op is not Op.NOP
    ]


def test_the_text_of_each_operation() -> None:
    assert algorithm_to_text(algorithm_from_text(TEXT)) == TEXT


def test_files_of_both_forms(tmp_path: Path) -> None:
    algorithm = algorithm_from_text(TEXT)
    for name in ("one.json", "one.txt"):
        save(algorithm, tmp_path / name)
        assert load(tmp_path / name) == algorithm


def test_only_one_sided_algorithms_have_the_later_json_version() -> None:
    algorithm = algorithm_from_text(TEXT)
    value = to_json(algorithm)
    assert (value["version"], value["operands"]["counts"][1:4]) == (2, [2, 2, 1])
    assert value["operands"]["buffer"][:6] == "isso--"
    plain = to_json(algorithm_from_text(TEXT.split("tb 1")[0] + "\nrank 1\ntb 0 recv 0 channel 0\n  0 r -> s[0]\n"))
    assert (plain["version"], "operands" in plain) == (1, False)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("put i[0] -> 1.s[3]", "put i[0] -> s[3]", "must have a destination on another rank"),
        ("put i[0] -> 1.s[3]", "put i[0] -> 2.s[3]", "names a rank outside 0..1"),
        ("put i[0] -> 1.s[3]", "put i[0] -> 1.s[4]", "has an operand outside its buffer"),
        ("put i[0] -> 1.s[3]", "put i[0]", "operands are like o[3]"),
        ("put i[0] -> 1.s[3]", "put", "operands are like o[3]"),
        ("put i[0] -> 1.s[3]", "put i[0]  -> 1.s[3]", "operands are like o[3]"),
        ("put i[0] -> 1.s[3]", "put i[0] -> 1.s[3] -> o[0]", "operands are like o[3]"),
        ("put i[0] -> 1.s[3]", "put i[0:2] -> 1.s[3]", "sources and destinations differ in size"),
        ("put i[0] -> 1.s[3]", "put i[0] -> 1.s[3:3]", "s[3:3] holds no chunk"),
        ("put i[0] -> 1.s[3]", "put i[0] -> 1.s[99999999999]", "is not a number from 0 to"),
        ("put i[0] -> 1.s[3]", "put 1.i[0] -> 1.s[3]", "must have a local source"),
        ("  0 put", "  1 put", "step 0 belongs here, not step 1"),
        ("get 1.s[2:4] -> o[0:2] after 0.0", "get 1.s[2:4] -> o[0:2] after 0", "is not of the form NUMBER.NUMBER"),
        ("get 1.s[2:4] -> o[0:2] after 0.0", "get 1.s[2:4] -> o[0:2] after 2.0", "which does not exist"),
        ("2 signal 1", "2 signal", "'' is not a number"),
        ("2 signal 1", "2 signal 0", "needs another rank as its peer"),
        ("2 signal 1", "2 signal 1 1", "'1 1' is not a number"),
        ("2 signal 1", "2 signal i[0]", "is not a number"),
        ("i[0] + 1.s[0] + i[0] -> o[0]", "i[0] +1.s[0] -> o[0]", "operands are like o[3]"),
        ("i[0] + 1.s[0] + i[0] -> o[0]", "i[0], 1.s[0] -> o[0]", "operands are like o[3]"),
        ("st s[0] -> 1.o[0], o[0]", "st s[0] -> 1.o[0], 1.o[0]", "has a destination twice"),
        ("st s[0] -> 1.o[0], o[0]", "st s[0:2] -> s[1:3]", "overlap in part"),
    ],
)
def test_a_wrong_line_of_a_one_sided_step_is_refused(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(FormatError) as error:
        algorithm_from_text(TEXT.replace(old, new), "bad.txt")
    assert message in str(error.value)
    line = next(n for n, line in enumerate(TEXT.split("\n"), 1) if old in line)
    assert (error.value.fields["file"], error.value.fields["line"]) == ("bad.txt", line)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda j: j.pop("operands"), "the file.operands: key 'operands' is missing"),
        (lambda j: j.update(version=1), "the file.operands: key 'operands' is unknown"),
        (lambda j: j.update(version=3), "the file.version: must be 1 or 2"),
        (lambda j: j["operands"].pop("writes"), "operands.writes: key 'writes' is missing"),
        (lambda j: j["operands"]["rank"].__setitem__(0, None), "operands.rank: must hold integers"),
        (lambda j: j["operands"]["rank"].__setitem__(0, 2), "names a rank outside 0..1"),
        (lambda j: j["operands"]["rank"].pop(), "column operand_buffer has 20 rows for 19 operands"),
        (lambda j: j["operands"]["counts"].__setitem__(0, 1), "operand_start does not delimit the operands"),
        (lambda j: j["operands"]["writes"].__setitem__(0, 2), "neither source nor destination"),
        (lambda j: j["operands"].update(buffer="x" * 18), "operands.buffer: must hold only the letters"),
        (lambda j: j["steps"]["op"].__setitem__(1, "rr"), "rank 0 threadblock 1 step 0 must have a local destination"),
        (lambda j: j["steps"]["op"].__setitem__(1, "cpy"), "rank 0 threadblock 1 step 0 must have a source exactly"),
    ],
)
def test_wrong_operands_in_json_are_refused_with_the_key(change: Change, message: str) -> None:
    value = json.loads(json_text(algorithm_from_text(TEXT)))
    change(value)
    with pytest.raises(FormatError) as error:
        from_json(value, "bad.json")
    assert message in str(error.value)
    assert error.value.fields["file"] == "bad.json"


DAMAGE = [
    "",
    "0",
    "9",
    "1.",
    "s",
    "[",
    ":",
    "+",
    ", ",
    " -> ",
    " after ",
    "put",
    "wait",
    "null",
    "-1",
    "4294967296",
    "\n",
    "é",
]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([TEXT, json_text(algorithm_from_text(TEXT))]))
def test_nothing_but_typed_errors_escapes_from_damaged_one_sided_texts(data: st.DataObject, text: str) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(at, min(len(text), at + 10)))
        text = text[:at] + data.draw(st.sampled_from(DAMAGE)) + text[end:]
    with suppress(FormatError):
        from_json(parse_json(text, "f"), "f") if text.startswith("{") else algorithm_from_text(text, "f")


@pytest.mark.parametrize("limit", ["max_operands", "max_work"])
def test_operands_are_bounded(tmp_path: Path, limit: str) -> None:
    algorithm = algorithm_from_text(TEXT)
    operands, slots = len(algorithm.operand_rank), 24
    enough = operands if limit == "max_operands" else slots * (algorithm.step_count + operands)
    for name in ("one.json", "one.txt"):
        save(algorithm, tmp_path / name)
        assert load(tmp_path / name, limits=replace(ReaderLimits(), **{limit: enough})) == algorithm
        with pytest.raises(LimitError, match=limit) as error:
            load(tmp_path / name, limits=replace(ReaderLimits(), **{limit: enough - 1}))
        assert error.value.fields["limit"] == limit


def test_xml_refuses_to_write_one_sided_steps_and_names_the_first(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="XML cannot hold the one-sided step 'put i") as error:
        save(algorithm_from_text(TEXT), tmp_path / "one.xml")
    assert {"rank": 0, "threadblock": 1, "step": 0}.items() <= error.value.fields.items()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["put", "signal", "rrst"])
def test_xml_refuses_to_read_one_sided_steps(word: str) -> None:
    plain = TEXT.split("tb 1")[0] + "\nrank 1\ntb 0 recv 0 channel 0\n  0 r -> s[0]\n"
    text = xml_text(algorithm_from_text(plain)).replace('type="s"', f'type="{word}"')
    with pytest.raises(FormatError, match=f"step type '{word}' is not one of s, r, rcs, rrc, rrs, rrcs, cpy, re, nop"):
        parse_xml(text.encode())
