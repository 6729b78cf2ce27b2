"""What GPU runtimes make of consecutive re steps: written files mean what they say, read files what is run."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commlib.collectives import Buffer, Collective, Placement, allgather, allreduce, custom
from commlib.errors import FormatError
from commlib.formats import XmlInfo
from commlib.formats.msccl_xml import parse_xml, xml_text
from commlib.ir.algorithm import Algorithm, Op
from commlib.ir.builder import AlgorithmBuilder

I, O, S = Buffer  # noqa: E741
Slot = tuple[str, int]
Memory = dict[Slot, Counter[Slot]]
Row = dict[str, str]


def of_steps(
    *steps: tuple[tuple[Buffer, int], tuple[Buffer, int], int],
    collective: Collective | None = None,
    placements: frozenset[Placement] = frozenset({Placement.OUT}),
) -> Algorithm:
    """One threadblock of re steps (source, destination, count)."""
    builder = AlgorithmBuilder("a", collective or allreduce(1, 4), [4], placements)
    builder.threadblock(0)
    for source, destination, count in steps:
        builder.step(Op.REDUCE, source, destination, count)
    return builder.build()


def rows_of(text: str) -> list[Row]:
    return [step.attrib for step in ElementTree.fromstring(text).iter("step")]


def flags(algorithm: Algorithm) -> list[str]:
    return [row["hasdep"] for row in rows_of(xml_text(algorithm))]


def transmissions(rows: list[Row]) -> list[list[Row]]:
    """The steps that a runtime puts into each transmission."""
    runs: list[list[Row]] = [rows[:1]] if rows else []
    for before, row in pairwise(rows):
        same = all(before[key] == row[key] for key in ("dstbuf", "dstoff", "srcbuf"))
        if same and row["depid"] == "-1" and before["hasdep"] == "0":
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def run(runs: list[list[Row]], begin: dict[str, int] | None) -> Memory:
    """What a runtime's transmissions leave in memory; ``begin``: where i and o begin in one span, in place."""

    def slot(row: Row, side: str, chunk: int) -> Slot:
        buffer, index = row[f"{side}buf"], int(row[f"{side}off"]) + chunk
        return ("span", index + begin[buffer]) if begin is not None and buffer in begin else (buffer, index)

    memory: Memory = {}
    for steps in runs:
        count = int(steps[-1]["cnt"])
        written: Memory = {}
        for chunk in range(count):
            read = [slot(steps[0], "dst", chunk), *(slot(step, "src", chunk) for step in steps)]
            written[read[0]] = sum((memory.get(place, Counter({place: 1})) for place in read), Counter())
        memory |= written
    return memory


PLACES = st.tuples(st.sampled_from([I, O]), st.integers(0, 2))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(PLACES, st.just((O, 1)) | PLACES, st.integers(1, 2)), max_size=6),
    st.sampled_from([allreduce(1, 4), custom("mine", [4], [4], {}, [(1, 0)])]),
)
def test_what_is_written_is_the_same_step_by_step_and_fused(
    steps: list[tuple[tuple[Buffer, int], tuple[Buffer, int], int]], collective: Collective
) -> None:
    algorithm = of_steps(*steps, collective=collective, placements=frozenset(Placement))
    rows = rows_of(xml_text(algorithm))
    first, second = collective.in_place_offsets(0)
    for begin in (None, {"i": first, "o": second}):
        assert run(transmissions(rows), begin) == run([[row] for row in rows], begin)
    given_back = {"collective": collective} if collective.custom is not None else {}
    assert parse_xml(xml_text(algorithm).encode(), **given_back)[0] == algorithm


def test_a_chain_is_left_to_the_runtime_where_it_means_the_same() -> None:
    assert flags(of_steps(((S, 0), (O, 0), 2), ((S, 2), (O, 0), 2), ((S, 1), (O, 0), 2))) == ["0", "0", "0"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (((S, 0), (O, 0), 2), ((S, 2), (O, 0), 1)),
        (((O, 2), (O, 0), 1), ((O, 0), (O, 0), 1)),
        (((O, 2), (O, 0), 2), ((O, 1), (O, 0), 2)),
    ],
)
def test_a_chain_is_broken_where_it_would_mean_something_else(first: tuple, second: tuple) -> None:
    assert flags(of_steps(first, second)) == ["1", "0"]


def test_in_place_input_and_output_are_one_memory() -> None:
    steps = ((I, 1), (O, 0), 1), ((I, 0), (O, 0), 1)
    assert flags(of_steps(*steps)) == ["0", "0"]
    assert flags(of_steps(*steps, placements=frozenset(Placement))) == ["1", "0"]
    for destination, expected in ((0, ["0", "0"]), (2, ["1", "0"])):
        builder = AlgorithmBuilder("a", allgather(2, 2), [0, 0], frozenset({Placement.IN}))
        builder.threadblock(1)
        builder.step(Op.REDUCE, (I, 1), (O, destination))
        builder.step(Op.REDUCE, (I, 0), (O, destination))
        assert flags(builder.build()) == expected


