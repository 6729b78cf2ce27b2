"""RankPlan: what one rank does in a launch, with every element span resolved; planned once per shape, then reused.

A launch whose chunks are larger than a tile repeats the whole program for each tile, and tiles are so small that the
largest message fits one: a step's message is never cut (``whole_messages``, as the verifier calls it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import Algorithm, Op, RemoteSpan, Step, Threadblock
from commlib.runtime.flow import Slot, address
from commlib.runtime.layout import ChunkLayout, message_lengths


class Move(NamedTuple):
    """``length`` elements at ``source``, ``destination`` and, in the message, ``message`` (element offsets)."""

    source: int
    destination: int
    message: int
    length: int


class Transfer(NamedTuple):
    """A move of a one-sided step: ``length`` elements at ``starts[i]`` of operand i (element offsets)."""

    starts: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class OneSided:
    """What a one-sided step has besides: ``peer`` and channel of a signal or wait, otherwise operands.

    ``operands`` are (rank, buffer), the first ``sources`` of them sources; ``tiles[t]`` are the moves in tile t.
    """

    text: str
    peer: int | None
    channel: int
    operands: tuple[tuple[int, Buffer], ...]
    sources: int
    tiles: tuple[tuple[Transfer, ...], ...]


@dataclass(frozen=True)
class StepPlan:
    """A step. ``tiles[t]`` are its moves in tile t, ``sizes[t]`` their elements.

    ``depends`` are (threadblock, steps it must have finished in this tile); ``overlaps``: source and destination
    overlap in part, so that all must be read before anything is written. A one-sided step has no moves, but
    ``one_sided``.
    """

    op: Op
    source: Buffer | None
    destination: Buffer | None
    depends: tuple[tuple[int, int], ...]
    overlaps: bool
    tiles: tuple[tuple[Move, ...], ...]
    sizes: tuple[int, ...]
    one_sided: OneSided | None = None


class Link(NamedTuple):
    """One direction of a connection: the peer, the channel, and the messages that it carries in this launch."""

    peer: int
    channel: int
    messages: int


@dataclass(frozen=True)
class BlockPlan:
    """A threadblock: its steps, and its links as indices into the rank's lists (None: it has none)."""

    index: int
    send: int | None
    recv: int | None
    steps: tuple[StepPlan, ...]


@dataclass(frozen=True)
class RankPlan:
    """All that one rank does. ``message_elements`` is the largest message of any rank, in elements."""

    rank: int
    tiles: int
    blocks: tuple[BlockPlan, ...]
    sends: tuple[Link, ...]
    receives: tuple[Link, ...]
    scratch_elements: int
    message_elements: int


def moved(plan: RankPlan) -> int:
    """How many elements the steps of a rank move in a launch, sent, received or copied."""
    steps = [step for block in plan.blocks for step in block.steps]
    one_sided = (each.length for step in steps if step.one_sided for tile in step.one_sided.tiles for each in tile)
    return sum(move.length for step in steps for tile in step.tiles for move in tile) + sum(one_sided)


class Tiling(NamedTuple):
    """How a launch is cut: in ``tiles`` tiles of at most ``width`` elements of each chunk, the same on every rank."""

    tiles: int
    width: int


