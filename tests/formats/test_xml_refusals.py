"""What is wrong in an XML file is refused quickly, with file and line; nothing but typed errors escapes."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commlib.collectives import allgather, allreduce, alltoall
from commlib.errors import FormatError, LimitError
from commlib.formats import DEFAULT_LIMITS, ReaderLimits, load, read_xml, save
from commlib.formats.limits import check_sizes
from commlib.formats.msccl_xml import parse_xml

GOOD = """<?xml version="1.0"?>
<algo name="a" proto="Simple" nchannels="1" nchunksperloop="2" ngpus="2" coll="allreduce" inplace="0">
  <gpu id="0" i_chunks="2" o_chunks="2" s_chunks="1">
    <tb id="0" send="1" recv="1" chan="0">
      <step s="0" type="s" srcbuf="i" srcoff="0" dstbuf="o" dstoff="0" cnt="2" depid="-1" deps="-1" hasdep="1"/>
      <step s="1" type="rrc" srcbuf="i" srcoff="0" dstbuf="o" dstoff="0" cnt="2" depid="-1" deps="-1" hasdep="0"/>
    </tb>
    <tb id="1" send="-1" recv="-1" chan="0">
      <step s="0" type="cpy" srcbuf="i" srcoff="1" dstbuf="s" dstoff="0" cnt="1" depid="0" deps="0" hasdep="0"/>
    </tb>
  </gpu>
  <gpu id="1" i_chunks="2" o_chunks="2" s_chunks="0">
    <tb id="0" send="0" recv="0" chan="0">
      <step s="0" type="s" srcbuf="i" srcoff="0" dstbuf="o" dstoff="0" cnt="2" depid="-1" deps="-1" hasdep="0"/>
      <step s="1" type="rrc" srcbuf="i" srcoff="0" dstbuf="o" dstoff="0" cnt="2" depid="-1" deps="-1" hasdep="0"/>
    </tb>
  </gpu>
