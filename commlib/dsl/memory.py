"""What a program knows of each rank's memory while it records: sizes, who wrote last, what was ever written."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from commlib.collectives import Buffer, Collective, Placement
from commlib.dsl.where import at_caller
from commlib.errors import ProgramError, SlotError, UninitializedReadError
from commlib.ir.trace import address_map

PlacementName = Literal["in", "out", "both"]


@dataclass(frozen=True, eq=False)
class Scratch:
    """A named scratch buffer of ``chunks`` chunks on every rank; a rank that never uses it gives it no memory."""

    name: str
    chunks: int


BufferLike = Literal["input", "output"] | Buffer | Scratch
_BUFFERS: dict[object, Buffer] = {
    "input": Buffer.INPUT,
    "output": Buffer.OUTPUT,
    Buffer.INPUT: Buffer.INPUT,
    Buffer.OUTPUT: Buffer.OUTPUT,
}


class Memory:
    """Buffers, slots and their state.

    ``written[rank][address]`` is the number of the operation that wrote last, with input and output sharing addresses
    unless the program is out of place only: this is what makes references stale. ``filled[rank][cell]`` is whether
    anything was written, with input and output apart unless the program is in place only: this finds uninitialised
    reads. Buffer b of a rank begins at ``address[rank][b]`` and ``cell[rank][b]``; scratch is last and grows.
    """

    def __init__(self, collective: Collective, placement: PlacementName) -> None:
        ranks, no_scratch = range(collective.ranks), (0,) * collective.ranks
        shared = address_map(collective, no_scratch, Placement.OUT if placement == "out" else Placement.IN)
        apart = address_map(collective, no_scratch, Placement.IN if placement == "in" else Placement.OUT)
        self.collective = collective
        self.address = [list(base) for base in shared.base]
        self.cell = [list(base) for base in apart.base]
        self.sizes = [[collective.input_chunks(r), collective.output_chunks(r), 0] for r in ranks]
        self.written = [[0] * span for span in shared.span]
        self.filled = [bytearray(span) for span in apart.span]
        for rank, cells in enumerate(self.filled):
            first, size = self.cell[rank][Buffer.INPUT], self.sizes[rank][Buffer.INPUT]
            cells[first : first + size] = b"\1" * size
        self.input_is_constant = placement != "in"
        self._names: dict[str, Scratch] = {}
        self._starts: list[dict[Scratch, int]] = [{} for _ in ranks]
        self._by_start: list[list[tuple[Scratch, int]]] = [[] for _ in ranks]

    def declare(self, name: str, chunks: int) -> Scratch:
        """A new scratch buffer; ProgramError if the name is taken or the size not positive."""
        if name in self._names or name in ("input", "output"):
            raise at_caller(ProgramError, f"a buffer called {name!r} exists already")
        if chunks < 1:
            raise at_caller(ProgramError, f"scratch {name!r} needs at least one chunk, not {chunks}")
        self._names[name] = Scratch(name, chunks)
        return self._names[name]

    def slot(self, rank: int, buffer: BufferLike, index: int, count: int) -> tuple[Buffer, int]:
        """The buffer and index in it that the user means; SlotError if there is no such slot."""
        if type(rank) is not int or not 0 <= rank < self.collective.ranks:
            ranks = self.collective.ranks
            raise at_caller(SlotError, f"there is no rank {rank!r}; the collective has {ranks}", rank=rank)
        if type(index) is not int or type(count) is not int:
            raise at_caller(SlotError, f"a chunk index and a count are whole numbers, not {index!r} and {count!r}")
        to = _BUFFERS.get(buffer) if isinstance(buffer, str | Buffer) else None
        if to is not None:
            size, start = self.sizes[rank][to], 0
        else:
            to = Buffer.SCRATCH
            size, start = self._scratch(rank, buffer)
        if count < 1 or index < 0 or index + count > size:
            label = to.name.lower() if to != Buffer.SCRATCH else str(getattr(buffer, "name", buffer))
            raise at_caller(
                SlotError,
                f"{label}[{index}:{index + count}] of rank {rank} is outside the buffer, which has {size} chunks",
                rank=rank,
                buffer=label,
                chunk=index,
            )
        return to, start + index

    def _scratch(self, rank: int, buffer: object) -> tuple[int, int]:
        """(size, start) of a scratch buffer on a rank, which gives it memory on first use."""
        scratch = self._names.get(buffer) if isinstance(buffer, str) else buffer
        if not isinstance(scratch, Scratch):
            scratch = None
        if scratch is None or self._names.get(scratch.name) is not scratch:
            known = ", ".join(["input", "output", *self._names])
            raise at_caller(SlotError, f"there is no buffer {buffer!r}; there are {known}", rank=rank)
        start = self._starts[rank].get(scratch)
        if start is None:
            start = self._starts[rank][scratch] = self.sizes[rank][Buffer.SCRATCH]
            self._by_start[rank].append((scratch, start))
            self.sizes[rank][Buffer.SCRATCH] += scratch.chunks
            self.written[rank].extend([0] * scratch.chunks)
            self.filled[rank].extend(bytes(scratch.chunks))
        return scratch.chunks, start

    def named(self, rank: int, buffer: Buffer, index: int) -> tuple[BufferLike, int]:
        """The buffer as the user named it, and the index within that."""
        if buffer != Buffer.SCRATCH:
            return buffer, index
        scratch, start = self._by_start[rank][bisect_right(self._by_start[rank], index, key=lambda entry: entry[1]) - 1]
        return scratch, index - start

    def name_of(self, rank: int, buffer: Buffer, index: int, count: int) -> str:
        """How messages call a span: ``tmp[3:5] of rank 2``."""
        named, index = self.named(rank, buffer, index)
        label = named.name if isinstance(named, Scratch) else Buffer(buffer).name.lower()
        span = str(index) if count == 1 else f"{index}:{index + count}"
        return f"{label}[{span}] of rank {rank}"

    def require_filled(self, rank: int, buffer: Buffer, index: int, count: int) -> None:
        """UninitializedReadError if one of the slots was never written."""
        cell, filled = self.cell[rank][buffer] + index, self.filled[rank]
        if filled[cell] and (count == 1 or all(filled[cell : cell + count])):
            return
        empty = next(k for k in range(count) if not filled[cell + k])
        name = self.name_of(rank, buffer, index + empty, 1)
        raise at_caller(UninitializedReadError, f"{name} is read before anything was written to it", slot=name)

    def first_newer(self, rank: int, buffer: Buffer, index: int, count: int, stamp: int) -> int | None:
        """The offset of the first slot that was written after operation ``stamp``, or None."""
        start, written = self.address[rank][buffer] + index, self.written[rank]
        if written[start] <= stamp and (count == 1 or max(written[start : start + count]) <= stamp):
            return None
        return next(k for k in range(count) if written[start + k] > stamp)

    def require_writable(self, rank: int, buffer: Buffer, index: int, count: int) -> None:
        """ProgramError for the input of a program that may run out of place: there it is constant."""
        if buffer == Buffer.INPUT and self.input_is_constant:
            name = self.name_of(rank, buffer, index, count)
            raise at_caller(
                ProgramError,
                f"{name} would be written, but out of place the input is constant; "
                'write to "output" (reduce(..., into="output")), or make the program placement="in"',
                slot=name,
            )

    def mark(self, rank: int, buffer: Buffer, index: int, count: int, operation: int, changed: bool) -> None:
        """Note that ``operation`` wrote a span; ``changed`` is False for a copy onto itself in place."""
        address, cell = self.address[rank][buffer] + index, self.cell[rank][buffer] + index
        if count == 1:
            self.filled[rank][cell] = 1
            if changed:
                self.written[rank][address] = operation
            return
        self.filled[rank][cell : cell + count] = b"\1" * count
        if changed:
            self.written[rank][address : address + count] = [operation] * count

    def same(self, rank: int, one: tuple[Buffer, int], other: tuple[Buffer, int]) -> bool:
        """Whether two slots of a rank share an address in some placement."""
        base = self.address[rank]
        return base[one[0]] + one[1] == base[other[0]] + other[1]

    def shift(self, rank: int, source: tuple[Buffer, int], target: tuple[Buffer, int], count: int) -> int:
        """How far a target span is shifted against the source span it overlaps; 0 if they are apart or the same."""
        base = self.address[rank]
        distance = base[target[0]] + target[1] - base[source[0]] - source[1]
        return distance if -count < distance < count else 0
