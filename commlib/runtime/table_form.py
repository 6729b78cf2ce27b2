"""What of a rank's table depends on algorithm and placement only: made once, filled with offsets for each size.

A *part* is one chunk of one step: its operands are slots or places in a message, by number. ``tabulate`` turns parts
into moves once a layout says where slots lie.

*Announcements* are the one thing in a table that no step asks for. A program may write a peer's scratch before it has
heard of the peer, which may be in another call then (by a fault of its program) and have its own use for that scratch.
So each such peer begins with a signal, on a channel of its own, and the writer waits for it first: a wait
compares the calls. They are a threadblock before all others, and each tile has them. Other programs have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import RECEIVES, SENDS, Algorithm, Op, RemoteSpan, Step
from commlib.runtime.flow import address
from commlib.runtime.plan import overlaps
from commlib.runtime.table import (
    BLOCK,
    DEPEND,
    LINK,
    MESSAGE_IN,
    MESSAGE_OUT,
    MOVE,
    NONE,
    NOP,
    PEERS,
    SIGNAL,
    STEP,
    WAIT,
    Rows,
)
from commlib.verify import unheard_stores

Ints = npt.NDArray[np.int64]
_KINDS = {Op.SIGNAL: SIGNAL, Op.WAIT: WAIT, Op.NOP: NOP, Op.FLUSH: NOP}
"""What is no move. A put is a copy that is done when its step is: so there is nothing to flush."""
Flags = npt.NDArray[np.bool_]


class Operand(NamedTuple):
    """Slot ``at`` of a rank's buffer, or (``rank`` NONE) chunk ``at`` of the message that comes or goes."""

    base: int
    rank: int
    buffer: int
    at: int


class Part(NamedTuple):
    """Chunk ``chunk`` of a step: destinations = combine(sources). ``apart``: never joined with its neighbour."""

    chunk: int
    sources: tuple[Operand, ...]
    destinations: tuple[Operand, ...]
    apart: bool


@dataclass(frozen=True, eq=False)
class Form:
    """One rank's table without offsets.

    ``steps`` lacks moves and message sizes. Columns ``part_*`` have a row per part, in the order of the steps
    (``part_row``: its row in ``steps``, ``part_number``: its step in the Algorithm); part p has the operands
    ``part_low[p]`` to ``part_low[p + 1]``, its destinations from ``part_destination[p]``.
    """

    steps: Rows
    depends: Rows
    blocks: Rows
    sends: Rows
    receives: Rows
    threadblocks: tuple[int, ...]
    combines: bool
    part_row: Ints
    part_number: Ints
    part_chunk: Ints
    part_apart: Flags
    part_low: Ints
    part_destination: Ints
    base: Ints
    rank: Ints
    buffer: Ints
    index: Ints

    @property
    def parts(self) -> int:
        """The number of parts."""
        return len(self.part_row)


@dataclass(frozen=True)
class Announced:
    """Of a program: who says to whom that it has come (by rank), on which channel, and which steps wait for that."""

    tells: tuple[tuple[int, ...], ...]
    hears: tuple[tuple[int, ...], ...]
    steps: frozenset[int]
    channel: int


def channel_count(algorithm: Algorithm) -> int:
    """One more than the highest channel on which the program sends or signals."""
    talking = SENDS[algorithm.op] | RECEIVES[algorithm.op] | np.isin(algorithm.op, (Op.SIGNAL, Op.WAIT))
    return int(algorithm.tb_channel[algorithm.step_threadblock[talking]].max(initial=-1)) + 1


@lru_cache(maxsize=256)
def announced(algorithm: Algorithm) -> Announced | None:
    """The announcements of a program; None if it needs none."""
    stores = [(number, algorithm.place(number)[0], peer) for number, peer in unheard_stores(algorithm).tolist()]
    if not stores:
        return None
    pairs = sorted({(writer, peer) for _, writer, peer in stores})
    ranks = range(algorithm.ranks)
    return Announced(
        tuple(tuple(writer for writer, peer in pairs if peer == rank) for rank in ranks),
        tuple(tuple(peer for writer, peer in pairs if writer == rank) for rank in ranks),
        frozenset(number for number, _, _ in stores),
        channel_count(algorithm),
    )