def test_no_more_than_sixteen_are_fused() -> None:
    algorithm = of_steps(*[((S, 0), (O, 0), 1)] * 40)
    assert [len(steps) for steps in transmissions(rows_of(xml_text(algorithm)))] == [16, 16, 8]


def reduce(s: int, source: str, destination: str = "o0", cnt: int = 1, depid: int = -1, hasdep: int = 0) -> str:
    return (
        f'<step s="{s}" type="re" srcbuf="{source[0]}" srcoff="{source[1]}" dstbuf="{destination[0]}" '
        f'dstoff="{destination[1]}" cnt="{cnt}" depid="{depid}" deps="{min(depid, 0)}" hasdep="{hasdep}"/>'
    )


def nop(s: int, depid: int = -1) -> str:
    return f'<step s="{s}" type="nop" depid="{depid}" deps="{min(depid, 0)}" hasdep="0"/>'


def parse(*steps: str, inplace: int = 0, also: str = "") -> tuple[Algorithm, XmlInfo]:
    """Threadblock 0 has these steps from line 4 on; threadblock 1 has a step that may be waited for."""
    lines = "\n".join(steps)
    text = (
        f'<algo name="a" proto="LL" nchannels="1" nchunksperloop="4" ngpus="1" coll="allreduce" inplace="{inplace}">\n'
        f'<gpu id="0" s_chunks="4">\n<tb id="0">\n{lines}\n</tb>\n<tb id="1">{reduce(0, "s3", "o3", hasdep=1)}</tb>\n'
        f"{also}</gpu></algo>"
    )
    return parse_xml(text.encode(), "f.xml")


@pytest.mark.parametrize(
    ("steps", "line", "inplace"),
    [
        ((reduce(0, "s0", cnt=2), reduce(1, "s2", cnt=1)), 5, 0),
        ((reduce(0, "o2"), reduce(1, "o0")), 5, 0),
        ((reduce(0, "s2"), reduce(1, "s0"), reduce(2, "s0", cnt=2)), 6, 0),
        ((reduce(0, "i2"), reduce(1, "i0")), 5, 1),
        ((reduce(0, "s0"), nop(1, depid=1), reduce(2, "s1")), 6, 0),
    ],
)
def test_a_file_whose_fused_steps_compute_something_else_is_refused(
    steps: tuple[str, ...], line: int, inplace: int
) -> None:
    message = rf"^f\.xml:{line}: rank 0 threadblock 0 step {len(steps) - 1} is run by GPU runtimes as one with the re"
    with pytest.raises(FormatError, match=message):
        parse(*steps, inplace=inplace)


@pytest.mark.parametrize(
    "steps",
    [
        (reduce(0, "s0", cnt=2, hasdep=1), reduce(1, "s2", cnt=1)),
        (reduce(0, "s0", cnt=2), reduce(1, "s2", cnt=1, depid=1)),
        (reduce(0, "s0"), nop(1, depid=1), reduce(2, "s1", depid=1)),
        (reduce(0, "i2"), reduce(1, "i0")),
        (reduce(0, "s2"), nop(1), reduce(2, "s0")),
        (reduce(0, "o2"), reduce(1, "s0", "o1"), reduce(2, "o0")),
        (reduce(0, "s0", cnt=2), reduce(1, "i0", cnt=1)),
    ],
)
def test_a_file_whose_steps_are_not_fused_or_to_the_same_effect_is_read_as_it_stands(steps: tuple[str, ...]) -> None:
    algorithm, info = parse(*steps)
    assert algorithm.step_count == 1 + sum("re" in step for step in steps)
    assert info.notes == ()


def test_a_nop_that_waits_before_a_step_that_does_not_is_noted() -> None:
    algorithm, info = parse(reduce(0, "s0"), nop(1, depid=1), reduce(2, "s1", "o1"))
    assert algorithm.step(1).depends == ((1, 0),)
    note = 'a nop waits and the step after it does not (depid="-1"): GPU runtimes refuse the file (first at line 6)'
    assert info.notes == (note,)
    assert parse(nop(0, depid=1), reduce(1, "s1"))[1].notes == (note.replace("line 6", "line 5"),)
    assert parse(reduce(0, "s0"), nop(1, depid=1))[1].notes == ()


def test_a_nop_that_waits_for_nothing_shifts_what_is_waited_for() -> None:
    waiting = '<tb id="2"><step s="0" type="re" srcbuf="s" srcoff="0" dstbuf="o" dstoff="1" depid="0" deps="{}"/></tb>'
    steps = (reduce(0, "s0", hasdep=1), nop(1), reduce(2, "s1", "o2", hasdep=1))
    assert parse(*steps, also=waiting.format(0))[1].notes == ()
    note = "a step is waited for behind a nop that waits for nothing: GPU runtimes release it at a later step"
    assert parse(*steps, also=waiting.format(2))[1].notes == (f"{note} (first at line 6)",)
