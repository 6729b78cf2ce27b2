"""Algorithm: MSCCL-IR. Ranks run threadblocks; a threadblock is a list of steps and owns at most one send and one
receive connection on one channel. The only thing that verifier, simulator and runtimes read.

Held as columns (one row per threadblock, one row per step; frozen), read through the record views ``Threadblock``
and ``Step``. Steps are numbered globally, in (rank, threadblock, step) order; dependences name them by that number.

What a step does (``src`` is local, the *message* is what arrives on the receive connection):

    op     reads        writes   sends            meaning
    s      src          -        src              send
    r      message      dst      -                receive
    rcs    message      dst      message          receive, copy, send
    rrc    message,src  dst      -                dst = src + message
    rrs    message,src  -        src + message    as rrc, but passed on and not kept
    rrcs   message,src  dst      src + message    as rrc, and passed on
    cpy    src          dst      -                dst = src
    re     src,dst      dst      -                dst = dst + src
    nop    -            -        -                waits for its dependences only

A step of count k moves k neighbouring chunks as one message. A connection is (sender, receiver, channel): the k-th
message sent on it is the k-th received. A step starts after the one before it in its threadblock and after every
step it depends on (of the same rank) has finished. On a large launch the whole program repeats for each tile of a
chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from commlib.collectives import Buffer, Collective, Placement
from commlib.errors import AlgorithmError

Ints = npt.NDArray[np.int64]
NOTHING = -1
"""In a column: no peer, no slot. The record views say None."""


class Op(IntEnum):
    """The operation of a step; the module's text has their meaning."""

    SEND = 0
    RECV = 1
    RECV_COPY_SEND = 2
    RECV_REDUCE_COPY = 3
    RECV_REDUCE_SEND = 4
    RECV_REDUCE_COPY_SEND = 5
    COPY = 6
    REDUCE = 7
    NOP = 8

    @property
    def short(self) -> str:
        """The operation's name in MSCCL XML."""
        return _SHORT[self]

    @property
    def receives(self) -> bool:
        """Whether the step takes a message from its receive connection."""
        return bool(RECEIVES[self])

    @property
    def sends(self) -> bool:
        """Whether the step puts a message on its send connection."""
        return bool(SENDS[self])

    @property
    def has_source(self) -> bool:
        """Whether the step reads its local source slots."""
        return bool(HAS_SOURCE[self])

    @property
    def has_destination(self) -> bool:
        """Whether the step writes its destination slots."""
        return bool(HAS_DESTINATION[self])

    @property
    def reduces(self) -> bool:
        """Whether the step combines two operands."""
        return bool(REDUCES[self])


_SHORT = ("s", "r", "rcs", "rrc", "rrs", "rrcs", "cpy", "re", "nop")
OP_OF_SHORT: dict[str, Op] = {short: Op(code) for code, short in enumerate(_SHORT)}
#                            s  r  rcs rrc rrs rrcs cpy re nop
RECEIVES = np.array([0, 1, 1, 1, 1, 1, 0, 0, 0], dtype=bool)
SENDS = np.array([1, 0, 1, 0, 1, 1, 0, 0, 0], dtype=bool)
HAS_SOURCE = np.array([1, 0, 0, 1, 1, 1, 1, 1, 0], dtype=bool)
HAS_DESTINATION = np.array([0, 1, 1, 1, 0, 1, 1, 1, 0], dtype=bool)
REDUCES = np.array([0, 0, 0, 1, 1, 1, 0, 1, 0], dtype=bool)


@dataclass(frozen=True)
class Span:
    """``count`` neighbouring chunks of one buffer of one rank."""

    buffer: Buffer
    index: int
    count: int

    def __str__(self) -> str:
        end = "" if self.count == 1 else f":{self.index + self.count}"
        return f"{self.buffer.letter}[{self.index}{end}]"


@dataclass(frozen=True)
class Step:
    """One step, as a record. ``number`` is global; ``index`` is its place in its threadblock."""

    number: int
    rank: int
    threadblock: int
    index: int
    op: Op
    source: Span | None
    destination: Span | None
    count: int
    depends: tuple[tuple[int, int], ...]
    """The steps it waits for, as (threadblock, step index) of the same rank."""

    def __str__(self) -> str:
        source = "" if self.source is None else f" {self.source}"
        destination = "" if self.destination is None else f" -> {self.destination}"
        waits = ", ".join(f"{tb}.{step}" for tb, step in self.depends)
        return f"{self.op.short}{source}{destination}{' after ' + waits if waits else ''}"


@dataclass(frozen=True)
class Threadblock:
    """One threadblock, as a record."""

    rank: int
    index: int
    send: int | None
    recv: int | None
    channel: int
    steps: range
    """The global numbers of its steps."""


@dataclass(frozen=True, eq=False)
class Origins:
    """Where steps came from, for messages only: step s came from ``files[file[s]]`` line ``line[s]``."""

    files: tuple[str, ...]
    file: Ints
    line: Ints


