"""What an XML file means: nops, hasdep, defaults, sizes, collectives, placements."""

from __future__ import annotations

import pytest

from commlib.collectives import Collective, Placement, allgather, alltonext, broadcast, custom
from commlib.errors import CommlibError, FormatError
from commlib.formats.msccl_xml import XmlInfo, parse_xml
from commlib.ir.algorithm import Algorithm

HEADER = 'name="a" proto="Simple" nchannels="1" nchunksperloop="4" ngpus="1" coll="allreduce" inplace="0"'


def copy(s: int, depid: int = -1, deps: int = -1, hasdep: int = 0) -> str:
    return (
        f'<step s="{s}" type="cpy" srcbuf="i" srcoff="0" dstbuf="o" dstoff="0" cnt="1" '
        f'depid="{depid}" deps="{deps}" hasdep="{hasdep}"/>'
    )


def nop(s: int, depid: int = -1, deps: int = -1, hasdep: int = 0) -> str:
    return (
        f'<step s="{s}" type="nop" srcbuf="i" srcoff="-1" dstbuf="o" dstoff="-1" cnt="0" '
        f'depid="{depid}" deps="{deps}" hasdep="{hasdep}"/>'
    )


def one_gpu(*blocks: list[str]) -> str:
    """A file of one gpu without connections; the steps of threadblock k begin at line 3 + k lines before it."""
    tbs = "\n".join(
        f'<tb id="{i}" send="-1" recv="-1" chan="0">' + "".join("\n" + step for step in steps) + "\n</tb>"
        for i, steps in enumerate(blocks)
    )
    return f'<algo {HEADER}>\n<gpu id="0" i_chunks="4" o_chunks="4" s_chunks="0">\n{tbs}\n</gpu>\n</algo>'


def read(text: str, **given: object) -> Algorithm:
    return parse_xml(text.encode(), "f.xml", **given)[0]


def info(text: str, **given: object) -> XmlInfo:
    return parse_xml(text.encode(), "f.xml", **given)[1]


def waits(algorithm: Algorithm) -> list[list[tuple[int, ...]]]:
    """Per threadblock, the dependences of each step."""
    return [[algorithm.step(s).depends for s in block.steps] for block in algorithm.threadblocks(0)]


def test_nops_give_their_dependences_to_the_next_step() -> None:
    one = [copy(0, hasdep=1), copy(1, hasdep=1)]
    text = one_gpu(one, [copy(0, hasdep=1)], [nop(0, 0, 1), nop(1, 1, 0), copy(2, 0, 0)])
    assert waits(read(text)) == [[(), ()], [()], [((0, 0), (0, 1), (1, 0))]]


def test_a_dependence_on_a_nop_is_its_dependences_and_the_step_before_it() -> None:
    text = one_gpu([copy(0, hasdep=1)], [copy(0), nop(1, 0, 0, hasdep=1)], [copy(0, 1, 1)])
    assert waits(read(text)) == [[()], [()], [((0, 0), (1, 0))]]
    assert any("nop" in note for note in info(text).notes)


def test_a_dependence_on_the_second_of_two_nops_has_those_of_both() -> None:
    text = one_gpu([copy(0, hasdep=1), copy(1, hasdep=1)], [nop(0, 0, 0), nop(1, 0, 1, hasdep=1)], [copy(0, 1, 1)])
    assert waits(read(text)) == [[(), ()], [], [((0, 0), (0, 1))]]


def test_nops_at_the_end_vanish() -> None:
    text = one_gpu([copy(0, hasdep=1)], [copy(0), nop(1, 0, 0)])
    assert waits(read(text)) == [[()], [()]]


def test_nops_that_wait_for_each_other_are_refused() -> None:
    text = one_gpu([nop(0, 1, 0, hasdep=1)], [nop(0, 0, 0, hasdep=1)], [copy(0, 0, 0)])
    with pytest.raises(FormatError, match=r"f\.xml:[47]: .* is a nop that waits for itself"):
        read(text)


def test_a_step_without_hasdep_is_released_by_the_next_that_has_it() -> None:
    text = one_gpu([copy(0), copy(1), copy(2, hasdep=1)], [copy(0, 0, 0)])
    assert waits(read(text)) == [[(), (), ()], [((0, 2),)]]
    assert info(text).notes == (
        'dependences on a step with hasdep="0" are released by the next step with hasdep="1" (first at line 9)',
    )


def test_a_step_that_no_hasdep_releases_would_hang() -> None:
    text = one_gpu([copy(0, hasdep=1), copy(1), copy(2)], [copy(0, 0, 1)])
    with pytest.raises(FormatError, match=r"f\.xml:9: rank 0 threadblock 1 step 0 .* would hang") as error:
        read(text)
    assert error.value.fields == {"file": "f.xml", "line": 9, "rank": 0, "threadblock": 1, "step": 0}


