"""RankPlan: what one rank does in a launch, with every element span resolved; planned once per shape, then reused.

A launch whose chunks are larger than a tile repeats the whole program for each tile. A step whose chunks do not fit
one message together is cut into *pieces*, each receiving one message and then sending one: the order that the
verifier proves free of deadlock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import RECEIVES, SENDS, Algorithm, Op, Step, Threadblock
from commlib.runtime.flow import address
from commlib.runtime.layout import ChunkLayout, message_lengths


class Move(NamedTuple):
    """``length`` elements at ``source``, ``destination`` and, in the message, ``message`` (element offsets)."""

    source: int
    destination: int
    message: int
    length: int


@dataclass(frozen=True)
class Piece:
    """A step, or the part of a step that is one message. ``tiles[t]`` are its moves, ``sizes[t]`` their elements.

    ``depends`` are (threadblock, steps it must have finished in this tile); ``ends_step`` marks a step's last piece;
    ``overlaps``: source and destination overlap in part, so that all must be read before anything is written.
    """

    op: Op
    step: int
    source: Buffer | None
    destination: Buffer | None
    depends: tuple[tuple[int, int], ...]
    ends_step: bool
    overlaps: bool
    tiles: tuple[tuple[Move, ...], ...]
    sizes: tuple[int, ...]


class Link(NamedTuple):
    """One direction of a connection: the peer, the channel, and the messages that it carries in this launch."""

    peer: int
    channel: int
    messages: int


@dataclass(frozen=True)
class BlockPlan:
    """A threadblock: its pieces, and its links as indices into the rank's lists (None: it has none)."""

    index: int
    send: int | None
    recv: int | None
    pieces: tuple[Piece, ...]
    steps: int


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


@dataclass(frozen=True)
class Tiling:
    """How a launch is cut: ``tiles`` tiles of at most ``width`` elements of each chunk, ``group`` chunks a message.

    It depends on nothing that differs between ranks, so that both ends of a connection cut alike.
    """

    tiles: int
    width: int
    group: int


def tiling(algorithm: Algorithm, layout: ChunkLayout, itemsize: int, tile_bytes: int) -> Tiling:
    """Tiles of at most ``tile_bytes`` bytes; messages too, unless one must be whole."""
    tile_elements = max(1, tile_bytes // itemsize)
    tiles = max(1, -(-layout.nominal // tile_elements))
    width = -(-layout.nominal // tiles)
    group = max(1, tile_elements // max(1, width))
    return Tiling(tiles, width, max(group, _largest_overlap(algorithm, layout.placement)))


def plan_rank(algorithm: Algorithm, layout: ChunkLayout, rank: int, itemsize: int, tile_bytes: int) -> RankPlan:
    """Plan one rank of a launch; O(chunks that the rank moves x tiles)."""
    return _Planner(algorithm, layout, rank, tiling(algorithm, layout, itemsize, tile_bytes)).plan()


def overlaps(algorithm: Algorithm, placement: Placement, step: Step) -> bool:
    """Whether a step's source and destination overlap in part (not: are the same slots)."""
    if step.source is None or step.destination is None:
        return False
    c = algorithm.collective
    source, destination = (
        address(c, placement, step.rank, span.buffer, span.index) for span in (step.source, step.destination)
    )
    return source[1] == destination[1] and 0 < abs(source[2] - destination[2]) < step.count


def _largest_overlap(algorithm: Algorithm, placement: Placement) -> int:
    """The largest count among received steps whose source and destination overlap in part: not to be cut."""
    both = (algorithm.op == Op.RECV_REDUCE_COPY) | (algorithm.op == Op.RECV_REDUCE_COPY_SEND)
    steps = (algorithm.step(int(number)) for number in np.flatnonzero(both & (algorithm.count > 1)))
    return max((step.count for step in steps if overlaps(algorithm, placement, step)), default=0)


class _Planner:
    def __init__(self, algorithm: Algorithm, layout: ChunkLayout, rank: int, cut: Tiling) -> None:
        self.algorithm, self.layout, self.rank, self.cut = algorithm, layout, rank, cut
        self.sends: dict[tuple[int, int], int] = {}
        self.receives: dict[tuple[int, int], int] = {}

    def plan(self) -> RankPlan:
        a, cut = self.algorithm, self.cut
        blocks = tuple(self._block(block) for block in a.threadblocks(self.rank))
        largest = int(a.count.max(initial=1))
        return RankPlan(
            self.rank,
            cut.tiles,
            blocks,
            _links(self.sends, cut.tiles),
            _links(self.receives, cut.tiles),
            a.scratch_chunks[self.rank] * self.layout.nominal,
            cut.width * min(cut.group, largest),
        )

    def _block(self, block: Threadblock) -> BlockPlan:
        pieces = tuple(piece for number in block.steps for piece in self._pieces(self.algorithm.step(number)))
        links = (
            self._link(self.sends, block.send, block.channel, SENDS, pieces),
            self._link(self.receives, block.recv, block.channel, RECEIVES, pieces),
        )
        return BlockPlan(block.index, *links, pieces, len(block.steps))

    def _link(
        self,
        links: dict[tuple[int, int], int],
        peer: int | None,
        channel: int,
        uses: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
        pieces: tuple[Piece, ...],
    ) -> int | None:
        messages = sum(bool(uses[piece.op]) for piece in pieces)
        if peer is None or not messages:
            return None
        links[peer, channel] = links.get((peer, channel), 0) + messages
        return list(links).index((peer, channel))

    def _pieces(self, step: Step) -> list[Piece]:
        lengths = message_lengths(self.algorithm, self.layout, step.number)
        is_message = step.op.receives or step.op.sends
        group = self.cut.group if is_message else max(1, step.count)
        starts = range(0, max(1, step.count), group)
        return [self._piece(step, lengths, start, min(step.count, start + group)) for start in starts]

    def _piece(self, step: Step, lengths: tuple[int, ...], first: int, end: int) -> Piece:
        tiles = tuple(self._moves(step, lengths, first, end, tile) for tile in range(self.cut.tiles))
        return Piece(
            step.op,
            step.index,
            None if step.source is None else step.source.buffer,
            None if step.destination is None else step.destination.buffer,
            tuple((threadblock, index + 1) for threadblock, index in step.depends) if first == 0 else (),
            end == step.count,
            overlaps(self.algorithm, self.layout.placement, step),
            tiles,
            tuple(sum(move.length for move in moves) for moves in tiles),
        )

    def _moves(self, step: Step, lengths: tuple[int, ...], first: int, end: int, tile: int) -> tuple[Move, ...]:
        width, moves, message = self.cut.width, list[Move](), 0
        for chunk in range(first, end):
            low, high = min(tile * width, lengths[chunk]), min((tile + 1) * width, lengths[chunk])
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