@lru_cache(maxsize=512)
def rank_form(algorithm: Algorithm, placement: Placement, rank: int) -> Form:
    """The form of one rank; O(chunks that the rank moves)."""
    return _Former(algorithm, placement, rank).form()


def step_parts(algorithm: Algorithm, placement: Placement, step: Step) -> Iterator[Part]:
    """The parts of a step, in an order in which no part overwrites what a later one reads; copies of a slot to
    itself are left out."""
    apart = overlaps(algorithm, placement, step)
    chunks = range(step.count)
    for chunk in reversed(chunks) if apart and _moves_up(algorithm, placement, step) else chunks:
        part = Part(chunk, _sources(step, chunk), _destinations(step, chunk), apart)
        part = _without_self_copies(algorithm, placement, part)
        if part.destinations:
            yield part


def _moves_up(algorithm: Algorithm, placement: Placement, step: Step) -> bool:
    c = algorithm.collective
    if step.source is None or step.destination is None:
        return False
    source, destination = (
        address(c, placement, step.rank, span.buffer, span.index) for span in (step.source, step.destination)
    )
    return destination > source


def _sources(step: Step, chunk: int) -> tuple[Operand, ...]:
    message = [Operand(MESSAGE_IN, NONE, NONE, chunk)] if step.op.receives else []
    before = step.destinations if step.op is Op.REDUCE else ()
    return (*_slots(step, before, chunk), *_slots(step, step.sources, chunk), *message)


def _destinations(step: Step, chunk: int) -> tuple[Operand, ...]:
    message = [Operand(MESSAGE_OUT, NONE, NONE, chunk)] if step.op.sends else []
    return (*message, *_slots(step, step.destinations, chunk))


def _slots(step: Step, spans: tuple[RemoteSpan, ...], chunk: int) -> tuple[Operand, ...]:
    """Chunk ``chunk`` of each span, as seen from the step's rank."""
    slots = []
    for rank, span in ((remote.rank, remote.span) for remote in spans):
        base = int(span.buffer) if rank == step.rank else PEERS + 3 * rank + int(span.buffer)
        slots.append(Operand(base, rank, int(span.buffer), span.index + chunk))
    return tuple(slots)


def _without_self_copies(algorithm: Algorithm, placement: Placement, part: Part) -> Part:
    if len(part.sources) != 1 or part.sources[0].rank == NONE:
        return part
    place = _place(algorithm, placement, part.sources[0])
    kept = tuple(d for d in part.destinations if d.rank == NONE or _place(algorithm, placement, d) != place)
    return part._replace(destinations=kept)


def _place(algorithm: Algorithm, placement: Placement, operand: Operand) -> tuple[int, int, int]:
    return address(algorithm.collective, placement, operand.rank, Buffer(operand.buffer), operand.at)


