"""The language: a Program hands out chunk references; copying and reducing them records a Trace.

    def ring(p: Program) -> None:
        n = p.ranks
        for i in range(n):
            c = p.chunk(i, "input", i)
            for hop in range(1, n):
                c = p.chunk((i + hop) % n, "input", i).reduce(c, into="output")
            for hop in range(n, 2 * n - 1):
                c = c.copy((i + hop) % n)

A program says for which placements it is meant. ``"both"`` (the default) is one program that is right in place and
out of place: the input is never written by its name, and a slot that the output overwrites in place is stale from
then on in both. ``"in"`` lets the program work in the shared buffer; ``"out"`` knows that the buffers are apart.

Every misuse raises at the line that commits it: the message names that line, the chunk and, for a stale reference,
the line that overwrote it.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from commlib.collectives import Buffer, Collective, Placement
from commlib.errors import CommlibError, ProgramError, SlotError, StaleReferenceError, UninitializedReadError
from commlib.ir.algorithm import NOTHING
from commlib.ir.trace import COLUMNS, Action, Trace, address_map
from commlib.topology import Topology

PlacementName = Literal["in", "out", "both"]
_PLACEMENTS: dict[str, frozenset[Placement]] = {
    "in": frozenset({Placement.IN}),
    "out": frozenset({Placement.OUT}),
    "both": frozenset(Placement),
}
_BUFFERS: dict[object, Buffer] = {
    "input": Buffer.INPUT,
    "output": Buffer.OUTPUT,
    Buffer.INPUT: Buffer.INPUT,
    Buffer.OUTPUT: Buffer.OUTPUT,
}


@dataclass(frozen=True, eq=False)
class Scratch:
    """A named scratch buffer of ``chunks`` chunks on every rank; a rank that never uses it gives it no memory."""

    name: str
    chunks: int


BufferLike = Literal["input", "output"] | Buffer | Scratch


class Chunk:
    """A reference to ``count`` neighbouring chunks of one buffer of one rank, as they were when it was made."""

    __slots__ = ("_program", "_stamp", "buffer", "count", "index", "rank")

    def __init__(self, program: Program, rank: int, buffer: Buffer, index: int, count: int, stamp: int) -> None:
        self._program = program
        self.rank = rank
        self.buffer = buffer
        self.index = index
        self.count = count
        self._stamp = stamp

    def copy(
        self,
        rank: int,
        buffer: BufferLike | None = None,
        index: int | None = None,
        *,
        channel: int | None = None,
        send_tb: int | None = None,
        recv_tb: int | None = None,
    ) -> Chunk:
        """Copy these chunks to ``index`` of ``buffer`` on ``rank`` (by default the same buffer and index).

        ``channel``, ``send_tb`` (on this rank) and ``recv_tb`` (on the other) are hints to the compiler, which
        keeps them or says why it cannot. Returns the reference to the copy.

        Raises:
            StaleReferenceError: a slot of this reference was overwritten since it was made.
            SlotError: no such rank, buffer or index.
            ProgramError: the topology lacks the link, or the input would be written out of place.
        """
        program = self._program
        to, at = program._target(self, rank, buffer, index)
        program._use(self)
        program._check_write(rank, to, at, self.count)
        hints = (
            NOTHING if channel is None else channel,
            NOTHING if send_tb is None else send_tb,
            NOTHING if recv_tb is None else recv_tb,
        )
        return program._copy(self, rank, to, at, hints)

    def reduce(
        self,
        other: Chunk,
        into: BufferLike | tuple[BufferLike, int] | None = None,
        *,
        channel: int | None = None,
        send_tb: int | None = None,
        recv_tb: int | None = None,
    ) -> Chunk:
        """Add ``other`` to these chunks: the result replaces them or, with ``into``, goes to another slot here.

        ``into`` is a buffer (same index) or (buffer, index) on this rank. ``other`` may be on any rank; the hints
        are as in ``copy``, with the sender being ``other``'s rank. Returns the reference to the result.

        Raises:
            StaleReferenceError, SlotError, ProgramError: as ``copy``; also when the sizes differ.
        """
        program = self._program
        if other.count != self.count:
            raise program._error(
                ProgramError, f"cannot reduce {other} into {self}: {other.count} chunks and {self.count}", chunk=self
            )
        name, at = into if isinstance(into, tuple) else (into, None)
        to, at = program._target(self, self.rank, name, at)
        program._use(self)
        program._use(other)
        program._check_write(self.rank, to, at, self.count)
        hints = (
            NOTHING if channel is None else channel,
            NOTHING if send_tb is None else send_tb,
            NOTHING if recv_tb is None else recv_tb,
        )
        return program._reduce(self, other, to, at, hints)

    def split(self, parts: int) -> list[Chunk]:
        """Cut the reference into ``parts`` references of equal size.

        Raises:
            ProgramError: the chunks cannot be divided so.
        """
        if parts < 1 or self.count % parts:
            raise self._program._error(ProgramError, f"cannot split {self} into {parts} equal parts", chunk=self)
        size = self.count // parts
        return [
            Chunk(self._program, self.rank, self.buffer, self.index + k * size, size, self._stamp) for k in range(parts)
        ]

    def group(self, other: Chunk) -> Chunk:
        """One reference to these chunks and ``other``'s, which must lie right before or after them.

        Raises:
            ProgramError: another rank or buffer, or a gap or overlap between the two.
        """
        first, second = (self, other) if self.index <= other.index else (other, self)
        if (first.rank, first.buffer) != (second.rank, second.buffer) or first.index + first.count != second.index:
            raise self._program._error(
                ProgramError, f"cannot group {self} with {other}: they are not neighbours", chunk=self
            )
        count, stamp = first.count + second.count, min(first._stamp, second._stamp)
        return Chunk(self._program, first.rank, first.buffer, first.index, count, stamp)

    def __str__(self) -> str:
        return self._program._name_of(self.rank, self.buffer, self.index, self.count)

    def __repr__(self) -> str:
        return f"Chunk({self})"


Hints = tuple[int, int, int]


class Program:
    """A program being written: it checks every operation and records it.

    ``placement`` is "in", "out" or "both"; ``topology`` (optional) limits who may send to whom; ``instances`` cuts
    every chunk into that many parts that run as independent copies of the program, interleaved (chunk k's part j is
    chunk k * instances + j) or, with ``blocked=True``, part j of a whole shard at a time.

    Raises:
        ProgramError: no such placement or count, or a topology with another number of ranks.
        SpecError: "in" for a custom collective that has no in-place form.
    """

    def __init__(
        self,
        collective: Collective,
        name: str = "program",
        *,
        placement: PlacementName = "both",
        topology: Topology | None = None,
        instances: int = 1,
        blocked: bool = False,
        protocol: str = "Simple",
    ) -> None:
        if placement not in _PLACEMENTS:
            raise ProgramError(f'placement is "in", "out" or "both", not {placement!r}')
        if topology is not None and topology.ranks != collective.ranks:
            raise ProgramError(
                f"topology {topology.name} has {topology.ranks} ranks, the collective {collective.ranks}"
            )
        if instances < 1:
            raise ProgramError(f"instances must be at least 1, not {instances}")
        if placement == "both" and not collective.can_be_in_place:
            placement = "out"
        self.collective = collective
        self.name = name
        self.topology = topology
        self._settings = (_PLACEMENTS[placement], protocol, instances, blocked)
        self._ways = 1
        self._rows = array("q")
        self._files: dict[str, int] = {}
        self._scratches: list[dict[Scratch, int]] = [{} for _ in range(collective.ranks)]
        self._names: dict[str, Scratch] = {}
        self._set_up_memory(placement)

    def _set_up_memory(self, placement: PlacementName) -> None:
        """Lay out what is checked while recording: per rank and address, the operation that wrote last.

        Stale references are looked for with input and output sharing addresses (unless the program is out of place
        only), uninitialised reads with them apart (unless it is in place only).
        """
        collective, none = self.collective, (0,) * self.collective.ranks
        shared = address_map(collective, none, Placement.OUT if placement == "out" else Placement.IN)
        apart = address_map(collective, none, Placement.IN if placement == "in" else Placement.OUT)
        self._address, self._cell = [list(base) for base in shared.base], [list(base) for base in apart.base]
        self._sizes = [[collective.input_chunks(r), collective.output_chunks(r), 0] for r in range(collective.ranks)]
        self._written = [[0] * span for span in shared.span]
        self._filled = [bytearray(span) for span in apart.span]
        for rank, cells in enumerate(self._filled):
            first, size = self._cell[rank][0], self._sizes[rank][0]
            cells[first : first + size] = b"\1" * size
        self._input_is_constant = placement != "in"
        self._operations = 0

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.collective.ranks

    @property
    def chunks(self) -> int:
        """The number of chunks per shard (the collective's ``chunks``)."""
        return self.collective.chunks

    def chunk(self, rank: int, buffer: BufferLike, index: int = 0, count: int = 1) -> Chunk:
        """A reference to ``count`` chunks from ``index`` of ``buffer`` on ``rank``, as they are now.

        Raises:
            SlotError: no such rank, buffer or index.
            UninitializedReadError: one of them was never written.
            StaleReferenceError: an input chunk that the output has overwritten in place.
        """
        to, at = self._slot(rank, buffer, index, count)
        cell = self._cell[rank][to] + at
        filled = self._filled[rank]
        if not filled[cell] or (count > 1 and not all(filled[cell : cell + count])):
            empty = next(k for k in range(count) if not filled[cell + k])
            name = self._name_of(rank, to, at + empty, 1)
            raise self._error(UninitializedReadError, f"{name} is read before anything was written to it", at=name)
        reference = Chunk(self, rank, to, at, count, self._operations)
        if to == 0 and self._input_is_constant:
            reference._stamp = 0
            self._use(reference)
            reference._stamp = self._operations
        return reference

    def scratch(self, name: str, chunks: int) -> Scratch:
        """A named scratch buffer of ``chunks`` chunks on each rank that uses it.

        Raises:
            ProgramError: the name is taken, or the size is not positive.
        """
        if name in self._names or name in ("input", "output"):
            raise self._error(ProgramError, f"a buffer called {name!r} exists already")
        if chunks < 1:
            raise self._error(ProgramError, f"scratch {name!r} needs at least one chunk, not {chunks}")
        self._names[name] = Scratch(name, chunks)
        return self._names[name]

    def parallelize(self, ways: int) -> AbstractContextManager[None]:
        """Cut every operation in this ``with`` block into ``ways`` parts, each on channels of its own.

        This is MSCCL's parallelize for a part of a program. Blocks nest by multiplying.

        Raises:
            ProgramError: ``ways`` is not positive.
        """
        if ways < 1:
            raise self._error(ProgramError, f"parallelize needs at least one way, not {ways}")
        return self._in_parallel(ways)

    @contextmanager
    def _in_parallel(self, ways: int) -> Iterator[None]:
        self._ways *= ways
        try:
            yield
        finally:
            self._ways //= ways

    def trace(self) -> Trace:
        """What was recorded until now."""
        placements, protocol, instances, blocked = self._settings
        return Trace(
            self.name,
            self.collective,
            tuple(size[2] for size in self._sizes),
            np.frombuffer(self._rows, dtype=np.int64).reshape(-1, len(COLUMNS)).copy()
            if self._rows
            else np.zeros((0, len(COLUMNS)), dtype=np.int64),
            tuple(self._files),
            placements,
            protocol,
            instances,
            blocked,
        )

    def _slot(self, rank: int, buffer: BufferLike, index: int, count: int) -> tuple[Buffer, int]:
        """The buffer and index within it that the user means; scratch gets its memory on first use."""
        if not 0 <= rank < self.collective.ranks:
            raise self._error(SlotError, f"there is no rank {rank}; the collective has {self.ranks}", rank=rank)
        to = _BUFFERS.get(buffer)
        if to is not None:
            size, start = self._sizes[rank][to], 0
        else:
            size, start = self._scratch_slot(rank, buffer)
            to = Buffer.SCRATCH
        if count < 1 or index < 0 or index + count > size:
            label = buffer.name if isinstance(buffer, Scratch) else to.name.lower()
            raise self._error(
                SlotError,
                f"{label}[{index}:{index + count}] of rank {rank} is outside the buffer, which has {size} chunks",
                rank=rank,
                chunk=index,
            )
        return to, start + index

    def _scratch_slot(self, rank: int, buffer: object) -> tuple[int, int]:
        scratch = buffer if isinstance(buffer, Scratch) else self._names.get(str(buffer))
        if scratch is None or self._names.get(scratch.name) is not scratch:
            known = ", ".join(["input", "output", *self._names])
            raise self._error(SlotError, f"there is no buffer {buffer!r}; there are {known}", rank=rank)
        start = self._scratches[rank].get(scratch)
        if start is None:
            start = self._scratches[rank][scratch] = self._sizes[rank][2]
            self._sizes[rank][2] += scratch.chunks
            self._written[rank].extend([0] * scratch.chunks)
            self._filled[rank].extend(bytes(scratch.chunks))
        return scratch.chunks, start

    def _target(self, source: Chunk, rank: int, buffer: BufferLike | None, index: int | None) -> tuple[Buffer, int]:
        if buffer is not None:
            return self._slot(rank, buffer, self._own_index(source) if index is None else index, source.count)
        if source.buffer != Buffer.SCRATCH:
            return self._slot(rank, source.buffer, source.index if index is None else index, source.count)
        scratch, own = self._scratch_at(source.rank, source.index)
        return self._slot(rank, scratch, own if index is None else index, source.count)

    def _own_index(self, chunk: Chunk) -> int:
        return chunk.index if chunk.buffer != Buffer.SCRATCH else self._scratch_at(chunk.rank, chunk.index)[1]

    def _scratch_at(self, rank: int, index: int) -> tuple[Scratch, int]:
        for scratch, start in self._scratches[rank].items():
            if start <= index < start + scratch.chunks:
                return scratch, index - start
        raise self._error(SlotError, f"rank {rank} has no scratch chunk {index}", rank=rank, chunk=index)

    def _use(self, reference: Chunk) -> None:
        if reference._program is not self:
            raise self._error(ProgramError, f"{reference} belongs to another program", chunk=reference)
        start = self._address[reference.rank][reference.buffer] + reference.index
        written, stamp = self._written[reference.rank], reference._stamp
        if written[start] <= stamp and (reference.count == 1 or max(written[start : start + reference.count]) <= stamp):
            return
        offset = next(k for k in range(reference.count) if written[start + k] > stamp)
        self._raise_stale(reference, offset, written[start + offset])

    def _raise_stale(self, reference: Chunk, offset: int, writer: int) -> None:
        start = (writer - 1) * len(COLUMNS)
        row = dict(zip(COLUMNS, self._rows[start : start + len(COLUMNS)], strict=True))
        name = self._name_of(reference.rank, reference.buffer, reference.index + offset, 1)
        where = f"{list(self._files)[row['file']]}:{row['line']}"
        how = f"was overwritten at {where} since it was taken"
        if row["dst_buffer"] != reference.buffer:
            how = (
                f"is gone: in place, {Buffer(row['dst_buffer']).name.lower()} overwrote it at {where}; "
                'a program that is never run in place says placement="out"'
            )
        raise self._error(StaleReferenceError, f"{name} {how}", at=name)

    def _check_write(self, rank: int, buffer: Buffer, index: int, count: int) -> None:
        if buffer == 0 and self._input_is_constant:
            name = self._name_of(rank, buffer, index, count)
            raise self._error(
                ProgramError,
                f"{name} would be written, but out of place the input is constant; "
                'write to "output" (reduce(..., into="output")), or make the program placement="in"',
                at=name,
            )

    def _copy(self, source: Chunk, rank: int, to: Buffer, at: int, hints: Hints) -> Chunk:
        count, local = source.count, rank == source.rank
        if local and count > 1 and self._shift(source, rank, to, at):
            for k in self._unit_order(self._shift(source, rank, to, at), count):
                self._emit(Action.COPY, source, k, rank, to, at + k, to, at + k, 1, hints)
        elif not (local and to == source.buffer and at == source.index):
            self._emit(Action.COPY, source, 0, rank, to, at, to, at, count, hints)
        return Chunk(self, rank, to, at, count, self._operations)

    def _reduce(self, mine: Chunk, other: Chunk, to: Buffer, at: int, hints: Hints) -> Chunk:
        rank, count = mine.rank, mine.count
        local = other.rank == rank
        shifts = [self._shift(mine, rank, to, at)] + ([self._shift(other, rank, to, at)] if local else [])
        shift = next((s for s in shifts if s), 0) if count > 1 else 0
        if count > 1 and any(s * shift < 0 for s in shifts):
            raise self._error(
                ProgramError,
                f"cannot reduce {other} and {mine} into {self._name_of(rank, to, at, count)}, which overlaps both "
                "from different sides; go through scratch",
                chunk=mine,
            )
        parts = [(k, 1) for k in self._unit_order(shift, count)] if shift else [(0, count)]
        for k, size in parts:
            if local:
                self._reduce_locally(mine, other, to, at, k, size, hints)
            else:
                self._emit(Action.REDUCE, other, k, rank, to, at + k, mine.buffer, mine.index + k, size, hints)
        return Chunk(self, rank, to, at, count, self._operations)

    def _reduce_locally(self, a: Chunk, b: Chunk, to: Buffer, at: int, k: int, size: int, hints: Hints) -> None:
        """``to = a + b`` on one rank, as at most a copy and a reduce in place."""
        if (to, at) == (b.buffer, b.index) or self._same_address(b, to, at):
            a, b = b, a
        if (to, at) != (a.buffer, a.index):
            self._emit(Action.COPY, a, k, a.rank, to, at + k, to, at + k, size, hints)
        self._emit(Action.REDUCE, b, k, a.rank, to, at + k, to, at + k, size, hints)

    def _same_address(self, chunk: Chunk, to: Buffer, at: int) -> bool:
        base = self._address[chunk.rank]
        return base[chunk.buffer] + chunk.index == base[to] + at

    def _shift(self, source: Chunk, rank: int, to: Buffer, at: int) -> int:
        """How far a destination on the same rank is shifted against an overlapping source; 0 if apart or the same."""
        base = self._address[rank]
        shift = base[to] + at - base[source.buffer] - source.index
        return shift if -source.count < shift < source.count else 0

    @staticmethod
    def _unit_order(shift: int, count: int) -> Sequence[int]:
        """The order in which single chunks are moved so that none is overwritten before it is read (as memmove)."""
        return range(count - 1, -1, -1) if shift > 0 else range(count)

    def _emit(
        self,
        action: Action,
        source: Chunk,
        offset: int,
        rank: int,
        to: Buffer,
        at: int,
        operand: Buffer,
        operand_at: int,
        count: int,
        hints: Hints,
    ) -> None:
        """Record one operation and mark what it wrote."""
        if self.topology is not None and source.rank != rank and not self.topology.has_link(source.rank, rank):
            raise self._error(
                ProgramError,
                f"{source} cannot be sent to rank {rank}: {self.topology.name} has no link {source.rank} -> {rank}",
                link=(source.rank, rank),
            )
        if source.rank == rank and hints[1] != hints[2] and NOTHING not in hints[1:]:
            raise self._error(ProgramError, f"{source} stays on its rank: send_tb and recv_tb must be the same there")
        file, line = self._where()
        start = source.index + offset
        self._rows.extend(
            (action, source.rank, source.buffer, start, rank, to, at, operand, operand_at, count, *hints,
             self._ways, 0, self._files.setdefault(file, len(self._files)), line)
        )  # fmt: skip
        self._operations += 1
        address, cell = self._address[rank][to] + at, self._cell[rank][to] + at
        if count == 1:
            self._filled[rank][cell] = 1
        else:
            self._filled[rank][cell : cell + count] = b"\1" * count
        # In place, a copy onto itself changes nothing: references to the input stay good.
        if action == 0 and source.rank == rank and self._address[rank][source.buffer] + start == address:
            return
        if count == 1:
            self._written[rank][address] = self._operations
        else:
            self._written[rank][address : address + count] = [self._operations] * count

    @staticmethod
    def _where() -> tuple[str, int]:
        """File and line of the innermost caller outside this module."""
        frame = sys._getframe(2)
        while frame.f_code.co_filename == __file__ and frame.f_back is not None:
            frame = frame.f_back
        return frame.f_code.co_filename, frame.f_lineno

    def _error(self, kind: type[CommlibError], message: str, **fields: object) -> CommlibError:
        file, line = self._where()
        named = {key: str(value) if isinstance(value, Chunk) else value for key, value in fields.items()}
        return kind(f"{file}:{line}: {message}", file=file, line=line, **named)

    def _name_of(self, rank: int, buffer: Buffer, index: int, count: int) -> str:
        label = Buffer(buffer).name.lower()
        if buffer == Buffer.SCRATCH:
            scratch, index = self._scratch_at(rank, index)
            label = scratch.name
        span = str(index) if count == 1 else f"{index}:{index + count}"
        return f"{label}[{span}] of rank {rank}"


def record(function: Callable[[Program], None], collective: Collective, **settings: object) -> Trace:
    """Run a DSL function on a fresh Program (named after it unless ``name`` is given) and return its Trace."""
    settings.setdefault("name", function.__name__)
    program = Program(collective, **settings)  # type: ignore[arg-type]
    function(program)
    return program.trace()
