"""Algorithm: MSCCL-IR. Ranks run threadblocks; a threadblock is a list of steps and owns at most one send and one
receive connection on one channel. The only thing that verifier, simulator and runtimes read.

Held as columns (one row per threadblock, one row per step; frozen), read through the record views ``Threadblock``
and ``Step``. Steps are numbered globally, in (rank, threadblock, step) order; dependences name them by that number.

What a step does is told in ``commlib.ir.ops``. A two-sided step has a local source or destination in its columns and
talks over its threadblock's connections; a one-sided step has rows of operands instead, which may be of any rank.

A step of count k moves k neighbouring chunks as one message. A connection is (sender, receiver, channel): the k-th
message sent on it is the k-th received. Signals and waits meet likewise: the k-th wait of a rank on (peer, itself,
channel) is for the peer's k-th signal. A step starts after the one before it in its threadblock and after every
step it depends on (of the same rank) has finished. On a large launch the whole program repeats for each tile of a
chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from commlib.collectives import Buffer, Collective, Placement
from commlib.ir.checks import check
from commlib.ir.ops import HAS_DESTINATION as HAS_DESTINATION
from commlib.ir.ops import HAS_SOURCE as HAS_SOURCE
from commlib.ir.ops import NOTHING as NOTHING
from commlib.ir.ops import ONE_SIDED as ONE_SIDED
from commlib.ir.ops import OP_OF_SHORT as OP_OF_SHORT
from commlib.ir.ops import RECEIVES as RECEIVES
from commlib.ir.ops import REDUCES as REDUCES
from commlib.ir.ops import SENDS as SENDS
from commlib.ir.ops import SYNCHRONIZES as SYNCHRONIZES
from commlib.ir.ops import Ints as Ints
from commlib.ir.ops import Op as Op
from commlib.ir.records import RemoteSpan as RemoteSpan
from commlib.ir.records import Span as Span
from commlib.ir.records import Step as Step
from commlib.ir.records import Threadblock as Threadblock


@dataclass(frozen=True, eq=False)
class Origins:
    """Where steps came from, for messages only: step s came from ``files[file[s]]`` line ``line[s]``."""

    files: tuple[str, ...]
    file: Ints
    line: Ints


def _no_rows() -> Ints:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Algorithm:
    """A compiled collective algorithm; see the module's text for what its steps mean.

    Columns ``tb_*`` have one row per threadblock, ordered by rank; ``tb_start`` has one row more and delimits their
    steps. Columns ``op`` ... ``count`` have one row per step. The dependences of step s are
    ``dep[dep_start[s]:dep_start[s + 1]]``; the operands of a one-sided step are the rows of ``operand_*`` from
    ``operand_start[s]`` to ``operand_start[s + 1]``: sources first, in the order in which they are combined, then
    destinations (``operand_writes`` 1). A signal, wait or flush has one row with the peer's rank and no slot. Left
    out, there are no operands. ``placements`` are those it was written for; what holds is what
    ``verify`` proves. Two Algorithms are equal when all but their origins are.

    Raises:
        AlgorithmError: the columns do not fit together.
    """

    name: str
    collective: Collective
    scratch_chunks: tuple[int, ...]
    tb_rank: Ints
    tb_send: Ints
    tb_recv: Ints
    tb_channel: Ints
    tb_start: Ints
    op: Ints
    source_buffer: Ints
    source_index: Ints
    destination_buffer: Ints
    destination_index: Ints
    count: Ints
    dep_start: Ints
    dep: Ints
    placements: frozenset[Placement] = frozenset(Placement)
    protocol: str = "Simple"
    origins: Origins | None = field(default=None, repr=False)
    operand_start: Ints = field(default_factory=_no_rows)
    operand_rank: Ints = field(default_factory=_no_rows)
    operand_buffer: Ints = field(default_factory=_no_rows)
    operand_index: Ints = field(default_factory=_no_rows)
    operand_writes: Ints = field(default_factory=_no_rows)

    def __post_init__(self) -> None:
        if not len(self.operand_rank) and not np.any(self.operand_start):
            # Also where ``replace`` changed the number of steps of an algorithm without operands.
            object.__setattr__(self, "operand_start", np.zeros(len(self.op) + 1, dtype=np.int64))
        for name in TB_COLUMNS + STEP_COLUMNS:
            column = np.ascontiguousarray(getattr(self, name), dtype=np.int64)
            column.flags.writeable = False
            object.__setattr__(self, name, column)
        check(self)

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.collective.ranks

    @property
    def channels(self) -> int:
        """The number of channels: one more than the highest in use, at least one."""
        return int(self.tb_channel.max(initial=0)) + 1

    @property
    def step_count(self) -> int:
        """The number of steps of all ranks."""
        return len(self.op)

    @cached_property
    def rank_start(self) -> Ints:
        """Row r is the first threadblock row of rank r; one row more than there are ranks."""
        return np.searchsorted(self.tb_rank, np.arange(self.ranks + 1)).astype(np.int64)

    @cached_property
    def step_threadblock(self) -> Ints:
        """The threadblock row of each step."""
        return np.repeat(np.arange(len(self.tb_rank), dtype=np.int64), np.diff(self.tb_start))

    @cached_property
    def step_rank(self) -> Ints:
        """The rank of each step."""
        return self.tb_rank[self.step_threadblock]

    @cached_property
    def operand_step(self) -> Ints:
        """The step of each operand row."""
        return np.repeat(np.arange(self.step_count, dtype=np.int64), np.diff(self.operand_start))

    @cached_property
    def one_sided(self) -> bool:
        """Whether any step is one-sided."""
        return bool(ONE_SIDED[self.op].any())

    @cached_property
    def touches_peers_tensors(self) -> tuple[bool, bool]:
        """(reads, writes): whether any step reads, and writes, another rank's input or output itself."""
        tensor = (self.operand_buffer == Buffer.INPUT) | (self.operand_buffer == Buffer.OUTPUT)
        theirs = tensor & (self.operand_rank != self.step_rank[self.operand_step])
        writes = self.operand_writes != 0
        return bool(np.any(theirs & ~writes)), bool(np.any(theirs & writes))

    def buffer_chunks(self, rank: int, buffer: Buffer) -> int:
        """The size of a buffer in chunks."""
        return self.collective.buffer_chunks(rank, buffer, self.scratch_chunks)

    def threadblock(self, row: int) -> Threadblock:
        """The record of a threadblock row."""
        rank = int(self.tb_rank[row])
        return Threadblock(
            rank,
            row - int(self.rank_start[rank]),
            _optional(self.tb_send[row]),
            _optional(self.tb_recv[row]),
            int(self.tb_channel[row]),
            range(int(self.tb_start[row]), int(self.tb_start[row + 1])),
        )

    def threadblocks(self, rank: int) -> Iterator[Threadblock]:
        """The threadblocks of a rank, in order."""
        return (self.threadblock(row) for row in range(int(self.rank_start[rank]), int(self.rank_start[rank + 1])))

    def step(self, number: int) -> Step:
        """The record of a step."""
        row = int(self.step_threadblock[number])
        rank = int(self.tb_rank[row])
        op, count = Op(int(self.op[number])), int(self.count[number])
        deps = self.dep[int(self.dep_start[number]) : int(self.dep_start[number + 1])]
        source = _span(self.source_buffer[number], self.source_index[number], count)
        destination = _span(self.destination_buffer[number], self.destination_index[number], count)
        sources, destinations, peer = self._operands(number, rank, source, destination)
        return Step(
            number,
            rank,
            row - int(self.rank_start[rank]),
            number - int(self.tb_start[row]),
            op,
            source,
            destination,
            count,
            tuple(self.place(int(dep))[1:] for dep in deps),
            sources,
            destinations,
            peer,
        )

    def _operands(
        self, number: int, rank: int, source: Span | None, destination: Span | None
    ) -> tuple[tuple[RemoteSpan, ...], tuple[RemoteSpan, ...], int | None]:
        """Sources, destinations and peer of a step, as in its record."""
        op, first, end = int(self.op[number]), int(self.operand_start[number]), int(self.operand_start[number + 1])
        if not ONE_SIDED[op]:
            return _remote(rank, source), _remote(rank, destination), None
        ranks = self.operand_rank[first:end].tolist()
        if SYNCHRONIZES[op]:
            return (), (), int(ranks[0])
        buffers, indices = self.operand_buffer[first:end].tolist(), self.operand_index[first:end].tolist()
        count, writes = int(self.count[number]), int(self.operand_writes[first:end].sum())
        rows = zip(ranks, buffers, indices, strict=True)
        spans = tuple(RemoteSpan(owner, Span(Buffer(buffer), index, count)) for owner, buffer, index in rows)
        peer = int(ranks[1]) if op == Op.PUT else int(ranks[0]) if op == Op.GET else None
        return spans[: len(spans) - writes], spans[len(spans) - writes :], peer

    def place(self, number: int) -> tuple[int, int, int]:
        """(rank, threadblock, step index) of a step number."""
        row = int(self.step_threadblock[number])
        rank = int(self.tb_rank[row])
        return rank, row - int(self.rank_start[rank]), number - int(self.tb_start[row])

    def steps(self) -> Iterator[Step]:
        """All steps, in (rank, threadblock, step) order."""
        return (self.step(number) for number in range(self.step_count))

    def origin(self, number: int) -> tuple[str, int] | None:
        """(file, line) that the step came from, where known."""
        if self.origins is None or self.origins.line[number] <= 0:
            return None
        return self.origins.files[int(self.origins.file[number])], int(self.origins.line[number])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Algorithm):
            return NotImplemented
        plain = ("name", "collective", "scratch_chunks", "placements", "protocol")
        return all(getattr(self, name) == getattr(other, name) for name in plain) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in TB_COLUMNS + STEP_COLUMNS
        )

    def __hash__(self) -> int:
        return hash((self.name, self.collective, self.step_count))


TB_COLUMNS = ("tb_rank", "tb_send", "tb_recv", "tb_channel", "tb_start")
STEP_COLUMNS = (
    *("op", "source_buffer", "source_index", "destination_buffer", "destination_index", "count", "dep_start", "dep"),
    *("operand_start", "operand_rank", "operand_buffer", "operand_index", "operand_writes"),
)
"""The names of all columns, in order: two algorithms differ in none of them, or differ."""


def _optional(value: np.int64) -> int | None:
    return None if value == NOTHING else int(value)


def _span(buffer: np.int64, index: np.int64, count: int) -> Span | None:
    return None if buffer == NOTHING else Span(Buffer(int(buffer)), int(index), count)


def _remote(rank: int, span: Span | None) -> tuple[RemoteSpan, ...]:
    return () if span is None else (RemoteSpan(rank, span),)