def test_steps_carry_their_line() -> None:
    algorithm = read(one_gpu([copy(0), nop(1), copy(2)]))
    assert [algorithm.origin(s) for s in range(2)] == [("f.xml", 4), ("f.xml", 6)]


def test_gpus_and_threadblocks_may_come_in_any_order() -> None:
    header = HEADER.replace('ngpus="1"', 'ngpus="2"')
    sender = '<tb id="1" send="1" recv="-1" chan="0"><step s="0" type="s" srcbuf="i" srcoff="2" cnt="2"/></tb>'
    receiver = '<tb id="0" send="-1" recv="0" chan="0"><step s="0" type="r" dstbuf="o" dstoff="1" cnt="2"/></tb>'
    copies = f'<tb id="0" send="-1" recv="-1" chan="0">{copy(0)}{copy(1)}</tb>'
    algorithm = read(
        f'<algo {header}><gpu id="1" s_chunks="3">{receiver}</gpu><gpu id="0">{sender}{copies}</gpu></algo>'
    )
    assert [str(step) for step in algorithm.steps()] == ["cpy i[0] -> o[0]"] * 2 + ["s i[2:4]", "r -> o[1:3]"]
    assert [block.send for block in algorithm.threadblocks(0)] == [None, 1]
    assert algorithm.scratch_chunks == (0, 3)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [("rrc", "rrc i[1] -> o[2]"), ("rrs", "rrs i[1]"), ("rrcs", "rrcs i[1] -> o[2]"), ("rcs", "rcs -> o[2]")],
)
def test_in_receiving_steps_the_local_operand_is_the_source(kind: str, steps: str) -> None:
    header = HEADER.replace('ngpus="1"', 'ngpus="2"')
    step = f'<step s="0" type="{kind}" srcbuf="i" srcoff="1" dstbuf="o" dstoff="2" cnt="1"/>'
    text = f'<algo {header}><gpu id="0"><tb id="0" send="1" recv="1" chan="0">{step}</tb></gpu><gpu id="1"/></algo>'
    assert str(read(text).step(0)) == steps


def header_of(ranks: int, **attributes: str) -> str:
    attributes = {"name": "a", "proto": "LL", "nchannels": "1", "ngpus": str(ranks), **attributes}
    return " ".join(f'{key}="{value}"' for key, value in attributes.items())


def empty(ranks: int, sizes: str = "", **attributes: str) -> str:
    gpus = "".join(f'<gpu id="{rank}" {sizes}/>' for rank in range(ranks))
    return f"<algo {header_of(ranks, **attributes)}>{gpus}</algo>"


@pytest.mark.parametrize(
    ("coll", "loop", "expected"),
    [
        ("allreduce", 6, Collective("allreduce", 2, 6)),
        ("allgather", 6, Collective("allgather", 2, 3)),
        ("reduce_scatter", 6, Collective("reducescatter", 2, 3)),
        ("reducescatter", 6, Collective("reducescatter", 2, 3)),
        ("ReduceScatter", 6, Collective("reducescatter", 2, 3)),
        ("all_to_all", 6, Collective("alltoall", 2, 3)),
        ("broadcast", 6, Collective("broadcast", 2, 6, 1)),
        ("reduce", 6, Collective("reduce", 2, 6, 1)),
        ("gather", 6, Collective("gather", 2, 3, 1)),
        ("scatter", 6, Collective("scatter", 2, 3, 1)),
        ("sendrecv", 6, Collective("sendrecv", 2, 6)),
        ("alltonext", 6, Collective("alltonext", 2, 6)),
    ],
)
def test_coll_and_nchunksperloop_make_the_collective(coll: str, loop: int, expected: Collective) -> None:
    text = empty(2, coll=coll, nchunksperloop=str(loop), inplace="0")
    assert read(text, root=expected.root).collective == expected


def test_gather_sizes_tell_what_nchunksperloop_counts() -> None:
    shard = empty(2, 'i_chunks="6"', coll="gather", nchunksperloop="6", inplace="0")
    assert read(shard, root=0).collective == Collective("gather", 2, 6, 0)
    executor = empty(2, coll="gather", nchunksperloop="6", inplace="0", outofplace="1")
    assert read(executor, root=0).collective == Collective("gather", 2, 6, 0)


def test_a_rooted_collective_needs_a_root() -> None:
    text = empty(2, coll="broadcast", nchunksperloop="1", inplace="0")
    with pytest.raises(FormatError, match=r"f\.xml:1: broadcast needs a root, .* pass root=RANK"):
        read(text)
    assert read(text, root=1).collective == broadcast(2, 1, root=1)
    with pytest.raises(FormatError, match="root 2 is not one of the 2 ranks"):
        read(text, root=2)