@dataclass
class _Former:
    """Collects the rows of one rank. ``finished[tb][i]``: rows of a threadblock that stand for its first i steps."""

    algorithm: Algorithm
    placement: Placement
    rank: int
    steps: list[tuple[int, ...]] = field(default_factory=list)
    parts: list[tuple[int, int, Part]] = field(default_factory=list)
    waits: list[tuple[tuple[int, int], ...]] = field(default_factory=list)
    gated: list[bool] = field(default_factory=list)
    sends: dict[tuple[int, int], int] = field(default_factory=dict)
    receives: dict[tuple[int, int], int] = field(default_factory=dict)
    finished: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.announced = announced(self.algorithm)

    def form(self) -> Form:
        """Walk the rank's threadblocks once."""
        first = self._announce()
        bounds = []
        for block in self.algorithm.threadblocks(self.rank):
            low = len(self.steps)
            self.finished.append([0])
            for number in block.steps:
                self._step(self.algorithm.step(number), (block.send, block.recv, block.channel))
                self.finished[-1].append(len(self.steps) - low)
            bounds.append((low, len(self.steps)))
        used = tuple(index for index, (low, high) in enumerate(bounds) if high > low)
        depends = self._depends({block: row for row, block in enumerate(used, start=bool(first))}, first)
        steps = np.array(self.steps, dtype=STEP)
        steps["depend_low"], steps["depend_high"] = _bounds([len(rows) for rows in depends])
        return Form(
            steps,
            np.array([row for rows in depends for row in rows], dtype=DEPEND),
            np.array([(0, first)] * bool(first) + [bounds[index] for index in used], dtype=BLOCK),
            np.array(list(self.sends), dtype=LINK),
            np.array(list(self.receives), dtype=LINK),
            (NONE,) * bool(first) + used,
            any(len(part.sources) > 1 for _, _, part in self.parts),
            *self._part_columns(),
            *self._operand_columns(),
        )

    def _announce(self) -> int:
        """Append the rows of the announcements, signals first; how many."""
        if self.announced is None:
            return 0
        kinds = ((SIGNAL, self.announced.tells), (WAIT, self.announced.hears))
        for kind, peer in ((kind, peer) for kind, peers in kinds for peer in peers[self.rank]):
            self.steps.append((kind, NONE, NONE, NONE, peer, self.announced.channel, 0, 0, 0, 0, 0))
            self.waits.append(())
        self.gated.extend([False] * len(self.steps))
        return len(self.steps)

    def _step(self, step: Step, links: tuple[int | None, int | None, int]) -> None:
        """Append the row of a step, unless nothing of it is left."""
        send, receive, channel = links
        row, kind = len(self.steps), _KINDS.get(step.op, MOVE)
        parts = list(step_parts(self.algorithm, self.placement, step))
        to = self._link(self.sends, send, channel) if step.op.sends else NONE
        taken = self._link(self.receives, receive, channel) if step.op.receives else NONE
        if kind == MOVE and not parts and to == taken == NONE:
            kind = NOP
        if kind == NOP and not step.depends:
            return
        self.parts.extend((row, step.number, part) for part in parts)
        self.waits.append(step.depends)
        self.gated.append(self.announced is not None and step.number in self.announced.steps)
        peer = NONE if step.peer is None or kind not in (SIGNAL, WAIT) else step.peer
        channel = NONE if peer == NONE else channel
        self.steps.append((kind, step.index, taken, to, peer, channel, 0, 0, 0, 0, 0))

    def _link(self, links: dict[tuple[int, int], int], peer: int | None, channel: int) -> int:
        return NONE if peer is None else links.setdefault((peer, channel), len(links))

    def _depends(self, rows: dict[int, int], first: int) -> list[list[tuple[int, int]]]:
        """(block row, rows to finish) of each step; what needs no row needs no waiting. ``first``: announcements."""
        found = []
        for waits, gated in zip(self.waits, self.gated, strict=True):
            needed = [(block, self.finished[block][index + 1]) for block, index in waits]
            found.append([(0, first)] * gated + [(rows[block], count) for block, count in needed if count])
        return found

    def _part_columns(self) -> tuple[Ints, Ints, Ints, Flags, Ints, Ints]:
        parts = [part for _, _, part in self.parts]
        sources = _column([len(part.sources) for part in parts])
        low = np.zeros(len(parts) + 1, dtype=np.int64)
        low[1:] = np.cumsum(sources + _column([len(part.destinations) for part in parts]))
        return (
            _column([row for row, _, _ in self.parts]),
            _column([number for _, number, _ in self.parts]),
            _column([part.chunk for part in parts]),
            np.array([part.apart for part in parts], dtype=bool),
            low,
            low[:-1] + sources,
        )

    def _operand_columns(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Base, rank, buffer and index of all operands."""
        operands = [operand for _, _, part in self.parts for operand in (*part.sources, *part.destinations)]
        table = _column(operands).reshape(-1, 4)
        base, rank, buffer, index = np.ascontiguousarray(table.T)
        return base, rank, buffer, index


def _column(values: Sequence[int] | Sequence[Operand]) -> Ints:
    return np.array(values, dtype=np.int64)


def _bounds(counts: list[int]) -> tuple[Ints, Ints]:
    ends = np.cumsum(_column(counts))
    return ends - _column(counts), ends
