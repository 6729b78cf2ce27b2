"""Reads MSCCL XML, of both dialects.

What a file means is what the runtimes do with it. In rr* steps the local operand is the source; the dst of ``s`` and
the src of ``r`` and ``rcs`` belong to the other side and are not read. nop steps carry the dependences that do not fit
into the one of the next step; they are folded into it. A step lets others go on only if it has hasdep="1"; who waits
for one that has not is let go by the first later step of that threadblock that has (the runtimes compare step
numbers), and never if there is none: that is an error here. Consecutive ``re`` steps that the runtimes run as one are
read as they stand where that is the same, and are an error where it is not (see ``fusion``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np

from commlib.collectives import Buffer, Collective, Placement
from commlib.errors import AlgorithmError
from commlib.files.disk import read_bounded
from commlib.formats.limits import DEFAULT_LIMITS, ReaderLimits, check_sizes
from commlib.formats.msccl_xml import names
from commlib.formats.msccl_xml.document import Block, Document, Gpu, parse
from commlib.formats.msccl_xml.fusion import alters, fused, miscounted, stranded_waits
from commlib.formats.msccl_xml.sizes import Sizes, placements, resolve
from commlib.formats.waits import without_nops
from commlib.ir.algorithm import NOTHING, RECEIVES, SENDS, Algorithm, Ints, Op, Origins

_DONE_BY_HAND = "a dependence on a nop waits for what the nop waits for; GPU runtimes release it at a later step"
_STRANDED = 'a nop waits and the step after it does not (depid="-1"): GPU runtimes refuse the file'
_MISCOUNTED = "a step is waited for behind a nop that waits for nothing: GPU runtimes release it at a later step"


def read_xml(
    path: str | os.PathLike[str],
    collective: Collective | str | None = None,
    root: int | None = None,
    limits: ReaderLimits = DEFAULT_LIMITS,
) -> Algorithm:
    """The Algorithm in an MSCCL XML file; its origins are the file's lines.

    ``root`` is needed for broadcast, reduce, gather and scatter. ``collective``, by name or whole, gives the
    conditions of a file whose coll is custom or unknown; without it the Algorithm's collective is one of that
    name that specifies only the buffer sizes. Reading executes nothing. Time and memory are linear in the file.

    Raises:
        FormatError: not MSCCL XML, contradicts itself or what the caller gives, or would hang; with file and line.
        LimitError: larger than the limits allow; found before anything of that size is allocated.
    """
    return read_xml_with_info(path, collective, root, limits)[0]


def read_xml_with_info(
    path: str | os.PathLike[str],
    collective: Collective | str | None = None,
    root: int | None = None,
    limits: ReaderLimits = DEFAULT_LIMITS,
) -> tuple[Algorithm, names.XmlInfo]:
    """As ``read_xml``, with what the file says beside the Algorithm."""
    name = os.fspath(path)
    return parse_xml(read_bounded(name, limits.max_bytes), name, collective, root, limits)


def parse_xml(
    content: bytes,
    file: str = "<xml>",
    collective: Collective | str | None = None,
    root: int | None = None,
    limits: ReaderLimits = DEFAULT_LIMITS,
) -> tuple[Algorithm, names.XmlInfo]:
    """As ``read_xml_with_info``, from the bytes of a file."""
    document = parse(content, file, limits)
    dialect: names.Dialect = "executor" if "outofplace" in document.header else "msccl"
    gpus = _ordered_gpus(document)
    columns = _Columns(document, gpus)
    chunks = document.chunks if document.chunks is not None else _derived_chunks(document)
    sizes = Sizes(document, dialect, gpus, chunks, columns.used(), limits)
    info = _info(document, dialect, chunks)
    which = resolve(sizes, collective, root)
    scratch = _scratch(sizes)
    check_sizes(which, scratch, len(columns.op), limits, file, document.line)
    algorithm = columns.algorithm(which, info, scratch)
    algorithm = without_nops(algorithm, limits.max_dependences)
    return algorithm, replace(info, notes=_notes(document))


def xml_info(path: str | os.PathLike[str], limits: ReaderLimits = DEFAULT_LIMITS) -> names.XmlInfo:
    """What the <algo> element of a file says, with the runtimes' defaults; needs no root and no conditions.

    Raises:
        FormatError, LimitError: as ``read_xml``, for what can be told without them.
    """
    name = os.fspath(path)
    document = parse(read_bounded(name, limits.max_bytes), name, limits)
    dialect: names.Dialect = "executor" if "outofplace" in document.header else "msccl"
    chunks = document.chunks if document.chunks is not None else _derived_chunks(document)
    return _info(document, dialect, chunks)


def _info(document: Document, dialect: names.Dialect, chunks: int) -> names.XmlInfo:
    header = document.header
    low, high = _bytes(document, dialect)
    where = placements(document, dialect)
    used = max((block.channel for block in document.blocks), default=0) + 1
    return names.XmlInfo(
        dialect,
        name=header.get("name", ""),
        coll=header.get("coll", names.CUSTOM),
        proto=_protocol(document),
        nchannels=document.number(header, "nchannels", document.line, 1, used),
        nchunksperloop=chunks,
        ngpus=len(document.gpus),
        min_bytes=low,
        max_bytes=high,
        in_place=Placement.IN in where,
        out_of_place=Placement.OUT in where,
        redop=header.get("redop"),
        notes=_notes(document),
    )


def _notes(document: Document) -> tuple[str, ...]:
    return tuple(note if count == 1 else f"{note} ({count} times)" for note, count in document.notes.items())


def _placements(info: names.XmlInfo) -> frozenset[Placement]:
    flags = ((Placement.IN, info.in_place), (Placement.OUT, info.out_of_place))
    return frozenset(placement for placement, on in flags if on)


def _ordered_gpus(document: Document) -> list[Gpu]:
    gpus = sorted(document.gpus, key=lambda gpu: gpu.id)
    if document.ranks is not None and document.ranks != len(gpus):
        document.fail(document.line, f"ngpus={document.ranks}, but there are {len(gpus)} <gpu> elements")
    if not gpus:
        document.fail(document.line, "there is no <gpu> element")
    for rank, gpu in enumerate(gpus):
        if gpu.id != rank:
            problem = f"gpu {gpu.id} is there twice" if gpu.id < rank else f"gpu {rank} is missing before gpu {gpu.id}"
            document.fail(gpu.line, problem, rank=gpu.id)
    return gpus


def _derived_chunks(document: Document) -> int:
    chunks = max(max(gpu.inputs, gpu.outputs) for gpu in document.gpus) if document.gpus else 0
    if chunks == 0:
        document.fail(document.line, "attribute nchunksperloop is missing", key="nchunksperloop")
    document.note(f"attribute nchunksperloop of <algo> is missing: taken as {chunks}, the largest buffer")
    return chunks


def _scratch(sizes: Sizes) -> tuple[int, ...]:
    used = sizes.used[Buffer.SCRATCH]
    return tuple(used[gpu.id] if gpu.scratch is None else gpu.scratch for gpu in sizes.gpus)


class _Columns:
    """The steps of a document as the columns of an Algorithm, in (rank, threadblock, step) order."""

    def __init__(self, document: Document, gpus: list[Gpu]) -> None:
        self.document, self.ranks = document, len(gpus)
        self.blocks, order = _ordered_blocks(document)
        steps = document.steps
        self.line = _column(steps.line, order)
        self.op = _column(steps.op, order)
        self.source_buffer = _column(steps.source_buffer, order)
        self.source_index = _column(steps.source_index, order)
        self.destination_buffer = _column(steps.destination_buffer, order)
        self.destination_index = _column(steps.destination_index, order)
        self.count = _column(steps.count, order)
        self.start = np.cumsum([0] + [block.steps for block in self.blocks], dtype=np.int64)
        self.block = np.repeat(np.arange(len(self.blocks), dtype=np.int64), np.diff(self.start))
        self.rank = np.array([block.gpu for block in self.blocks], dtype=np.int64)[self.block]
        self.released = _column(steps.released, order) != 0
        self.waiting, self.awaited = self._dependences(order)

    def used(self) -> list[list[int]]:
        """For each buffer and rank, the number of chunks that its steps reach."""
        found = np.zeros((len(Buffer), self.ranks), dtype=np.int64)
        for buffer, index in ((self.source_buffer, self.source_index),
                              (self.destination_buffer, self.destination_index)):  # fmt: skip
            there = buffer != NOTHING
            np.maximum.at(found, (buffer[there], self.rank[there]), (index + self.count)[there])
        return [[int(size) for size in row] for row in found]

    def algorithm(self, collective: Collective, info: names.XmlInfo, scratch: tuple[int, ...]) -> Algorithm:
        """The Algorithm that these columns are, nops and all."""
        document, blocks = self.document, self.blocks
        self._check_operands(collective, scratch)
        self._check_connections()
        counts = np.zeros(len(self.op), dtype=np.int64)
        counts[self.waiting] = 1
        columns = {name: [getattr(block, name) for block in blocks] for name in ("gpu", "send", "recv", "channel")}
        try:
            algorithm = Algorithm(
                info.name,
                collective,
                scratch,
                tb_rank=np.array(columns["gpu"], dtype=np.int64),
                tb_send=np.array(columns["send"], dtype=np.int64),
                tb_recv=np.array(columns["recv"], dtype=np.int64),
                tb_channel=np.array(columns["channel"], dtype=np.int64),
                tb_start=self.start,
                op=self.op,
                source_buffer=self.source_buffer,
                source_index=self.source_index,
                destination_buffer=self.destination_buffer,
                destination_index=self.destination_index,
                count=self.count,
                dep_start=np.concatenate(([0], np.cumsum(counts))),
                dep=self.awaited,
                placements=_placements(info),
                protocol=info.proto,
                origins=Origins((document.file,), np.zeros(len(self.op), dtype=np.int64), self.line),
            )
        except AlgorithmError as error:
            document.fail(document.line, error.message, **error.fields)
        self._check_fusion(algorithm)
        self._note_nops(algorithm)
        return algorithm

    def fail(self, step: int, message: str) -> NoReturn:
        """Raise the FormatError about a step."""
        block = self.blocks[int(self.block[step])]
        place = {"rank": block.gpu, "threadblock": block.id, "step": step - int(self.start[self.block[step]])}
        where = " ".join(f"{word} {number}" for word, number in place.items())
        self.document.fail(int(self.line[step]), f"{where} {message}", **place)

    def _check_operands(self, collective: Collective, scratch: Sequence[int]) -> None:
        ranks = range(self.ranks)
        limits = np.array(
            [[collective.input_chunks(r) for r in ranks], [collective.output_chunks(r) for r in ranks], scratch]
        )
        for word, buffer, index in (("reads", self.source_buffer, self.source_index),
                                    ("writes", self.destination_buffer, self.destination_index)):  # fmt: skip
            beyond = (buffer != NOTHING) & (index + self.count > limits[buffer, self.rank])
            if beyond.any():
                step = int(np.argmax(beyond))
                which, first = Buffer(int(buffer[step])), int(index[step])
                size = limits[which, self.rank[step]]
                span = f"{which.letter}[{first}:{first + int(self.count[step])}]"
                self.fail(step, f"{word} {span}, but {which.name.lower()} has {size} chunks there ({collective})")

    def _check_fusion(self, algorithm: Algorithm) -> None:
        earlier, later = fused(algorithm, self.released)
        changed = alters(algorithm, earlier, later)
        if changed.any():
            first, step = int(earlier[changed][0]), int(later[changed][0])
            self.fail(
                step,
                f"is run by GPU runtimes as one with the re at line {self.line[first]} (same dstbuf, dstoff, srcbuf),"
                f" which computes something else: their cnt differs, this one reads what that one wrote, or a nop"
                f' between them waits; give that one hasdep="1", and this one the dependence of such a nop',
            )

    def _note_nops(self, algorithm: Algorithm) -> None:
        for note, steps in ((_STRANDED, stranded_waits(algorithm)), (_MISCOUNTED, miscounted(algorithm))):
            if len(steps):
                self.document.note(f"{note} (first at line {self.line[steps[0]]})")

    def _check_connections(self) -> None:
        for has, key in ((SENDS, "send"), (RECEIVES, "recv")):
            peers = np.array([getattr(block, key) for block in self.blocks], dtype=np.int64)
            alone = has[self.op] & (peers[self.block] == NOTHING)
            if alone.any():
                step = int(np.argmax(alone))
                kind = Op(int(self.op[step])).short
                self.fail(step, f"has type {kind}, but its <tb> has no {key} peer")

    def _dependences(self, order: Ints | None) -> tuple[Ints, Ints]:
        """(steps that wait, the step that lets each go)."""
        steps = self.document.steps
        block, place = _column(steps.depends_block, order), _column(steps.depends_step, order)
        waiting = np.flatnonzero(block != NOTHING)
        first_block = np.searchsorted([b.gpu for b in self.blocks], np.arange(self.ranks + 1)).astype(np.int64)
        row = first_block[self.rank[waiting]] + block[waiting]
        wrong = row >= first_block[self.rank[waiting] + 1]
        row = np.where(wrong, 0, row)
        awaited = self.start[row] + place[waiting]
        wrong |= awaited >= self.start[row + 1]
        if wrong.any():
            step = int(waiting[np.argmax(wrong)])
            self.fail(step, f"depends on threadblock {block[step]} step {place[step]}, which does not exist")
        return waiting, self._releasing(waiting, awaited, row)

    def _releasing(self, waiting: Ints, awaited: Ints, row: Ints) -> Ints:
        """The step that lets a waiting step go: the first from the awaited one on that has hasdep="1"."""
        releasing = np.append(np.flatnonzero(self.released), len(self.released))
        released = releasing[np.searchsorted(releasing, awaited)]
        never = released >= self.start[row + 1]
        if never.any():
            which = int(np.argmax(never))
            block, place = self.blocks[int(row[which])].id, int(awaited[which] - self.start[row[which]])
            self.fail(
                int(waiting[which]),
                f"depends on threadblock {block} step {place}, but neither that step nor a later one of its "
                f'threadblock has hasdep="1": a runtime would hang',
            )
        for step in np.flatnonzero(released != awaited)[:1]:
            self.document.note(
                f'dependences on a step with hasdep="0" are released by the next step with hasdep="1" '
                f"(first at line {self.line[waiting[step]]})"
            )
        if np.any(self.op[released] == Op.NOP):
            self.document.note(_DONE_BY_HAND)
        return released


def _column(values: list[int], order: Ints | None) -> Ints:
    column = np.array(values, dtype=np.int64)
    return column if order is None else column[order]


def _ordered_blocks(document: Document) -> tuple[list[Block], Ints | None]:
    """The threadblocks by (rank, id), and the order that brings their steps there (None: they are there)."""
    blocks = sorted(document.blocks, key=lambda block: (block.gpu, block.id))
    channels = None
    if "nchannels" in document.header:
        channels = document.number(document.header, "nchannels", document.line, 1)
    expected, gpu = 0, NOTHING
    for block in blocks:
        expected, gpu = (expected + 1 if block.gpu == gpu else 0), block.gpu
        if block.id != expected:
            problem = f"tb {block.id} is there twice" if block.id < expected else f"tb {expected} is missing"
            document.fail(block.line, f"gpu {gpu}: {problem}", rank=gpu, threadblock=block.id)
        _check_block(document, block, channels)
    if blocks == document.blocks:
        return blocks, None
    return blocks, np.concatenate([np.arange(b.first, b.first + b.steps, dtype=np.int64) for b in blocks])


def _check_block(document: Document, block: Block, channels: int | None) -> None:
    where = {"rank": block.gpu, "threadblock": block.id}
    for word, peer in (("send", block.send), ("recv", block.recv)):
        if peer == block.gpu or peer >= len(document.gpus):
            message = f"gpu {block.gpu} tb {block.id}: {word}={peer} is not another of the {len(document.gpus)} gpus"
            document.fail(block.line, message, **where)
    if channels is not None and block.channel >= channels:
        message = f"gpu {block.gpu} tb {block.id}: chan={block.channel}, but nchannels={channels}"
        document.fail(block.line, message, **where)


def _protocol(document: Document) -> str:
    protocol = document.header.get("proto")
    if protocol is None:
        document.note("attribute proto of <algo> is missing: taken as Simple")
        return "Simple"
    if protocol not in names.PROTOCOLS:
        document.fail(document.line, f"proto={protocol[:40]!r} is not one of {', '.join(names.PROTOCOLS)}")
    return protocol


def _bytes(document: Document, dialect: names.Dialect) -> tuple[int, int]:
    header, line = document.header, document.line
    low = document.number(header, "minBytes", line, 0, names.DEFAULT_MIN_BYTES)
    high = document.number(header, "maxBytes", line, 0, names.DEFAULT_MAX_BYTES[dialect])
    if low > high and not (dialect == "executor" and high == 0):
        document.fail(line, f"minBytes={low} is greater than maxBytes={high}")
    return low, high
