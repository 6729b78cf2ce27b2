"""Records: one step or threadblock of an Algorithm, read out of its columns; made to be looked at and printed."""

from __future__ import annotations

from dataclasses import dataclass

from commlib.collectives import Buffer
from commlib.ir.ops import Op


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
class RemoteSpan:
    """A span of a rank that need not be the step's own."""

    rank: int
    span: Span

    def __str__(self) -> str:
        return f"{self.rank}.{self.span}"

    def seen_from(self, rank: int) -> str:
        """As the text form has it in a step of ``rank``: its own spans without their rank."""
        return str(self.span if rank == self.rank else self)


@dataclass(frozen=True)
class Step:
    """One step, as a record. ``number`` is global; ``index`` is its place in its threadblock.

    ``source`` and ``destination`` are the local spans of a two-sided operation. ``sources`` and ``destinations`` have
    all slots that any operation reads and writes, in the order of its operands, without messages and without the
    destination that a ``re`` reads as well. ``peer`` is the other rank of a put, get, signal, wait or flush.
    """

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
    sources: tuple[RemoteSpan, ...] = ()
    destinations: tuple[RemoteSpan, ...] = ()
    peer: int | None = None

    def __str__(self) -> str:
        waits = ", ".join(f"{tb}.{step}" for tb, step in self.depends)
        return f"{self.op.short}{self._operands()}{' after ' + waits if waits else ''}"

    def _operands(self) -> str:
        if not self.op.one_sided:
            source = "" if self.source is None else f" {self.source}"
            return source if self.destination is None else f"{source} -> {self.destination}"
        if self.op.synchronizes:
            return f" {self.peer}"
        sources = " + ".join(span.seen_from(self.rank) for span in self.sources)
        destinations = ", ".join(span.seen_from(self.rank) for span in self.destinations)
        return f" {sources} -> {destinations}"


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
