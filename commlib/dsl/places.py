"""Places of a one-sided program: an Area is a buffer of a rank, and a Place some neighbouring chunks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from commlib.collectives import Buffer
from commlib.dsl.where import at_caller
from commlib.errors import SlotError

if TYPE_CHECKING:
    from commlib.dsl.onesided import OneSidedProgram

MAX_SCRATCH = 2**31 - 1
"""The most chunks that the scratch of a rank may have: the text form's largest number."""


@dataclass(frozen=True)
class Place:
    """``count`` neighbouring chunks from ``index`` of a buffer of a rank; made by indexing an Area."""

    program: OneSidedProgram
    rank: int
    buffer: Buffer
    index: int
    count: int

    @property
    def slot(self) -> tuple[int, Buffer, int]:
        """(rank, buffer, index)."""
        return self.rank, self.buffer, self.index

    def __str__(self) -> str:
        span = str(self.index) if self.count == 1 else f"{self.index}:{self.index + self.count}"
        return f"{self.buffer.name.lower()}[{span}] of rank {self.rank}"


@dataclass(frozen=True)
class Area:
    """A buffer of a rank; ``area[3]`` and ``area[3:5]`` are Places in it. Scratch has as many chunks as are used."""

    program: OneSidedProgram
    rank: int
    buffer: Buffer
    __iter__ = None

    @property
    def chunks(self) -> int:
        """The size in chunks; of scratch, the most there can be."""
        if self.buffer is Buffer.SCRATCH:
            return MAX_SCRATCH
        return self.program.collective.buffer_chunks(self.rank, self.buffer, ())

    def __getitem__(self, key: int | slice) -> Place:
        first, end = self._bounds(key)
        if not 0 <= first < end <= self.chunks:
            name = self.buffer.name.lower()
            raise at_caller(
                SlotError,
                f"{name}[{first}:{end}] of rank {self.rank} is empty or outside the buffer, "
                f"which has {self.chunks} chunks",
                rank=self.rank,
                buffer=name,
                chunk=first,
            )
        return Place(self.program, self.rank, self.buffer, first, end - first)

    def _bounds(self, key: int | slice) -> tuple[int, int]:
        if type(key) is int:
            return key, key + 1
        if isinstance(key, slice) and key.step is None:
            first = 0 if key.start is None else key.start
            end = self.chunks if key.stop is None and self.buffer is not Buffer.SCRATCH else key.stop
            if type(first) is int and type(end) is int:
                return first, end
        name = self.buffer.name.lower()
        raise at_caller(SlotError, f"chunks of {name} are like {name}[3] or {name}[3:5], not {name}[{key!r}]")
