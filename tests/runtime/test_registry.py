"""Rows: which fits a call, their JSON form, what is refused of it, and how times become rows."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commlib.algorithms import entry_of
from commlib.collectives import COLLECTIVES, Placement
from commlib.errors import FormatError, LimitError, SpecError
from commlib.runtime import registry as module
from commlib.runtime.defaults import DEFAULTS
from commlib.runtime.ranking import Measured, rows_of
from commlib.runtime.registry import (
    Machine,
    Query,
    Range,
    Registry,
    Row,
    merged,
    read_registry,
    registry_from_json,
    registry_to_json,
    this_machine,
    write_registry,
)
from commlib.runtime.tuning import load_tuning, tuning_file

CALL = Query("allreduce", 4, 4096, Placement.IN)
ROW = Row("allreduce", "staged", Range(2, 4), Range(1, 1), Range(1024, 8192), Placement.IN)


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"collective": "reduce"}, False),
        ({"ranks": 5}, False),
        ({"ranks": 2}, True),
        ({"bytes": 1023}, False),
        ({"bytes": 1024}, True),
        ({"bytes": 8192}, True),
        ({"bytes": 8193}, False),
        ({"placement": Placement.OUT}, False),
        ({"hosts": 2}, False),
        ({"registered": True, "readv": True}, True),
    ],
)
def test_a_row_fits_what_it_says(change: dict, fits: bool) -> None:
    assert ROW.fits(replace(CALL, **change)) is fits


def test_a_row_that_says_nothing_fits_all_but_reach_must_be_given() -> None:
    query = Query("scatter", 77, 1 << 40, Placement.OUT, 9)
    assert Row("scatter", "x").fits(query)
    assert not Row("scatter", "x", reach="registered").fits(query)
    assert Row("scatter", "x", reach="registered").fits(replace(query, registered=True))
    assert not Row("scatter", "x", reach="readv").fits(replace(query, registered=True))
    assert Row("scatter", "x", reach="readv").fits(replace(query, readv=True))


def test_the_first_row_that_fits_is_first() -> None:
    table = Registry((Row("reduce", "a"), Row("allreduce", "b", bytes=Range(0, 10)), ROW, Row("allreduce", "c")))
    assert [(number, row.algorithm) for number, row in table.matches(CALL)] == [(3, "staged"), (4, "c")]


def test_defaults_name_what_there_is_and_cover_every_call() -> None:
    for row in DEFAULTS.rows:
        entry_of(row.algorithm, row.collective)
    for collective in {row.collective for row in DEFAULTS.rows}:
        for ranks in (1, 2, 3, 8, 100):
            for size in (0, 1, 10**5, 10**9):
                for hosts in (1, 2, 5):
                    query = Query(collective, ranks, size, Placement.IN, hosts)
                    found = [entry_of(row.algorithm, collective) for _, row in DEFAULTS.matches(query)]
                    assert any(entry.full_name.startswith(("ring", "dir", "pair", "bin", "allp")) for entry in found)


ranges = st.builds(
    lambda low, more: Range(low, None if more is None else low + more),
    st.integers(0, 1 << 60),
    st.none() | st.integers(0, 1 << 60),
)
texts = st.text(st.characters(codec="utf-8"), max_size=12)
places = st.sampled_from([None, *Placement])
rows = st.builds(
    Row, st.sampled_from(COLLECTIVES), texts, ranges, ranges, ranges, places, st.sampled_from(module.REACHES), texts
)


@given(st.lists(rows, max_size=5), st.none() | st.builds(Machine, texts, st.integers(1, 999), st.booleans()))
def test_the_json_form_holds_everything(found: list[Row], machine: Machine | None) -> None:
    table = Registry(tuple(found), "f.json", machine)
    again = registry_from_json(registry_to_json(table), "f.json")
    assert again == table
    assert again.digest == table.digest == replace(table, source="g", machine=None).digest


def test_rows_say_only_what_matters(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"format": "commlib-tuning", "version": 1, "rows": [{"collective": "gather", "algorithm": "x"}]}')
    assert read_registry(path) == Registry((Row("gather", "x"),), str(path))
    write_registry(Registry((ROW,), "", Machine("cpu", 2, True)), path)
    assert read_registry(path).rows == (ROW,)
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.json"]


GOOD = {"collective": "allreduce", "algorithm": "ring"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"collective": "allreduce"}, "row 2: key 'algorithm' is missing|row 2.algorithm: key 'algorithm' is missing"),
        ({**GOOD, "size": 3}, "row 2.size: key 'size' is unknown"),
        ({**GOOD, "collective": "allredcue"}, "row 2: no collective is called 'allredcue'"),
        ({**GOOD, "collective": 3}, "row 2.collective: must be a string"),
        ({**GOOD, "bytes": [4, 3]}, "row 2.bytes: must be .smallest, largest."),
        ({**GOOD, "bytes": [4]}, "row 2.bytes: must be"),
        ({**GOOD, "bytes": [None, 4]}, "row 2.bytes: must be"),
        ({**GOOD, "bytes": [-1, 4]}, "row 2.bytes: must be"),
        ({**GOOD, "ranks": [1.5, 4]}, "row 2.ranks: must be"),
        ({**GOOD, "ranks": [True, 4]}, "row 2.ranks: must be"),
        ({**GOOD, "hosts": 1}, "row 2.hosts: must be a list"),
        ({**GOOD, "placement": "inside"}, "row 2.placement: is in, out or null, not 'inside'"),
        ({**GOOD, "reach": "far"}, "row 2: reach is one of any, registered, readv, not 'far'"),
        ("ring", "row 2 must be an object"),
    ],
)
def test_a_wrong_row_is_named(row: object, message: str) -> None:
    text = json.dumps({"format": "commlib-tuning", "version": 1, "rows": [GOOD, row]})
    with pytest.raises(FormatError, match=rf"^dir/t\.json: ({message})") as caught:
        registry_from_json(text, "dir/t.json")
    assert caught.value.fields["file"] == "dir/t.json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.json:1: not JSON"),
        ("[]", "table must be an object"),
        ('{"format": "other", "version": 1, "rows": []}', "not a table of the form 'commlib-tuning', version 1"),
        ('{"format": "commlib-tuning", "version": 2, "rows": []}', "version 1"),
        ('{"format": "commlib-tuning", "version": 1, "rows": {}}', "table.rows: must be a list"),
        ('{"format": "commlib-tuning", "version": 1, "rows": [], "machine": {"cpu": "x"}}', "machine.*is missing"),
    ],
)
def test_a_wrong_table_is_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        registry_from_json(text, "t.json")


def test_large_tables_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    write_registry(Registry((ROW,) * 3), path)
    monkeypatch.setattr(module, "MAX_ROWS", 2)
    with pytest.raises(LimitError, match="3 rows are more than 2"):
        read_registry(path)
    monkeypatch.setattr(module, "MAX_BYTES", 50)
    with pytest.raises(LimitError, match="larger than the limit of 50 bytes"):
        read_registry(path)
    with pytest.raises(FormatError, match="cannot be read"):
        read_registry(tmp_path / "none.json")


keys = st.sampled_from(["format", "version", "rows", "machine", *GOOD, "bytes"])
leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
values = st.recursive(leaves, lambda x: st.lists(x, max_size=3) | st.dictionaries(keys, x, max_size=4), max_leaves=12)


@given(values)
def test_any_json_is_a_table_or_a_typed_error(value: object) -> None:
    rows = value if isinstance(value, list) else [value]
    for top in (value, {"format": "commlib-tuning", "version": 1, "rows": rows}):
        with contextlib.suppress(FormatError):
            registry_from_json(json.dumps(top), "t.json")


def test_ranges_and_rows_are_checked() -> None:
    with pytest.raises(SpecError):
        Range(3, 2)
    with pytest.raises(SpecError, match="reach"):
        Row("allreduce", "x", reach="far")  # type: ignore[arg-type]


# From times to rows


def measured(seconds: list[list[float | None]], names: tuple = (("one_shot", "any"), ("staged", "any"))) -> Measured:
    sizes = tuple(1024 * 4**k for k in range(len(seconds)))
    return Measured("allreduce", 4, names, sizes, tuple(map(tuple, seconds)))


def test_winners_become_rows_that_meet_halfway() -> None:
    found = rows_of(measured([[1e-6, 2e-6], [2e-6, 3e-6], [9e-6, 4e-6]]))
    assert [(row.algorithm, row.bytes, row.reach) for row in found] == [
        ("one_shot", Range(0, 8192), "any"),
        ("staged", Range(8193, None), "any"),
    ]
    assert {(row.ranks, row.hosts) for row in found} == {(Range(4, 4), Range(1, 1))}
    assert [row.note for row in found] == ["2.0 us at 4096 bytes; staged 3.0", "4.0 us at 16384 bytes; one_shot 9.0"]


def test_noise_makes_no_rows() -> None:
    (row,) = rows_of(measured([[1.05e-6, 1e-6], [1e-6, 1.05e-6], [1.08e-6, 1e-6]]))
    assert (row.algorithm, row.bytes) == ("one_shot", Range(0, None))
    first, second = rows_of(measured([[1.2e-6, 1e-6], [1.05e-6, 1e-6]]))
    assert (first.algorithm, second.algorithm) == ("staged", "one_shot")


def test_registered_rows_come_first_and_only_where_they_win() -> None:
    names = (("staged", "any"), ("shared", "registered"), ("shared", "readv"))
    found = rows_of(measured([[1e-6, 2e-6, 9e-6], [4e-6, 2e-6, 9e-6], [9e-6, 5e-6, 6e-6]], names))
    assert [(row.algorithm, row.reach, row.bytes) for row in found] == [
        ("shared", "registered", Range(2049, None)),
        ("staged", "any", Range(0, 8192)),
        ("shared", "readv", Range(8193, None)),
    ]
    assert rows_of(measured([[None, None, None]], names)) == []


def test_a_new_measurement_keeps_what_it_did_not_measure() -> None:
    here, there = Machine("a", 2, True), Machine("b", 2, True)
    old = Registry((ROW, replace(ROW, ranks=Range(8, 8)), Row("reduce", "x", Range(2, 4))), "old", here)
    new = Registry((replace(ROW, algorithm="ring"),), "new", here)
    assert merged(new, old).rows == (new.rows[0], *old.rows[1:])
    assert merged(new, replace(old, machine=there)) == new
    assert merged(new, None) == new


# Where the table lies, and when it counts


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("COMMLIB_TUNING", raising=False)
    monkeypatch.setenv("COMMLIB_CACHE", str(tmp_path))
    (tmp_path / "tuning").mkdir()
    return tmp_path / "tuning" / "tuning.json"


def test_the_table_of_this_machine_is_loaded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuning_file() == place
    assert load_tuning(True) is None
    write_registry(Registry((ROW,), "", this_machine(True)), place)
    found = load_tuning(True)
    assert found is not None
    assert (found.rows, found.source) == ((ROW,), str(place))
    monkeypatch.setenv("COMMLIB_TUNING", str(place.parent / "other.json"))
    assert tuning_file() == place.parent / "other.json"


def test_other_machines_and_damaged_tables_are_passed_over_with_a_reason(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_registry(Registry((ROW,), "", this_machine(True)), place)
    assert load_tuning(False) is None
    assert caplog.text == ""
    monkeypatch.setenv("COMMLIB_TUNING", str(place))
    assert load_tuning(False) is None
    assert "is not used: it was measured on" in caplog.text
    place.write_text("{")
    assert load_tuning(True) is None
    assert "tuning.json:1: not JSON" in caplog.text
    place.unlink()
    assert load_tuning(True) is None
    assert "cannot be read" in caplog.text
