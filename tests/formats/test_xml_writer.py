"""What is written, byte for byte; what XML cannot hold; files replaced as a whole."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from commlib.collectives import COLLECTIVES, ROOTED, Buffer, Collective, Placement, allgather, allreduce, custom
from commlib.errors import FormatError
from commlib.formats import load, read_json, read_xml, save, write_json, write_xml, xml_info
from commlib.formats.json_form import json_text
from commlib.formats.msccl_xml import parse_xml, xml_text
from commlib.ir.algorithm import Algorithm, Op
from commlib.ir.builder import AlgorithmBuilder
from commlib.ir.text import algorithm_from_text, algorithm_to_text

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
I, O, S = Buffer  # noqa: E741


def sample() -> Algorithm:
    """Two ranks exchange and reduce, out of place, with a step that waits for three others."""
    builder = AlgorithmBuilder('ex"change & reduce', allreduce(2, 2), [2, 0], frozenset({Placement.OUT}), "LL128")
    builder.threadblock(0, send=1, recv=1, channel=1)
    builder.step(Op.SEND, (I, 0), count=2, line=3)
    builder.step(Op.RECV, None, (S, 0), count=2, line=4)
    builder.threadblock(0)
    builder.step(Op.COPY, (I, 0), (O, 0), line=5)
    builder.step(Op.COPY, (I, 1), (O, 1), line=5)
    builder.threadblock(0)
    builder.step(Op.REDUCE, (S, 0), (O, 0), 2, [(0, 1), (1, 0), (1, 1)], line=6)
    builder.threadblock(1, recv=0, channel=1, send=0)
    builder.step(Op.SEND, (I, 0), count=2, line=3)
    builder.step(Op.RECV_REDUCE_COPY, (I, 0), (O, 0), 2, line=7)
    return builder.build("exchange.py")


def test_xml_golden() -> None:
    assert xml_text(sample()) == (GOLDEN / "exchange_msccl.xml").read_text()
    assert xml_text(sample(), "executor", 1024, 65536) == (GOLDEN / "exchange_executor.xml").read_text()


def test_json_and_text_goldens() -> None:
    assert json_text(sample()) == (GOLDEN / "exchange.json").read_text()
    assert algorithm_to_text(sample()) == (GOLDEN / "exchange.txt").read_text()


def test_goldens_read_back() -> None:
    read = [read_xml(GOLDEN / "exchange_msccl.xml"), read_json(GOLDEN / "exchange.json")]
    assert [*read, algorithm_from_text((GOLDEN / "exchange.txt").read_text())] == [sample()] * 3
    assert read[1].origin(6) == ("exchange.py", 7)


def test_each_step_has_one_dependence_and_hasdep_stands_where_something_waits() -> None:
    steps = list(ElementTree.fromstring(xml_text(sample())).iter("step"))
    kinds = [(s.get("s"), s.get("type"), s.get("depid"), s.get("deps"), s.get("hasdep")) for s in steps]
    assert kinds[2:7] == [
        ("0", "cpy", "-1", "-1", "1"),
        ("1", "cpy", "-1", "-1", "1"),
        ("0", "nop", "0", "1", "0"),
        ("1", "nop", "1", "0", "0"),
        ("2", "re", "1", "1", "0"),
    ]
    assert [s.get("hasdep") for s in steps if s.get("type") in ("s", "r", "rrc")] == ["0", "1", "0", "0"]


def test_dependences_name_steps_by_their_number_in_the_file() -> None:
    builder = AlgorithmBuilder("a", allreduce(1), [0])
    builder.threadblock(0)
    for _ in range(2):
        builder.step(Op.COPY, (I, 0), (O, 0))
    builder.threadblock(0)
    builder.step(Op.COPY, (I, 0), (O, 0), 1, [(0, 0), (0, 1)])
    builder.threadblock(0)
    builder.step(Op.COPY, (I, 0), (O, 0), 1, [(1, 0)])
    last = list(ElementTree.fromstring(xml_text(builder.build())).iter("step"))[-1]
    assert (last.get("depid"), last.get("deps")) == ("1", "1")


def test_the_other_sides_operand_is_written_as_msccl_tools_does() -> None:
    steps = list(ElementTree.fromstring(xml_text(sample())).iter("step"))
    send, receive = steps[0], steps[1]
    assert (send.get("dstbuf"), send.get("dstoff")) == ("o", "0")
    assert (receive.get("srcbuf"), receive.get("srcoff")) == ("i", "0")
    back = steps[-2]
    assert (back.get("dstbuf"), back.get("dstoff")) == ("s", "0")


@pytest.mark.parametrize("dialect", ["msccl", "executor"])
@pytest.mark.parametrize("name", COLLECTIVES)
def test_every_standard_collective_is_written_and_read(name: str, dialect: str) -> None:
    root = 1 if name in ROOTED else None
    algorithm = AlgorithmBuilder("a", Collective(name, 3, 2, root), [0, 0, 0]).build()
    assert parse_xml(xml_text(algorithm, dialect).encode(), root=root)[0] == algorithm


@pytest.mark.parametrize(
    ("dialect", "placements", "written"),
    [
        ("msccl", {Placement.IN}, 'inplace="1"'),
        ("msccl", {Placement.OUT}, 'inplace="0"'),
        ("msccl", set(Placement), 'inplace="1" placements="in out"'),
        ("executor", {Placement.IN}, 'inplace="1" outofplace="0" minBytes="0" maxBytes="0"'),
        ("executor", {Placement.OUT}, 'inplace="0" outofplace="1" minBytes="0" maxBytes="0"'),
        ("executor", set(Placement), 'inplace="1" outofplace="1" minBytes="0" maxBytes="0"'),
    ],
)
def test_placements_are_written_as_the_dialect_says_them(
    dialect: str, placements: set[Placement], written: str
) -> None:
    algorithm = replace(sample(), placements=frozenset(placements))
    assert xml_text(algorithm, dialect).splitlines()[0].endswith(f'coll="allreduce" {written}>')


@pytest.mark.parametrize("bounds", [(None, None), (0, 65536)])
@pytest.mark.parametrize("placements", [{Placement.IN}, {Placement.OUT}, set(Placement)])
@pytest.mark.parametrize("dialect", ["msccl", "executor"])
def test_a_file_is_read_as_the_dialect_that_it_was_written_in(
    tmp_path: Path, dialect: str, placements: set[Placement], bounds: tuple[int | None, int | None]
) -> None:
    algorithm = replace(sample(), placements=frozenset(placements))
    save(algorithm, tmp_path / "a.xml", dialect, *bounds)
    assert xml_info(tmp_path / "a.xml").dialect == dialect
    assert load(tmp_path / "a.xml") == algorithm


def test_reducescatter_has_the_name_that_each_runtime_knows() -> None:
    algorithm = AlgorithmBuilder("a", Collective("reducescatter", 2), [0, 0]).build()
    assert 'coll="reduce_scatter"' in xml_text(algorithm)
    assert 'coll="reducescatter"' in xml_text(algorithm, "executor")


def test_a_custom_collective_is_written_as_custom_and_its_conditions_stay_with_the_caller() -> None:
    mine = custom("mine", [2], [1], {(0, 0): [(0, 0), (0, 1)]})
    text = xml_text(AlgorithmBuilder("a", mine, [0]).build())
    assert 'nchunksperloop="2" ngpus="1" coll="custom"' in text
    assert parse_xml(text.encode(), collective=mine)[0].collective == mine
    assert not parse_xml(text.encode())[0].collective.specified


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"protocol": "Fast"}, {}, "cannot hold protocol 'Fast'"),
        ({"placements": frozenset()}, {}, "cannot hold an algorithm that is for no placement"),
        ({"name": "bell\a"}, {}, "cannot hold this name of the algorithm"),
        ({"name": "half\ud800"}, {}, "cannot hold this name of the algorithm"),
        ({}, {"min_bytes": 5, "max_bytes": 4}, "cannot hold the size bounds minBytes=5, maxBytes=4"),
        ({}, {"min_bytes": -1}, "cannot hold the size bounds minBytes=-1"),
        ({}, {"dialect": "nccl"}, "no dialect is called 'nccl'; there are msccl, executor"),
    ],
)
def test_what_xml_cannot_hold_is_an_error_that_names_it(
    tmp_path: Path, change: dict[str, object], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        write_xml(replace(sample(), **change), tmp_path / "a.xml", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_connection_with_oneself_is_not_xml() -> None:
    builder = AlgorithmBuilder("a", allgather(1), [0])
    builder.threadblock(0, send=0)
    with pytest.raises(FormatError, match="cannot hold a connection of rank 0 with itself"):
        xml_text(builder.build())


def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.xml"
    write_xml(sample(), path)
    before = path.read_text()
    os.chmod(path, 0o644)

    def failing(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(FormatError, match=r"a\.xml: cannot be written: No space left on device"):
        write_json(sample(), path)
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.xml"]


def test_save_goes_by_the_ending(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"must end in one of \.xml, \.json, \.txt"):
        save(sample(), tmp_path / "a.yaml")
    with pytest.raises(FormatError, match="cannot be written: No such file or directory"):
        save(sample(), tmp_path / "absent" / "a.json")
    save(sample(), tmp_path / "a.XML", "executor", 1, 2)
    assert 'minBytes="1" maxBytes="2"' in (tmp_path / "a.XML").read_text()