</algo>
"""


def test_the_sample_is_good() -> None:
    assert parse_xml(GOOD.encode())[0].step_count == 5


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ('<algo name="a"', '<!DOCTYPE algo>\n<algo name="a"', 2, "a DOCTYPE is refused"),
        ("<algo ", "<program ", 2, "<program> as the root is not MSCCL XML"),
        ('<tb id="0" send="1"', '<step s="0"/><tb id="0" send="1"', 4, "<step> inside <gpu> is not MSCCL XML"),
        ('<step s="0" type="cpy"', '<op step="0" type="cpy"', 9, "<op> inside <tb> .* the form with <op>"),
        ("</gpu>\n  <gpu", "</tb>\n  <gpu", 11, "not well-formed XML: mismatched tag"),
        ("</gpu>", "hello</gpu>", 11, "text 'hello' where only elements belong"),
        ('ngpus="2"', 'ngpus="3"', 2, "ngpus=3, but there are 2 <gpu> elements"),
        ('ngpus="2"', 'ngpus="0"', 2, "ngpus=0 is out of range"),
        ('ngpus="2"', 'ngpus="0x2"', 2, "ngpus='0x2' is not a decimal integer"),
        ('ngpus="2"', 'ngpus=" 2"', 2, "is not a decimal integer"),
        ('ngpus="2"', 'ngpus="٢"', 2, "is not a decimal integer"),
        ('nchunksperloop="2"', 'nchunksperloop="02"', 2, "is not a decimal integer"),
        ('nchunksperloop="2"', 'nchunksperloop="3"', 3, "i_chunks=2, but allreduce.* has 3 on rank 0"),
        ('coll="allreduce"', 'coll="allgather"', 3, "i_chunks=2, but allgather.* has 1 on rank 0"),
        ('proto="Simple"', 'proto="simple"', 2, "proto='simple' is not one of Simple, LL, LL128"),
        ('inplace="0"', 'inplace="2"', 2, "inplace=2 is neither 0 nor 1"),
        ('inplace="0"', 'inplace="0" outofplace="0"', 2, "for no placement at all"),
        ('inplace="0"', 'inplace="0" minBytes="9" maxBytes="8"', 2, "minBytes=9 is greater than maxBytes=8"),
        ('inplace="0"', 'inplace="0" inplace="0"', 2, "not well-formed XML: duplicate attribute"),
        ('<gpu id="1"', '<gpu id="0"', 12, "gpu 0 is there twice"),
        ('<gpu id="1"', '<gpu id="2"', 12, "gpu 1 is missing before gpu 2"),
        ('<gpu id="1"', "<gpu", 12, "attribute id is missing"),
        ('s_chunks="1"', 's_chunks="-1"', 3, "s_chunks=-1 is out of range"),
        ('s_chunks="1"', 's_chunks="0"', 9, "rank 0 threadblock 1 step 0 writes s.0:1., but scratch has 0 chunks"),
        ('<tb id="1"', '<tb id="0"', 8, "gpu 0: tb 0 is there twice"),
        ('<tb id="1"', '<tb id="2"', 8, "gpu 0: tb 1 is missing"),
        ('send="1"', 'send="0"', 4, "send=0 is not another of the 2 gpus"),
        ('recv="1"', 'recv="2"', 4, "recv=2 is not another of the 2 gpus"),
        ('recv="1"', 'recv="-2"', 4, "recv=-2 is out of range"),
        ('send="1"', 'send="-1"', 5, "rank 0 threadblock 0 step 0 has type s, but its <tb> has no send peer"),
        ('recv="1"', 'recv="-1"', 6, "rank 0 threadblock 0 step 1 has type rrc, but its <tb> has no recv peer"),
        ('chan="0"', 'chan="1"', 4, "chan=1, but nchannels=1"),
        ('chan="0"', 'chan="-1"', 4, "chan=-1 is out of range"),
        ('<step s="1"', '<step s="0"', 6, "step s=0 where s=1 belongs"),
        ('<step s="1"', '<step s="2"', 6, "step s=2 where s=1 belongs"),
        ('type="cpy"', 'type="ra"', 9, "step type 'ra' is not one of s, r, rcs"),
        ('type="cpy"', "", 9, "step type None is not one of"),
        ('srcbuf="i"', 'srcbuf="x"', 5, "srcbuf='x' is not one of i, o, s"),
        ('srcoff="1"', 'srcoff="-1"', 9, "srcoff=-1 is out of range"),
        ('srcoff="1"', 'srcoff="2"', 9, "rank 0 threadblock 1 step 0 reads i.2:3., but input has 2 chunks there"),
        ('srcoff="1"', "", 9, "attribute srcoff is missing"),
        ('cnt="2"', 'cnt="0"', 5, "cnt=0 is out of range"),
        ('cnt="2"', 'cnt="3"', 5, "reads i.0:3., but input has 2 chunks"),
        ('depid="0"', 'depid="2"', 9, "threadblock 1 step 0 depends on threadblock 2 step 0, which does not exist"),
        ('deps="0"', 'deps="2"', 9, "depends on threadblock 0 step 2, which does not exist"),
        ('deps="0"', 'deps="-1"', 9, "depid=0 without the step in deps"),
        ('deps="0"', 'deps="1"', 9, "a runtime would hang"),
        ('hasdep="1"', 'hasdep="2"', 5, "hasdep=2 is neither 0 nor 1"),
    ],
)
def test_a_mistake_is_refused_with_file_and_line(old: str, new: str, line: int, message: str) -> None:
    assert old in GOOD
    with pytest.raises(FormatError, match=message) as error:
        parse_xml(GOOD.replace(old, new, 1).encode(), "bad.xml")
    assert str(error.value).startswith(f"bad.xml:{line}: ")
    assert (error.value.fields["file"], error.value.fields["line"]) == ("bad.xml", line)


HUGE = str(10**17)
BILLION_LAUGHS = (
    '<!DOCTYPE lolz [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY a{i} "{f"&a{i - 1 or str()};" * 10}">' for i in range(1, 10))
    + "]><algo>&a9;</algo>"
)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (BILLION_LAUGHS, None),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><algo/>', None),
        ("<algo>" + "<gpu>" * 100_000, None),
        ("<algo><gpu id='0'>" + "<copy>" * 100_000, "max_depth"),
        (f'<algo ngpus="{HUGE}"/>', "max_ranks"),
        (f'<algo ngpus="8" nchunksperloop="{HUGE}"/>', "max_slots"),
        ('<algo ngpus="65536" nchunksperloop="65536"/>', "max_slots"),
        (f'<algo><gpu id="0" s_chunks="{HUGE}"/></algo>', "max_slots"),
        (f'<algo nchunksperloop="1" coll="custom"><gpu id="0"><tb id="0"><step s="0" type="cpy" srcbuf="i" srcoff="0"'
         f' dstbuf="o" dstoff="{HUGE}"/></tb></gpu></algo>', "max_slots"),
        (f'<algo nchunksperloop="1" coll="allreduce"><gpu id="0"><tb id="0"><step s="0" type="cpy" srcbuf="s"'
         f' srcoff="{HUGE}" dstbuf="o" dstoff="0"/></tb></gpu></algo>', "max_slots"),
        (f'<algo nchunksperloop="{2**21 + 1}" coll="allreduce"><gpu id="0"/></algo>', "max_slots"),
        ("<algo " + " ".join(f'a{i}=""' for i in range(100)) + "/>", "max_attributes"),
        (f'<algo name="{"x" * 100_000}"/>', "max_attribute_length"),
    ],
)  # fmt: skip
def test_a_file_that_asks_for_too_much_is_refused_before_anything_is_allocated(text: str, limit: str | None) -> None:
    content = text.encode()
    tracemalloc.start()
    began = monotonic()
    with pytest.raises(FormatError, match=r"^big\.xml:1: ") as error:
        parse_xml(content, "big.xml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.value.fields.get("limit") == limit
    assert isinstance(error.value, LimitError) == (limit is not None)
    assert monotonic() - began < 10
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        (ReaderLimits(max_steps=2), 9),
        (ReaderLimits(max_threadblocks=2), 13),
        (ReaderLimits(max_ranks=1), 2),
        (ReaderLimits(max_work=5 * 2), 9),
        (ReaderLimits(max_slots=3), 2),
    ],
)
def test_counts_are_checked_at_the_element_that_goes_beyond(limits: ReaderLimits, line: int) -> None:
    with pytest.raises(LimitError, match=f"^f:{line}: "):
        parse_xml(GOOD.encode(), "f", limits=limits)


def test_the_default_limits_admit_large_algorithms_and_can_all_be_exceeded() -> None:
    for collective, scratch, steps in (
        (allgather(1024), [0] * 1024, 1024 * 1024),
        (alltoall(512), [512] * 512, 2 * 512 * 512),
    ):
        check_sizes(collective, scratch, steps, DEFAULT_LIMITS, "f")
    beyond = (
        (allreduce(1, 2**21), [1], 0, "max_slots"),
        (allreduce(1, 2**20), [2**21], 2**20 + 1, "max_work"),
        (allreduce(1), [0], 2**25 + 1, "max_steps"),
    )
    for collective, scratch, steps, limit in beyond:
        with pytest.raises(LimitError, match=f"^f:3: .* over the limit {limit} = "):
            check_sizes(collective, scratch, steps, DEFAULT_LIMITS, "f", 3)


def test_folding_that_multiplies_dependences_is_bounded() -> None:
    nops = "".join(f'<step s="{s}" type="nop" depid="1" deps="{s}" hasdep="1"/>' for s in range(200))
    copies = '<step s="{}" type="cpy" srcbuf="i" srcoff="0" dstbuf="o" dstoff="0" hasdep="1" depid="{}" deps="{}"/>'
    real = "".join(copies.format(s, -1, -1) for s in range(200))
    waiting = "".join(copies.format(s, 0, s) for s in range(200))
    blocks = "".join(f'<tb id="{i}">{steps}</tb>' for i, steps in enumerate((nops, real, waiting)))
    text = f'<algo coll="allreduce" nchunksperloop="1"><gpu id="0">{blocks}</gpu></algo>'.encode()
    assert len(parse_xml(text)[0].dep) == 200 * 201 // 2
    with pytest.raises(LimitError, match="max_dependences"):
        parse_xml(text, limits=ReaderLimits(max_dependences=1000))


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(GOOD)
    assert read_xml(path).step_count == 5
    with pytest.raises(LimitError, match=r"a\.xml:1: larger than the limit of 100 bytes"):
        read_xml(path, limits=ReaderLimits(max_bytes=100))
    with pytest.raises(FormatError, match="cannot be read: No such file"):
        read_xml(tmp_path / "absent.xml")
    with pytest.raises(FormatError, match=r"not a regular file|Is a directory"):
        read_xml(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a regular file"):
        read_xml(tmp_path / "pipe")


@pytest.mark.parametrize("ending", [".xml", ".json", ".txt"])
def test_what_is_no_path_is_a_typed_error(ending: str) -> None:
    algorithm = parse_xml(GOOD.encode())[0]
    for path in (f"a\0b{ending}", f"\ud800{ending}"):
        with pytest.raises(FormatError, match="is no path of a file") as error:
            save(algorithm, path)
        assert str(error.value).isprintable()
        with pytest.raises(FormatError, match="is no path of a file") as error:
            load(path)
        assert str(error.value).isprintable()
    with pytest.raises(FormatError):
        load("")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<",
        b"\xff\xfe",
        b"<a" + b"\x00" * 5,
        b'<?xml version="1.0" encoding="x-no"?><algo/>',
        b'<?xml version="1.0" encoding="utf-7"?><algo/>',
        b"<algo>\xff</algo>",
        b'<algo name="&#xD800;"/>',
        b'<algo name="\xed\xa0\x80"/>',
        '<algo name="?"/>'.encode("utf-16-le").join([b"\xff\xfe", b""]).replace(b"?\0", b"\0\xdc"),
    ],
)
def test_what_is_not_xml_is_refused(content: bytes) -> None:
    with pytest.raises(FormatError, match=r"^<xml>:\d+: "):
        parse_xml(content)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_nothing_but_typed_errors_escapes_from_damaged_files(data: st.DataObject) -> None:
    content = bytearray(GOOD.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["cut", "drop", "change", "digit", "repeat"]))
        if kind == "cut":
            content = content[: at + 1]
        elif kind == "drop":
            del content[at : at + data.draw(st.integers(1, 30))]
        elif kind == "repeat":
            content[at:at] = content[at : at + data.draw(st.integers(1, 200))]
        else:
            byte = st.integers(0, 255) if kind == "change" else st.sampled_from(b"0123456789-")
            content[at] = data.draw(byte)
        if not content:
            break
    given = data.draw(st.sampled_from([{}, {"root": 1}, {"collective": "alltonext"}]))
    message = message_of(lambda: parse_xml(bytes(content), "f", **given))
    assert message is None or message.startswith("f:")


def message_of(read: Callable[[], object]) -> str | None:
    """The message of the FormatError that reading raises, if any; another error escapes."""
    try:
        read()
    except FormatError as error:
        return str(error)
    return None
