"""Trace: what a program does, one chunk operation after the other, before anything is optimised.

Executing the operations in order, each at once, is the definition of the program. Hand-written programs (the DSL)
and synthesized schedules meet here; everything after it exists once.

Held as columns, one row per operation (frozen):

    copy    dst = src                  from (src_rank, src) to (dst_rank, dst)
    reduce  dst = operand + src        operand is on dst_rank; it is dst itself for a plain reduce; a local
                                       reduce (src_rank == dst_rank) has always operand == dst

Spans are ``count`` neighbouring chunks. ``channel``, ``send_tb``, ``recv_tb`` are the user's hints or NOTHING;
``ways`` is the number of parallel parts that the user's ``parallelize`` cuts the operation into. The compiler's
instances pass makes those parts operations of their own: then ``ways`` is 1 and ``lane`` (of ``lanes``) is the part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import IntEnum

import numpy as np

from commlib.collectives import Buffer, Collective, Placement
from commlib.ir.algorithm import Ints, Span
from commlib.ir.contents import EMPTY, ContentTable


class Action(IntEnum):
    """What an operation of a trace does."""

    COPY = 0
    REDUCE = 1


COLUMNS = (
    "action",
    "src_rank",
    "src_buffer",
    "src_index",
    "dst_rank",
    "dst_buffer",
    "dst_index",
    "operand_buffer",
    "operand_index",
    "count",
    "channel",
    "send_tb",
    "recv_tb",
    "ways",
    "lane",
    "file",
    "line",
)


@dataclass(frozen=True)
class Operation:
    """One row of a trace, as a record."""

    number: int
    action: Action
    src_rank: int
    source: Span
    dst_rank: int
    destination: Span
    operand: Span
    ways: int

    @property
    def local(self) -> bool:
        """Whether it stays on one rank."""
        return self.src_rank == self.dst_rank

    def __str__(self) -> str:
        target = f"{self.dst_rank}.{self.destination}"
        if self.action is Action.COPY:
            return f"{target} = {self.src_rank}.{self.source}"
        return f"{target} = {self.dst_rank}.{self.operand} + {self.src_rank}.{self.source}"


@dataclass(frozen=True, eq=False)
class Trace:
    """A program's operations; see the module's text. ``rows`` has shape (operations, len(COLUMNS)), int64."""

    name: str
    collective: Collective
    scratch_chunks: tuple[int, ...]
    rows: Ints = field(repr=False)
    files: tuple[str, ...] = ()
    placements: frozenset[Placement] = frozenset(Placement)
    protocol: str = "Simple"
    instances: int = 1
    blocked: bool = False
    lanes: int = 1

    def __post_init__(self) -> None:
        rows = np.array(self.rows, dtype=np.int64).reshape(-1, len(COLUMNS))
        rows.flags.writeable = False
        object.__setattr__(self, "rows", rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        plain = [f.name for f in fields(self) if f.name != "rows"]
        return all(getattr(self, n) == getattr(other, n) for n in plain) and np.array_equal(self.rows, other.rows)

    def __hash__(self) -> int:
        return hash((self.name, self.collective, len(self)))

    def column(self, name: str) -> Ints:
        """One column, by its name in ``COLUMNS``."""
        return self.rows[:, COLUMNS.index(name)]

    def operation(self, number: int) -> Operation:
        """The record of one row."""
        row = dict(zip(COLUMNS, self.rows[number].tolist(), strict=True))
        count = row["count"]
        return Operation(
            number,
            Action(row["action"]),
            row["src_rank"],
            Span(Buffer(row["src_buffer"]), row["src_index"], count),
            row["dst_rank"],
            Span(Buffer(row["dst_buffer"]), row["dst_index"], count),
            Span(Buffer(row["operand_buffer"]), row["operand_index"], count),
            row["ways"],
        )

    def operations(self) -> Iterator[Operation]:
        """All operations, in order."""
        return (self.operation(number) for number in range(len(self)))

    def buffer_chunks(self, rank: int, buffer: Buffer) -> int:
        """The size of a buffer in chunks, before instances."""
        return self.collective.buffer_chunks(rank, buffer, self.scratch_chunks)


@dataclass(frozen=True)
class AddressMap:
    """Where a buffer begins in a rank's address space: chunk k of buffer b lies at ``base[rank][b] + k``.

    In place, input and output share addresses; ``span`` is the size of the space.
    """

    base: tuple[tuple[int, int, int], ...]
    span: tuple[int, ...]


def address_map(collective: Collective, scratch: tuple[int, ...], placement: Placement) -> AddressMap:
    """The address space of each rank in a placement; scratch comes last.

    Raises:
        SpecError: the collective has no in-place form.
    """
    bases, spans = [], []
    for rank in range(collective.ranks):
        inputs, outputs = collective.input_chunks(rank), collective.output_chunks(rank)
        first, second = (0, inputs) if placement is Placement.OUT else collective.in_place_offsets(rank)
        end = max(first + inputs, second + outputs)
        bases.append((first, second, end))
        spans.append(end + scratch[rank])
    return AddressMap(tuple(bases), tuple(spans))


def run_trace(trace: Trace, placement: Placement) -> tuple[ContentTable, list[list[int]]]:
    """Execute a trace as it is defined, on contents: the slow and obvious meaning of a program.

    Instances and ``parallelize`` do not change what a program means and are left aside. Returns the table and, per
    rank, the content id of each address of ``address_map``. Reading an empty slot gives an empty content.
    Complexity: linear in the chunks moved.
    """
    table, spaces = ContentTable(), address_map(trace.collective, trace.scratch_chunks, placement)
    memory = [[EMPTY] * span for span in spaces.span]
    for rank in range(trace.collective.ranks):
        first = spaces.base[rank][Buffer.INPUT]
        for index in range(trace.collective.input_chunks(rank)):
            memory[rank][first + index] = table.initial(rank, index)

    def load(rank: int, span: Span) -> list[int]:
        start = spaces.base[rank][span.buffer] + span.index
        return memory[rank][start : start + span.count]

    for op in trace.operations():
        values = load(op.src_rank, op.source)
        if op.action is Action.REDUCE:
            held = load(op.dst_rank, op.operand)
            values = [EMPTY if EMPTY in (a, b) else table.add(a, b) for a, b in zip(held, values, strict=True)]
        start = spaces.base[op.dst_rank][op.destination.buffer] + op.destination.index
        memory[op.dst_rank][start : start + op.destination.count] = values
    return table, memory
