"""Program: checks every operation and records it; ``record`` runs a DSL function on a fresh one."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np

from commlib.collectives import Buffer, Collective, Placement
from commlib.dsl.chunk import Chunk, Hints
from commlib.dsl.memory import BufferLike, Memory, PlacementName, Scratch
from commlib.dsl.where import at_caller, caller
from commlib.errors import ProgramError, StaleReferenceError
from commlib.ir.algorithm import NOTHING
from commlib.ir.trace import COLUMNS, Action, Trace
from commlib.topology import Topology

_PLACEMENTS: dict[str, frozenset[Placement]] = {
    "in": frozenset({Placement.IN}),
    "out": frozenset({Placement.OUT}),
    "both": frozenset(Placement),
}
Slot = tuple[Buffer, int]


class Program:
    """A program being written: it checks every operation and records it.

    ``placement`` is "in", "out" or "both"; ``topology`` (optional) limits who may send to whom; ``instances`` cuts
    every chunk into that many parts that run as independent copies of the program, interleaved (part j of a span is
    its j-th equal piece) or, with ``blocked=True``, blocked (part j of a shard is its j-th equal piece).

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
            raise at_caller(ProgramError, f'placement is "in", "out" or "both", not {placement!r}')
        if topology is not None and topology.ranks != collective.ranks:
            raise at_caller(
                ProgramError, f"topology {topology.name} has {topology.ranks} ranks, the collective {collective.ranks}"
            )
        if not isinstance(instances, int) or instances < 1:
            raise at_caller(ProgramError, f"instances must be at least 1, not {instances!r}")
        if placement == "both" and not collective.can_be_in_place:
            placement = "out"
        self.collective = collective
        self.name = name
        self.topology = topology
        self.memory = Memory(collective, placement)
        self._settings = (_PLACEMENTS[placement], protocol, instances, blocked)
        self._ways = 1
        self._rows = array("q")
        self._files: dict[str, int] = {}
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
        memory = self.memory
        to, at = memory.slot(rank, buffer, index, count)
        memory.require_filled(rank, to, at, count)
        if to == 0 and memory.input_is_constant:
            self._require_fresh(Chunk(self, rank, to, at, count, 0))
        return Chunk(self, rank, to, at, count, self._operations)

    def group(self, first: Chunk, second: Chunk) -> Chunk:
        """What ``Chunk.group`` does with neighbours: one fresh reference, once both are known to be fresh."""
        self._require_fresh(first)
        self._require_fresh(second)
        count = first.count + second.count
        return Chunk(self, first.rank, first.buffer, first.index, count, self._operations)

    def scratch(self, name: str, chunks: int) -> Scratch:
        """A named scratch buffer of ``chunks`` chunks on each rank that uses it.

        Raises:
            ProgramError: the name is taken, or the size is not positive.
        """
        return self.memory.declare(name, chunks)

    def parallelize(self, ways: int) -> AbstractContextManager[None]:
        """Cut every operation in this ``with`` block into ``ways`` parts, each on channels of its own.

        This is MSCCL's parallelize for a part of a program. Blocks nest by multiplying.

        Raises:
            ProgramError: ``ways`` is not positive.
        """
        if not isinstance(ways, int) or ways < 1:
            raise at_caller(ProgramError, f"parallelize needs at least one way, not {ways!r}")
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
            tuple(size[Buffer.SCRATCH] for size in self.memory.sizes),
            np.array(self._rows, dtype=np.int64).reshape(-1, len(COLUMNS)),
            tuple(self._files),
            placements,
            protocol,
            instances,
            blocked,
        )

    def record_copy(
        self, source: Chunk, rank: int, buffer: BufferLike | None, index: int | None, hints: Hints
    ) -> Chunk:
        """What ``Chunk.copy`` does."""
        count = source.count
        to, at = self._target(source, rank, buffer, index)
        self._require_fresh(source)
        self.memory.require_writable(rank, to, at, count)
        if rank != source.rank:
            self._emit(Action.COPY, source, 0, rank, (to, at), (to, at), count, hints)
        else:
            self._copy_locally(source, (to, at), hints)
        return Chunk(self, rank, to, at, count, self._operations)

    def _copy_locally(self, source: Chunk, target: Slot, hints: Hints) -> None:
        own = (source.buffer, source.index)
        if target == own:
            return
        shift = self.memory.shift(source.rank, own, target, source.count)
        for k, size in _pieces(shift, source.count):
            moved = (target[0], target[1] + k)
            self._emit(Action.COPY, source, k, source.rank, moved, moved, size, hints)

    def record_reduce(
        self, mine: Chunk, other: Chunk, buffer: BufferLike | None, index: int | None, hints: Hints
    ) -> Chunk:
        """What ``Chunk.reduce`` does."""
        rank, count = mine.rank, mine.count
        if other.count != count:
            raise at_caller(ProgramError, f"cannot reduce {other} into {mine}: {other.count} chunks and {count}", mine)
        to, at = self._target(mine, rank, buffer, index)
        self._require_fresh(mine)
        self._require_fresh(other)
        self.memory.require_writable(rank, to, at, count)
        for k, size in _pieces(self._reduce_shift(mine, other, (to, at)), count):
            if other.rank == rank:
                self._reduce_locally(mine, other, (to, at), k, size, hints)
            else:
                operand = (mine.buffer, mine.index + k)
                self._emit(Action.REDUCE, other, k, rank, (to, at + k), operand, size, hints)
        return Chunk(self, rank, to, at, count, self._operations)

    def _reduce_shift(self, mine: Chunk, other: Chunk, target: Slot) -> int:
        """How far the target is shifted against an operand that it overlaps in part; 0 if there is none such."""
        operands = [mine, other] if other.rank == mine.rank else [mine]
        shifts = [self.memory.shift(mine.rank, (c.buffer, c.index), target, mine.count) for c in operands]
        if min(shifts) < 0 < max(shifts):
            name = self.memory.name_of(mine.rank, *target, mine.count)
            raise at_caller(
                ProgramError,
                f"cannot reduce {other} and {mine} into {name}, which overlaps both from different sides; "
                "go through scratch",
                mine,
            )
        return next((shift for shift in shifts if shift), 0)

    def _reduce_locally(self, a: Chunk, b: Chunk, target: Slot, k: int, size: int, hints: Hints) -> None:
        """``target = a + b`` on one rank, as at most a copy and a reduce in place."""
        if self.memory.same(a.rank, (b.buffer, b.index), target):
            a, b = b, a
        moved = (target[0], target[1] + k)
        if target != (a.buffer, a.index):
            self._emit(Action.COPY, a, k, a.rank, moved, moved, size, hints)
        self._emit(Action.REDUCE, b, k, a.rank, moved, moved, size, hints)

    def _target(self, source: Chunk, rank: int, buffer: BufferLike | None, index: int | None) -> Slot:
        if buffer is None or index is None:
            own_buffer, own_index = self.memory.named(source.rank, source.buffer, source.index)
            buffer = own_buffer if buffer is None else buffer
            index = own_index if index is None else index
        return self.memory.slot(rank, buffer, index, source.count)

    def _require_fresh(self, chunk: Chunk) -> None:
        """StaleReferenceError if one of its slots was overwritten since the reference was made."""
        if chunk.program is not self:
            raise at_caller(ProgramError, f"{chunk} belongs to another program", chunk)
        offset = self.memory.first_newer(chunk.rank, chunk.buffer, chunk.index, chunk.count, chunk.stamp)
        if offset is None:
            return
        address = self.memory.address[chunk.rank][chunk.buffer] + chunk.index + offset
        start = (self.memory.written[chunk.rank][address] - 1) * len(COLUMNS)
        row = dict(zip(COLUMNS, self._rows[start : start + len(COLUMNS)], strict=True))
        name = self.memory.name_of(chunk.rank, chunk.buffer, chunk.index + offset, 1)
        where = f"{list(self._files)[row['file']]}:{row['line']}"
        how = f"was overwritten at {where} since it was taken"
        if row["dst_buffer"] != chunk.buffer:
            how = (
                f"is gone: in place, {Buffer(row['dst_buffer']).name.lower()} overwrote it at {where}; "
                'a program that is never run in place says placement="out"'
            )
        raise at_caller(StaleReferenceError, f"{name} {how}", slot=name)

    def _emit(
        self,
        action: Action,
        source: Chunk,
        offset: int,
        rank: int,
        target: Slot,
        operand: Slot,
        count: int,
        hints: Hints,
    ) -> None:
        """Record one operation and mark what it wrote."""
        if source.rank != rank:
            if self.topology is not None:
                self._require_link(source, rank)
        elif hints[1] != hints[2] and NOTHING not in hints[1:]:
            raise at_caller(ProgramError, f"{source} stays on its rank: send_tb and recv_tb must be the same there")
        file, line = caller()
        start = source.index + offset
        place = self._files.setdefault(file, len(self._files))
        self._rows.extend((action, source.rank, source.buffer, start, rank, *target, *operand, count, *hints))
        self._rows.extend((self._ways, 0, place, line))
        self._operations += 1
        # In place, a copy onto itself changes nothing: references to the input stay good.
        itself = action == 0 and source.rank == rank and self.memory.same(rank, (source.buffer, start), target)
        self.memory.mark(rank, *target, count, self._operations, not itself)

    def _require_link(self, source: Chunk, rank: int) -> None:
        if self.topology is not None and not self.topology.has_link(source.rank, rank):
            raise at_caller(
                ProgramError,
                f"{source} cannot be sent to rank {rank}: {self.topology.name} has no link {source.rank} -> {rank}",
                source,
                link=(source.rank, rank),
            )


def _pieces(shift: int, count: int) -> Sequence[tuple[int, int]]:
    """(offset, size) of the moves that together move ``count`` chunks so that none is overwritten before it is read.

    As memmove: one move, unless source and target overlap in part; then chunk by chunk from the safe end.
    """
    if not shift:
        return ((0, count),)
    return [(k, 1) for k in (range(count - 1, -1, -1) if shift > 0 else range(count))]


def record(
    function: Callable[[Program], None],
    collective: Collective,
    name: str | None = None,
    *,
    placement: PlacementName = "both",
    topology: Topology | None = None,
    instances: int = 1,
    blocked: bool = False,
    protocol: str = "Simple",
) -> Trace:
    """Run a DSL function on a fresh Program (named after it unless ``name`` is given) and return its Trace.

    Raises:
        ProgramError: the program does something that has no meaning, at the line named in the message.
    """
    program = Program(
        collective,
        getattr(function, "__name__", "program") if name is None else name,
        placement=placement,
        topology=topology,
        instances=instances,
        blocked=blocked,
        protocol=protocol,
    )
    function(program)
    return program.trace()
