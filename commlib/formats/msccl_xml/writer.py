"""Writes MSCCL XML, in both dialects, laid out as msccl-tools writes it.

One step per line; a step that waits for several others has nop steps before it, one dependence each. hasdep="1" stands
where something waits, and on a ``re`` that the runtimes must not run as one with the next (see ``fusion``). The
operands that belong to the other side of a message (dst of ``s``, src of ``r`` and ``rcs``) are those of the step at
the other end, where there is one; no reader needs them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import NoReturn
from xml.sax.saxutils import quoteattr

import numpy as np

from commlib.collectives import Buffer, Collective, Placement
from commlib.errors import FormatError
from commlib.files.disk import write_atomic
from commlib.formats.limits import DEFAULT_LIMITS
from commlib.formats.msccl_xml import names
from commlib.formats.msccl_xml.fusion import separators
from commlib.formats.waits import without_nops
from commlib.ir.algorithm import HAS_DESTINATION, HAS_SOURCE, NOTHING, ONE_SIDED, Algorithm, Ints, Op
from commlib.ir.links import links

_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ESCAPES = {'"': "&quot;", "\n": "&#10;", "\r": "&#13;", "\t": "&#9;"}
_NOP = '<step s="{}" type="nop" srcbuf="i" srcoff="-1" dstbuf="o" dstoff="-1" cnt="0" depid="{}" deps="{}" hasdep="0"/>'


def write_xml(
    algorithm: Algorithm,
    path: str | os.PathLike[str],
    dialect: names.Dialect = "msccl",
    min_bytes: int | None = None,
    max_bytes: int | None = None,
) -> None:
    """Write an Algorithm as MSCCL XML; the file is replaced as a whole or not at all.

    ``read_xml`` gives the same Algorithm back, with dependence lists sorted, nop steps folded into what they mean,
    and origins in the file, when it is given what XML does not hold: the root, and the conditions of a custom
    collective (coll="custom"). So these are no losses, and rooted and custom collectives are written. Everything
    else that XML does not hold is an error. In the dialect ``msccl``, which has no attribute for it,
    placements="in out" is added for an Algorithm that is for both placements; that runtime ignores it.
    ``min_bytes`` and ``max_bytes`` bound the sizes a runtime uses the file for (executor: 0 is no upper bound).

    Raises:
        FormatError: no such dialect; a name, protocol, placement or size bound that XML cannot hold; unwritable.
    """
    write_atomic(path, xml_text(algorithm, dialect, min_bytes, max_bytes))


def xml_text(
    algorithm: Algorithm,
    dialect: names.Dialect = "msccl",
    min_bytes: int | None = None,
    max_bytes: int | None = None,
) -> str:
    """The text that ``write_xml`` writes. Linear in the number of steps and dependences."""
    if dialect not in names.DIALECTS:
        raise FormatError(f"no dialect is called {dialect!r}; there are {', '.join(names.DIALECTS)}")
    _check_expressible(algorithm)
    folded = without_nops(algorithm)
    lines = [f"<algo {_header(folded, dialect, min_bytes, max_bytes)}>"]
    steps = _step_lines(folded)
    for rank in range(folded.ranks):
        lines.append(f'  <gpu id="{rank}" {_sizes(folded, rank)}>')
        for block in folded.threadblocks(rank):
            send, recv = (NOTHING if peer is None else peer for peer in (block.send, block.recv))
            lines.append(f'    <tb id="{block.index}" send="{send}" recv="{recv}" chan="{block.channel}">')
            for number in block.steps:
                lines.extend(steps[number])
            lines.append("    </tb>")
        lines.append("  </gpu>")
    lines.append("</algo>\n")
    return "\n".join(lines)


def _lost(algorithm: Algorithm, what: str, **fields: object) -> NoReturn:
    message = f"{algorithm.name}: MSCCL XML cannot hold {what}; save it as .json, which holds everything"
    raise FormatError(message, **fields)


def _check_expressible(algorithm: Algorithm) -> None:
    if algorithm.protocol not in names.PROTOCOLS:
        _lost(algorithm, f"protocol {algorithm.protocol!r} (only {', '.join(names.PROTOCOLS)})")
    _check_two_sided(algorithm)
    if not algorithm.placements:
        _lost(algorithm, "an algorithm that is for no placement")
    for word, text in (("algorithm", algorithm.name), ("collective", algorithm.collective.name)):
        if _UNWRITABLE.search(text) or len(text) > DEFAULT_LIMITS.max_attribute_length // 2:
            _lost(algorithm, f"this name of the {word}")
    itself = (algorithm.tb_send == algorithm.tb_rank) | (algorithm.tb_recv == algorithm.tb_rank)
    if itself.any():
        _lost(algorithm, f"a connection of rank {int(algorithm.tb_rank[np.argmax(itself)])} with itself")


def _check_two_sided(algorithm: Algorithm) -> None:
    if not algorithm.one_sided:
        return
    step = algorithm.step(int(np.argmax(ONE_SIDED[algorithm.op])))
    at = {"rank": step.rank, "threadblock": step.threadblock, "step": step.index}
    place = ", ".join(f"{word} {number}" for word, number in at.items())
    _lost(algorithm, f"the one-sided step {str(step)[:60]!r} ({place})", **at)


def _header(algorithm: Algorithm, dialect: names.Dialect, low: int | None, high: int | None) -> str:
    inside, outside = (int(placement in algorithm.placements) for placement in (Placement.IN, Placement.OUT))
    attributes: dict[str, object] = {
        "name": algorithm.name,
        "proto": algorithm.protocol,
        "nchannels": algorithm.channels,
        "nchunksperloop": _chunks_per_loop(algorithm.collective, dialect),
        "ngpus": algorithm.ranks,
        "coll": _coll(algorithm.collective, dialect),
        "inplace": inside,
    }
    if dialect == "executor":
        attributes["outofplace"] = outside
    elif inside and outside:
        attributes["placements"] = names.BOTH_PLACEMENTS
    attributes |= _byte_bounds(algorithm, dialect, low, high)
    return " ".join(f"{key}={quoteattr(str(value), _ESCAPES)}" for key, value in attributes.items())


def _byte_bounds(algorithm: Algorithm, dialect: names.Dialect, low: int | None, high: int | None) -> dict[str, int]:
    if dialect == "msccl" and low is None and high is None:
        return {}
    low = names.DEFAULT_MIN_BYTES if low is None else low
    high = names.DEFAULT_MAX_BYTES[dialect] if high is None else high
    unbounded = dialect == "executor" and high == 0
    if not 0 <= low < 1 << 63 or not 0 <= high < 1 << 63 or (low > high and not unbounded):
        _lost(algorithm, f"the size bounds minBytes={low}, maxBytes={high}")
    return {"minBytes": low, "maxBytes": high}


def _coll(collective: Collective, dialect: names.Dialect) -> str:
    if collective.custom is None:
        return names.runtime_name(collective.name, dialect)
    return names.CUSTOM if collective.custom.specified else collective.name


def _chunks_per_loop(collective: Collective, dialect: names.Dialect) -> int:
    if collective.custom is None:
        return names.chunks_per_loop(collective.name, collective.ranks, collective.chunks, dialect)
    c, ranks = collective, range(collective.ranks)
    return max(1, *(max(c.input_chunks(rank), c.output_chunks(rank)) for rank in ranks))


def _sizes(algorithm: Algorithm, rank: int) -> str:
    return " ".join(f'{b.letter}_chunks="{algorithm.buffer_chunks(rank, b)}"' for b in Buffer)


def _step_lines(algorithm: Algorithm) -> list[list[str]]:
    """The lines of each step: its nops, then itself."""
    waits = np.diff(algorithm.dep_start)
    # A step's number in XML counts the nops before it, one for each dependence after its first.
    lines_before = np.concatenate(([0], np.cumsum(np.maximum(waits, 1))))
    place = lines_before[1:] - 1 - lines_before[algorithm.tb_start[algorithm.step_threadblock]]
    block = algorithm.step_threadblock - algorithm.rank_start[algorithm.step_rank]
    released = np.zeros(algorithm.step_count, dtype=bool)
    released[algorithm.dep] = True
    released |= separators(algorithm, released)
    dep_block, dep_place = block[algorithm.dep].tolist(), place[algorithm.dep].tolist()
    flags = released.astype(np.int64).tolist()
    rows = zip(place.tolist(), _operands(algorithm), algorithm.count.tolist(), flags, strict=True)
    bounds = algorithm.dep_start.tolist()
    return [
        list(_lines_of(row, list(zip(dep_block[first:end], dep_place[first:end], strict=True))))
        for row, first, end in zip(rows, bounds, bounds[1:], strict=False)
    ]


def _lines_of(row: tuple[int, str, int, int], depends: list[tuple[int, int]]) -> Iterator[str]:
    place, operands, count, released = row
    for before, (block, step) in zip(range(len(depends) - 1, 0, -1), depends, strict=False):
        yield "      " + _NOP.format(place - before, block, step)
    block, step = depends[-1] if depends else (NOTHING, NOTHING)
    yield f'      <step s="{place}" {operands} cnt="{count}" depid="{block}" deps="{step}" hasdep="{released}"/>'


def _operands(algorithm: Algorithm) -> Iterator[str]:
    """The attributes type to dstoff of each step."""
    source_buffer, source_index, destination_buffer, destination_index = _both_ends(algorithm)
    rows = zip(algorithm.op.tolist(), source_buffer.tolist(), source_index.tolist(),
               destination_buffer.tolist(), destination_index.tolist(), strict=True)  # fmt: skip
    kinds = [op.short for op in Op]
    for op, source, source_at, destination, destination_at in rows:
        yield (
            f'type="{kinds[op]}" srcbuf="{"ios"[source]}" srcoff="{source_at}" '
            f'dstbuf="{"ios"[destination]}" dstoff="{destination_at}"'
        )


def _both_ends(algorithm: Algorithm) -> tuple[Ints, Ints, Ints, Ints]:
    """Both operands of every step, those of the other side taken from there, or from its own other operand."""
    a = algorithm
    source_buffer, source_index = a.source_buffer.copy(), a.source_index.copy()
    destination_buffer, destination_index = a.destination_buffer.copy(), a.destination_index.copy()
    for has, buffer, index, other_buffer, other_index in (
        (HAS_SOURCE, source_buffer, source_index, a.destination_buffer, a.destination_index),
        (HAS_DESTINATION, destination_buffer, destination_index, a.source_buffer, a.source_index),
    ):
        lacking = ~has[a.op]
        buffer[lacking], index[lacking] = other_buffer[lacking], other_index[lacking]
    senders, receivers = links(a).messages()
    for ours, theirs, buffer, index, kind in (
        (senders, receivers, destination_buffer, destination_index, Op.SEND),
        (receivers, senders, source_buffer, source_index, None),
    ):
        plain = (a.op[ours] == kind) if kind is not None else ~HAS_SOURCE[a.op[ours]]
        ours, theirs = ours[plain], theirs[plain]
        first = HAS_DESTINATION[a.op[theirs]] if kind is not None else ~HAS_SOURCE[a.op[theirs]]
        buffer[ours] = np.where(first, a.destination_buffer[theirs], a.source_buffer[theirs])
        index[ours] = np.where(first, a.destination_index[theirs], a.source_index[theirs])
    return source_buffer, source_index, destination_buffer, destination_index