@dataclass(frozen=True, eq=False)
class Algorithm:
    """A compiled collective algorithm; see the module's text for what its steps mean.

    Columns ``tb_*`` have one row per threadblock, ordered by rank; ``tb_start`` has one row more and delimits their
    steps. Columns ``op`` ... ``count`` have one row per step. The dependences of step s are
    ``dep[dep_start[s]:dep_start[s + 1]]``. ``placements`` are those it was written for; what holds is what
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

    def __post_init__(self) -> None:
        for name in _TB_COLUMNS + _STEP_COLUMNS:
            column = np.ascontiguousarray(getattr(self, name), dtype=np.int64)
            column.flags.writeable = False
            object.__setattr__(self, name, column)
        _check(self)

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
        return Step(
            number,
            rank,
            row - int(self.rank_start[rank]),
            number - int(self.tb_start[row]),
            op,
            _span(self.source_buffer[number], self.source_index[number], count),
            _span(self.destination_buffer[number], self.destination_index[number], count),
            count,
            tuple(self.place(int(dep))[1:] for dep in deps),
        )

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
            np.array_equal(getattr(self, name), getattr(other, name)) for name in _TB_COLUMNS + _STEP_COLUMNS
        )

    def __hash__(self) -> int:
        return hash((self.name, self.collective, self.step_count))


_TB_COLUMNS = ("tb_rank", "tb_send", "tb_recv", "tb_channel", "tb_start")
_STEP_COLUMNS = (
    "op",
    "source_buffer",
    "source_index",
    "destination_buffer",
    "destination_index",
    "count",
    "dep_start",
    "dep",
)


def _optional(value: np.int64) -> int | None:
    return None if value == NOTHING else int(value)


def _span(buffer: np.int64, index: np.int64, count: int) -> Span | None:
    return None if buffer == NOTHING else Span(Buffer(int(buffer)), int(index), count)


def _check(a: Algorithm) -> None:
    """Refuse columns that do not fit together; what an algorithm *does* is the verifier's business."""
    steps, blocks = len(a.op), len(a.tb_rank)
    if len(a.scratch_chunks) != a.ranks:
        raise AlgorithmError(f"{a.name}: scratch sizes for {len(a.scratch_chunks)} ranks, not {a.ranks}")
    for name in _TB_COLUMNS:
        if len(getattr(a, name)) != blocks + (name == "tb_start"):
            raise AlgorithmError(f"{a.name}: column {name} has {len(getattr(a, name))} rows for {blocks} threadblocks")
    for name in _STEP_COLUMNS[:-1]:
        if len(getattr(a, name)) != steps + (name == "dep_start"):
            raise AlgorithmError(f"{a.name}: column {name} has {len(getattr(a, name))} rows for {steps} steps")
    _check_threadblocks(a, steps)
    _check_steps(a)


def _check_threadblocks(a: Algorithm, steps: int) -> None:
    for column, low, high in ((a.tb_rank, 0, a.ranks), (a.tb_send, NOTHING, a.ranks), (a.tb_recv, NOTHING, a.ranks)):
        if np.any(column < low) or np.any(column >= high):
            raise AlgorithmError(f"{a.name}: a threadblock names a rank outside 0..{a.ranks - 1}")
    if np.any(np.diff(a.tb_rank) < 0):
        raise AlgorithmError(f"{a.name}: threadblocks are not ordered by rank")
    if np.any(a.tb_channel < 0):
        raise AlgorithmError(f"{a.name}: a threadblock has a negative channel")
    if a.tb_start[0] != 0 or a.tb_start[-1] != steps or np.any(np.diff(a.tb_start) < 0):
        raise AlgorithmError(f"{a.name}: threadblocks do not delimit the {steps} steps")


def _check_steps(a: Algorithm) -> None:
    if np.any(a.op < 0) or np.any(a.op >= len(Op)):
        raise AlgorithmError(f"{a.name}: a step has an unknown operation")
    _check_operands(a)
    block = a.step_threadblock
    for has, column, word in ((SENDS, a.tb_send, "sends"), (RECEIVES, a.tb_recv, "receives")):
        _refuse(a, has[a.op] & (column[block] == NOTHING), f"{word}, but its threadblock has no such peer")
    _check_dependences(a)


def _check_operands(a: Algorithm) -> None:
    nop = a.op == Op.NOP
    _refuse(a, np.where(nop, a.count != 0, a.count < 1), "has a count that its operation cannot have")
    operands = (
        (HAS_SOURCE[a.op], a.source_buffer, a.source_index, "source"),
        (HAS_DESTINATION[a.op], a.destination_buffer, a.destination_index, "destination"),
    )
    for has, buffer, index, word in operands:
        _refuse(a, (buffer < NOTHING) | (buffer >= len(Buffer)), f"has an unknown {word} buffer")
        _refuse(a, has != (buffer != NOTHING), f"must have a {word} exactly when its operation uses one")
        _refuse(a, np.where(has, index < 0, index != NOTHING), f"has a {word} index that cannot be")
        _refuse(a, has & (index + a.count > _buffer_limits(a, buffer)), f"has a {word} outside its buffer")


def _buffer_limits(a: Algorithm, buffer: Ints) -> Ints:
    limits = np.array([[a.buffer_chunks(r, b) for b in Buffer] for r in range(a.ranks)], dtype=np.int64)
    return limits[a.step_rank, buffer]


def _check_dependences(a: Algorithm) -> None:
    if a.dep_start[0] != 0 or a.dep_start[-1] != len(a.dep) or np.any(np.diff(a.dep_start) < 0):
        raise AlgorithmError(f"{a.name}: dep_start does not delimit the dependences")
    if np.any(a.dep < 0) or np.any(a.dep >= a.step_count):
        raise AlgorithmError(f"{a.name}: a dependence names a step that does not exist")
    owner = np.repeat(np.arange(a.step_count, dtype=np.int64), np.diff(a.dep_start))
    foreign = np.zeros(a.step_count, dtype=bool)
    foreign[owner[a.step_rank[owner] != a.step_rank[a.dep]]] = True
    _refuse(a, foreign, "depends on a step of another rank")


def _refuse(a: Algorithm, wrong: npt.NDArray[np.bool_], message: str) -> None:
    if wrong.any():
        number = int(np.argmax(wrong))
        rank, threadblock, index = a.place(number)
        raise AlgorithmError(
            f"{a.name}: rank {rank} threadblock {threadblock} step {index} {message}",
            rank=rank,
            threadblock=threadblock,
            step=index,
        )
