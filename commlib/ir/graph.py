"""InstructionGraph: the instructions of all ranks, between Trace and Algorithm.

One row per instruction, ordered by ``time``, its place in the trace (operation t gives time 2t for its send and
2t + 1 for its receive or local part). Executing the rows in that order is the program. ``recv`` and ``send`` name
the message taken and given by the number of the trace operation that it carries out; operands are as in Algorithm.

The passes fill the columns from left to right: ``channel`` (NOTHING for local instructions), ``block`` (a threadblock
number, global), ``level`` (dependence depth). A column not yet filled holds NOTHING.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from commlib.collectives import Buffer, Placement
from commlib.errors import FormatError
from commlib.ir.algorithm import NOTHING, Ints, Op
from commlib.ir.ops import TWO_SIDED
from commlib.ir.trace import Trace, address_map

_INSTRUCTION_COLUMNS = (
    "time",
    "op",
    "rank",
    "source_buffer",
    "source_index",
    "destination_buffer",
    "destination_index",
    "count",
    "recv",
    "send",
    "channel",
    "block",
    "level",
)


@dataclass(frozen=True, eq=False)
class InstructionGraph:
    """The instructions of a trace; see the module's text. ``trace`` is the expanded one, with instances as lanes."""

    trace: Trace = field(repr=False)
    time: Ints
    op: Ints
    rank: Ints
    source_buffer: Ints
    source_index: Ints
    destination_buffer: Ints
    destination_index: Ints
    count: Ints
    recv: Ints
    send: Ints
    channel: Ints
    block: Ints
    level: Ints

    def __post_init__(self) -> None:
        for name in _INSTRUCTION_COLUMNS:
            column = np.ascontiguousarray(getattr(self, name), dtype=np.int64)
            column.flags.writeable = False
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.op)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InstructionGraph):
            return NotImplemented
        return self.trace == other.trace and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in _INSTRUCTION_COLUMNS
        )

    def __hash__(self) -> int:
        return hash((self.trace, len(self)))

    def with_columns(self, **columns: Ints) -> InstructionGraph:
        """The same graph with some columns replaced."""
        return replace(self, **columns)  # type: ignore[arg-type]

    def keep(self, rows: Ints) -> InstructionGraph:
        """The graph with these rows only, in this order."""
        return self.with_columns(**{name: getattr(self, name)[rows] for name in _INSTRUCTION_COLUMNS})

    @property
    def recv_peer(self) -> Ints:
        """The rank that each instruction receives from, or NOTHING."""
        return np.where(self.recv == NOTHING, NOTHING, self.trace.column("src_rank")[self.recv])

    @property
    def send_peer(self) -> Ints:
        """The rank that each instruction sends to, or NOTHING."""
        return np.where(self.send == NOTHING, NOTHING, self.trace.column("dst_rank")[self.send])

    @property
    def operation(self) -> Ints:
        """The trace operation that each instruction belongs to first (its receive or local part, else its send)."""
        return self.time // 2

    @property
    def fused(self) -> Ints:
        """The rows of the instructions that both receive and send."""
        return np.flatnonzero((self.recv != NOTHING) & (self.send != NOTHING))

    def message_ends(self) -> tuple[Ints, Ints]:
        """For each trace operation, the rows of its sender and receiver (NOTHING for local operations)."""
        sender = np.full(len(self.trace), NOTHING, dtype=np.int64)
        receiver = sender.copy()
        sends, receives = np.flatnonzero(self.send != NOTHING), np.flatnonzero(self.recv != NOTHING)
        sender[self.send[sends]] = sends
        receiver[self.recv[receives]] = receives
        return sender, receiver


@dataclass(frozen=True)
class Slots:
    """Global slot numbers: chunk k of buffer b of rank r is slot ``base[r, b] + k``; ``count`` slots in all.

    Where a program is meant for in place, input and output share slots, so that whatever must be ordered in place is
    ordered. ``observable[s]`` is whether the slot's final content is part of the result.
    """

    base: Ints
    count: int
    observable: np.ndarray[tuple[int], np.dtype[np.bool_]]


def slots(trace: Trace, placement: Placement | None = None) -> Slots:
    """The slot numbering of a trace in a placement; by default in place, if the program is meant for that."""
    if placement is None:
        placement = Placement.IN if Placement.IN in trace.placements else Placement.OUT
    space = address_map(trace.collective, trace.scratch_chunks, placement)
    span = np.array(space.span, dtype=np.int64)
    start = np.concatenate([[0], np.cumsum(span)])
    base = np.array(space.base, dtype=np.int64) + start[:-1, None]
    observable = np.zeros(int(start[-1]), dtype=bool)
    for rank in range(trace.collective.ranks):
        first = int(base[rank, Buffer.OUTPUT])
        observable[first : first + trace.collective.output_chunks(rank)] = True
    return Slots(base, int(start[-1]), observable)


def graph_to_text(graph: InstructionGraph) -> str:
    """One line per instruction: its operation's short name and ``column=value`` for each column that is filled."""
    lines = []
    for row in zip(*(getattr(graph, name).tolist() for name in _INSTRUCTION_COLUMNS), strict=True):
        values = dict(zip(_INSTRUCTION_COLUMNS, row, strict=True))
        op = Op(values.pop("op"))
        filled = " ".join(f"{name}={value}" for name, value in values.items() if value != NOTHING)
        lines.append(f"{op.short} {filled}")
    return "".join(line + "\n" for line in lines)


def graph_from_text(text: str, trace: Trace, file: str = "<text>") -> InstructionGraph:
    """The graph that ``graph_to_text`` printed, over the same trace.

    Raises:
        FormatError: a line that is not one instruction; it names file and line.
    """
    shorts = TWO_SIDED
    columns: dict[str, list[int]] = {name: [] for name in _INSTRUCTION_COLUMNS}
    for number, line in enumerate(text.splitlines(), start=1):
        op, *pairs = line.split(" ")
        values = dict.fromkeys(_INSTRUCTION_COLUMNS, NOTHING)
        try:
            values["op"] = shorts[op]
            for name, value in (pair.split("=") for pair in pairs):
                values[name] = int(value) if name in columns and name != "op" else int(name)
        except (KeyError, ValueError):
            raise FormatError(f"{file}:{number}: not an instruction: {line[:80]!r}", file=file, line=number) from None
        for name in _INSTRUCTION_COLUMNS:
            columns[name].append(values[name])
    return InstructionGraph(trace, **{name: np.array(column, dtype=np.int64) for name, column in columns.items()})