def tiling(algorithm: Algorithm, layout: ChunkLayout, itemsize: int, tile_bytes: int) -> Tiling:
    """Tiles so small that the step of most chunks sends at most ``tile_bytes`` (or one element of each chunk)."""
    most = max(1, tile_bytes // itemsize // int(algorithm.count.max(initial=1)))
    tiles = max(1, -(-layout.nominal // most))
    return Tiling(tiles, -(-layout.nominal // tiles))


def plan_rank(algorithm: Algorithm, layout: ChunkLayout, rank: int, itemsize: int, tile_bytes: int) -> RankPlan:
    """Plan one rank of a launch; O(chunks that the rank moves x tiles)."""
    return _Planner(algorithm, layout, rank, tiling(algorithm, layout, itemsize, tile_bytes)).plan()


def overlaps(algorithm: Algorithm, placement: Placement, step: Step) -> bool:
    """Whether a slot that a step writes overlaps another of its operands in part (not: is the same)."""
    c, places = algorithm.collective, list[Slot]()
    if step.count < 2:
        return False
    for remote in (*step.destinations, *step.sources):
        places.append(address(c, placement, remote.rank, remote.span.buffer, remote.span.index))
    return any(
        written[:2] == other[:2] and 0 < abs(written[2] - other[2]) < step.count
        for written in places[: len(step.destinations)]
        for other in places
    )


class _Planner:
    """Plans one rank, and counts the messages of its links on the way."""

    def __init__(self, algorithm: Algorithm, layout: ChunkLayout, rank: int, cut: Tiling) -> None:
        self.algorithm, self.layout, self.rank, self.cut = algorithm, layout, rank, cut
        self.sends: dict[tuple[int, int], int] = {}
        self.receives: dict[tuple[int, int], int] = {}

    def plan(self) -> RankPlan:
        a, cut = self.algorithm, self.cut
        blocks = tuple(self._block(block) for block in a.threadblocks(self.rank))
        scratch = a.scratch_chunks[self.rank] * self.layout.nominal
        largest = cut.width * int(a.count.max(initial=1))
        links = (_links(self.sends, cut.tiles), _links(self.receives, cut.tiles))
        return RankPlan(self.rank, cut.tiles, blocks, *links, scratch, largest)

    def _block(self, block: Threadblock) -> BlockPlan:
        steps = tuple(self._step(self.algorithm.step(number), block.channel) for number in block.steps)
        send = self._link(self.sends, block.send, block.channel, sum(step.op.sends for step in steps))
        recv = self._link(self.receives, block.recv, block.channel, sum(step.op.receives for step in steps))
        return BlockPlan(block.index, send, recv, steps)

    def _link(self, links: dict[tuple[int, int], int], peer: int | None, channel: int, messages: int) -> int | None:
        if peer is None or not messages:
            return None
        links[peer, channel] = links.get((peer, channel), 0) + messages
        return list(links).index((peer, channel))

    def _step(self, step: Step, channel: int) -> StepPlan:
        lengths = message_lengths(self.algorithm, self.layout, step.number)
        one_sided = self._one_sided(step, channel, lengths) if step.op.one_sided else None
        tiles = tuple(
            () if one_sided is not None else self._moves(step, lengths, tile) for tile in range(self.cut.tiles)
        )
        return StepPlan(
            step.op,
            None if step.source is None else step.source.buffer,
            None if step.destination is None else step.destination.buffer,
            tuple((threadblock, index + 1) for threadblock, index in step.depends),
            overlaps(self.algorithm, self.layout.placement, step),
            tiles,
            tuple(sum(move.length for move in moves) for moves in tiles),
            one_sided,
        )

    def _one_sided(self, step: Step, channel: int, lengths: tuple[int, ...]) -> OneSided:
        spans = (*step.sources, *step.destinations)
        return OneSided(
            str(step),
            step.peer,
            channel,
            tuple((remote.rank, remote.span.buffer) for remote in spans),
            len(step.sources),
            tuple(tuple(self._transfers(spans, lengths, tile)) for tile in range(self.cut.tiles)),
        )

    def _transfers(self, spans: tuple[RemoteSpan, ...], lengths: tuple[int, ...], tile: int) -> Iterator[Transfer]:
        for chunk, length in enumerate(lengths if spans else ()):
            low, high = (min(edge * self.cut.width, length) for edge in (tile, tile + 1))
            starts = (self.layout.slot(r.rank, r.span.buffer, r.span.index + chunk) + low for r in spans)
            if high > low:
                yield Transfer(tuple(starts), high - low)

    def _moves(self, step: Step, lengths: tuple[int, ...], tile: int) -> tuple[Move, ...]:
        width, moves, message = self.cut.width, list[Move](), 0
        for chunk, length in enumerate(lengths):
            low, high = min(tile * width, length), min((tile + 1) * width, length)
            source, destination = (
                -1 if span is None else self.layout.slot(self.rank, span.buffer, span.index + chunk) + low
                for span in (step.source, step.destination)
            )
            if high > low:
                _append(moves, Move(source, destination, message, high - low))
            message += high - low
        return tuple(moves)


def _append(moves: list[Move], move: Move) -> None:
    """Append a move, joined to the one before where both are neighbours on every side."""
    if moves:
        last = moves[-1]
        joined = [end < 0 or start + last.length == end for start, end in zip(last[:2], move[:2], strict=True)]
        if all(joined):
            moves[-1] = last._replace(length=last.length + move.length)
            return
    moves.append(move)


def _links(links: dict[tuple[int, int], int], tiles: int) -> tuple[Link, ...]:
    return tuple(Link(peer, channel, messages * tiles) for (peer, channel), messages in links.items())