def test_a_rank_off_the_root_may_declare_the_buffer_it_does_not_use() -> None:
    text = empty(2, 'i_chunks="3" o_chunks="3"', coll="broadcast", nchunksperloop="3", inplace="0")
    assert read(text, root=0).collective == broadcast(2, 3)


def test_a_custom_file_takes_the_callers_conditions() -> None:
    text = empty(2, 'i_chunks="3" o_chunks="0"', coll="custom", nchunksperloop="3", inplace="1")
    assert read(text, collective="alltonext").collective == alltonext(2, 3)
    assert read(text, collective=alltonext(2, 3)).collective == alltonext(2, 3)
    mine = custom("mine", [3, 3], [3, 3], {(0, 0): [(1, 1)]})
    assert read(text, collective=mine).collective == mine
    unspecified = read(text).collective
    assert not unspecified.specified
    assert [unspecified.output_chunks(r) for r in range(2)] == [3, 3]
    assert unspecified.in_place_offsets(1) == (0, 0)


def test_an_unknown_collective_is_as_large_as_its_steps_need() -> None:
    step = '<step s="0" type="cpy" srcbuf="i" srcoff="7" dstbuf="o" dstoff="1" cnt="2"/>'
    header = header_of(1, coll="mystery", nchunksperloop="4", inplace="0")
    collective = read(f'<algo {header}><gpu id="0" i_chunks="2"><tb id="0">{step}</tb></gpu></algo>').collective
    assert (collective.name, collective.input_chunks(0), collective.output_chunks(0)) == ("mystery", 9, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"collective": "allreduce"}, "the file's collective is allgather, not allreduce"),
        ({"collective": allgather(3)}, "the file has 2 ranks, the collective given 3"),
        ({"collective": allgather(2, 5)}, "nchunksperloop is 4, but .* has 10"),
        ({"root": 0}, "allgather takes no root"),
        ({"collective": allgather(2, 2), "root": 1}, "root 1 was given beside a collective with root None"),
    ],
)
def test_what_the_caller_gives_must_fit_the_file(given: dict[str, object], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(empty(2, coll="allgather", nchunksperloop="4", inplace="0"), **given)


@pytest.mark.parametrize(
    ("attributes", "placements", "dialect", "high"),
    [
        ({"inplace": "1"}, {Placement.IN}, "msccl", 1 << 35),
        ({"inplace": "0"}, {Placement.OUT}, "msccl", 1 << 35),
        ({}, {Placement.OUT}, "msccl", 1 << 35),
        ({"inplace": "1", "outofplace": "0"}, {Placement.IN}, "executor", 0),
        ({"inplace": "0", "outofplace": "1"}, {Placement.OUT}, "executor", 0),
        ({"inplace": "1", "outofplace": "1", "maxBytes": "7"}, set(Placement), "executor", 7),
        ({"inplace": "1", "minBytes": "5", "maxBytes": "7"}, {Placement.IN}, "msccl", 7),
        ({"inplace": "1", "placements": "in out"}, set(Placement), "msccl", 1 << 35),
        ({"inplace": "1", "placements": "elsewhere"}, {Placement.IN}, "msccl", 1 << 35),
    ],
)
def test_placements_and_sizes_have_the_runtimes_defaults(
    attributes: dict[str, str], placements: set[Placement], dialect: str, high: int
) -> None:
    text = empty(1, coll="allreduce", nchunksperloop="1", **attributes)
    said = info(text)
    assert read(text).placements == placements
    assert (said.dialect, said.max_bytes, said.min_bytes) == (dialect, high, int(attributes.get("minBytes", "0")))
    assert (said.in_place, said.out_of_place) == (Placement.IN in placements, Placement.OUT in placements)


def test_attributes_of_other_tools_are_noted_and_ignored() -> None:
    header = '<!-- c --><algo nchunksperloop="1" coll="allreduce" redop="sum" nthreads="512">'
    said = info(header + '<gpu id="0"><copy i_off="0"/></gpu></algo>')
    assert (said.redop, said.proto, said.ngpus, said.nchannels) == ("sum", "Simple", 1, 1)
    assert said.notes == (
        "attribute nthreads of <algo> ignored, as the runtimes do",
        "element <copy> ignored, as the runtimes do",
        "attribute inplace of <algo> is missing: taken as 0",
        "attribute proto of <algo> is missing: taken as Simple",
    )


def test_a_file_without_nchunksperloop_takes_its_largest_buffer() -> None:
    text = '<algo coll="allreduce" inplace="1"><gpu id="0" i_chunks="3" o_chunks="0"/></algo>'
    assert read(text).collective == Collective("allreduce", 1, 3)
    with pytest.raises(CommlibError, match="nchunksperloop is missing"):
        read('<algo coll="allreduce"><gpu id="0"/></algo>')
