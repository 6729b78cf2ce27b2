"""Chunk: a reference to neighbouring chunks, and what one can do with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from commlib.collectives import Buffer
from commlib.dsl.memory import BufferLike
from commlib.dsl.where import at_caller
from commlib.errors import ProgramError
from commlib.ir.algorithm import NOTHING

if TYPE_CHECKING:
    from commlib.dsl.program import Program

Hints = tuple[int, int, int]
MAX_HINT = 4095
"""The highest channel or threadblock that may be asked for; no runtime has so many."""


def _hints(channel: int | None, send_tb: int | None, recv_tb: int | None) -> Hints:
    if channel is None and send_tb is None and recv_tb is None:
        return (NOTHING, NOTHING, NOTHING)
    for name, value in (("channel", channel), ("send_tb", send_tb), ("recv_tb", recv_tb)):
        if value is not None and not (isinstance(value, int) and 0 <= value <= MAX_HINT):
            raise at_caller(ProgramError, f"{name} is a whole number from 0 to {MAX_HINT}, not {value!r}")
    none = NOTHING
    return (
        none if channel is None else channel,
        none if send_tb is None else send_tb,
        none if recv_tb is None else recv_tb,
    )


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
        return self._program.record_copy(self, rank, buffer, index, _hints(channel, send_tb, recv_tb))

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
        buffer, index = into if isinstance(into, tuple) else (into, None)
        return self._program.record_reduce(self, other, buffer, index, _hints(channel, send_tb, recv_tb))

    def split(self, parts: int) -> list[Chunk]:
        """Cut the reference into ``parts`` references of equal size.

        Raises:
            ProgramError: the chunks cannot be divided so.
        """
        if parts < 1 or self.count % parts:
            raise at_caller(ProgramError, f"cannot split {self} into {parts} equal parts", self)
        size = self.count // parts
        return [
            Chunk(self._program, self.rank, self.buffer, self.index + k * size, size, self._stamp) for k in range(parts)
        ]

    def group(self, other: Chunk) -> Chunk:
        """One reference to these chunks and ``other``'s, which must lie right before or after them.

        Raises:
            StaleReferenceError: a slot of one of the two was overwritten since that reference was made.
            ProgramError: another rank or buffer, or a gap or overlap between the two.
        """
        first, second = (self, other) if self.index <= other.index else (other, self)
        together = (first.rank, first.buffer, first.index + first.count) == (second.rank, second.buffer, second.index)
        if not together or self._named_buffer() is not other._named_buffer():
            raise at_caller(ProgramError, f"cannot group {self} with {other}: they are not neighbours", self)
        return self._program.group(first, second)

    def _named_buffer(self) -> BufferLike:
        return self._program.memory.named(self.rank, self.buffer, self.index)[0]

    @property
    def program(self) -> Program:
        """The program that the reference belongs to."""
        return self._program

    @property
    def stamp(self) -> int:
        """The number of operations that were recorded when the reference was made."""
        return self._stamp

    def __str__(self) -> str:
        return self._program.memory.name_of(self.rank, self.buffer, self.index, self.count)

    def __repr__(self) -> str:
        return f"Chunk({self})"
