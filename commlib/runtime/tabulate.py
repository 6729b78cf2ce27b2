"""Tabulate: the RankTable of a launch, from an Algorithm and a layout. Runs at the first call of each new size.

What depends only on the algorithm is kept (``table_form``); the rest is arithmetic on whole columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from commlib.collectives import Placement
from commlib.errors import SpecError
from commlib.ir.algorithm import ONE_SIDED, RECEIVES, SENDS, Algorithm
from commlib.runtime.layout import ChunkLayout, chunk_lengths, slot_starts
from commlib.runtime.plan import overlaps
from commlib.runtime.table import MOVES, NONE, OPERAND, OWN_SCRATCH, RankTable, Rows
from commlib.runtime.table_form import Flags, Form, Ints, announced, channel_count, rank_form

LINE = 64
"""Scratch slots begin on a cache line, and the width of a tile is whole lines: ranks write next to each other."""
LEAST_TILE = 32 << 10
"""Bytes of a chunk in a tile below which more tiles cost more than the caches give: each has its synchronisations."""


class NotTabulable(SpecError):  # noqa: N818 (a refusal, named as such)
    """A table cannot express this launch, and why; the Python engine can run it. Equal on all ranks."""


@dataclass(frozen=True)
class TableLimits:
    """What the transport has room for, in bytes: a lane of scratch, a FIFO slot (``depth`` of them a connection).

    ``channels``: how many there are. So that a tile stays in the caches, 0 for no such bound: ``tile_bytes``, what one
    step of a program with scratch or messages should move in a tile at most; ``cache_bytes``, what the scratch of all
    ranks together should take in a tile, but for chunks of LEAST_TILE bytes.
    """

    lane_bytes: int
    slot_bytes: int
    depth: int
    channels: int
    tile_bytes: int = 0
    cache_bytes: int = 0


class Cut(NamedTuple):
    """How a launch is cut: ``tiles`` tiles of ``width`` elements of each chunk; ``pitch`` bytes for a scratch slot."""

    tiles: int
    width: int
    pitch: int


def tabulate(
    algorithm: Algorithm,
    layout: ChunkLayout,
    rank: int,
    itemsize: int,
    dtype: str,
    combine: str | None,
    limits: TableLimits,
    synchronizing: bool,
) -> RankTable:
    """The table of one rank; O(chunks that it moves), whatever the number of tiles.

    Args:
        layout: of this launch; ``padded`` layouts work on padded copies, whose slots are all nominal.
        itemsize, dtype, combine: bytes of an element, names of its type and of what reduces.
        synchronizing: what ``verify.synchronizing`` says.

    Raises:
        NotTabulable: no table can express the launch within these limits.
    """
    _refuse_overlaps(algorithm, layout.placement)
    cut = cut_launch(algorithm, layout, itemsize, limits)
    form = rank_form(algorithm, layout.placement, rank)
    lengths = chunk_lengths(algorithm, layout, form.part_number, form.part_chunk)
    offsets, strides = _offsets(form, layout, itemsize, cut)
    joined = _joined(form, lengths, offsets, itemsize) if cut.tiles == 1 else np.zeros(form.parts, dtype=bool)
    steps = form.steps.copy()
    steps["message"] = _message_sizes(form, lengths, itemsize, cut)
    moves, operands = _moves(form, lengths, joined, (offsets, strides))
    _point_to_moves(steps, form.part_row[(lengths > 0) & ~joined])
    return RankTable(
        rank,
        algorithm.ranks,
        steps,
        moves,
        operands,
        form.depends,
        form.blocks,
        form.sends,
        form.receives,
        _width(cut, moves),
        cut.tiles,
        itemsize,
        dtype,
        combine if form.combines else None,
        *algorithm.touches_peers_tensors,
        synchronizing,
        form.threadblocks,
    )


def cut_launch(algorithm: Algorithm, layout: ChunkLayout, itemsize: int, limits: TableLimits) -> Cut:
    """The widest tiles with which every rank's scratch fits a lane and every message a slot; equal on all ranks.

    Raises:
        NotTabulable: not even the narrowest fit, or there are too few channels.
    """
    needs = _needs(algorithm)
    if needs.channels > limits.channels:
        raise NotTabulable(
            f"{algorithm.name} uses channel {needs.channels - 1}; this transport has {limits.channels} channels",
            channel=needs.channels - 1,
        )
    room = _room(needs, limits)
    whole = layout.nominal * itemsize
    if room is None or whole <= room:
        return Cut(1, max(1, layout.nominal), _lines(whole))
    width = (room // LINE * LINE or room) // itemsize
    if width < 1:
        raise NotTabulable(
            f"{algorithm.name}: scratch of {needs.scratch} chunks and messages of {needs.message} do not fit "
            f"{limits.lane_bytes} and {limits.slot_bytes} bytes even at one element a chunk",
            bytes=itemsize,
        )
    tiles = -(-layout.nominal // width)
    even = _lines(-(-layout.nominal // tiles) * itemsize) // itemsize
    width = min(width, even)
    return Cut(-(-layout.nominal // width), width, _lines(width * itemsize))


@lru_cache(maxsize=256)
def _refuse_overlaps(algorithm: Algorithm, placement: Placement) -> None:
    """Refuse a one-sided step in which a destination overlaps another operand in part, as it may in place."""
    if placement is Placement.OUT:
        return  # the Algorithm's own checks have seen to it
    for number in np.flatnonzero(ONE_SIDED[algorithm.op] & (algorithm.count > 1)).tolist():
        step = algorithm.step(number)
        if overlaps(algorithm, placement, step):
            raise NotTabulable(
                f"{algorithm.name}: rank {step.rank} threadblock {step.threadblock} step {step.index} ({step}) "
                "has operands that overlap in part in place",
                rank=step.rank,
                threadblock=step.threadblock,
                step=step.index,
            )


class _Needs(NamedTuple):
    """Of a program: its most scratch chunks on a rank, and on all, chunks in a message, in a step, and channels (one
    of them for announcements, if it has any)."""

    scratch: int
    all_scratch: int
    message: int
    step: int
    channels: int


@lru_cache(maxsize=256)
def _needs(algorithm: Algorithm) -> _Needs:
    moving = SENDS[algorithm.op] | RECEIVES[algorithm.op]
    return _Needs(
        max(algorithm.scratch_chunks),
        sum(algorithm.scratch_chunks),
        int(algorithm.count[moving].max(initial=0)),
        int(algorithm.count.max(initial=1)),
        channel_count(algorithm) + (announced(algorithm) is not None),
    )


def _room(needs: _Needs, limits: TableLimits) -> int | None:
    """The bytes that a chunk may have in a tile; None for any."""
    rooms = []
    if needs.scratch:
        rooms.append(limits.lane_bytes // needs.scratch // LINE * LINE)
    if needs.message:
        rooms.append(limits.slot_bytes // needs.message)
    if rooms and limits.tile_bytes:
        rooms.append(max(limits.tile_bytes // needs.step, LINE))
    if needs.scratch and limits.cache_bytes:
        rooms.append(max(limits.cache_bytes // needs.all_scratch, min(LEAST_TILE, limits.cache_bytes)))
    return min(rooms, default=None)


def _lines(size: int) -> int:
    return -(-size // LINE) * LINE


def _offsets(form: Form, layout: ChunkLayout, itemsize: int, cut: Cut) -> tuple[Ints, Ints]:
    """(offset, stride) of each operand, in bytes."""
    message, scratch = form.rank == NONE, form.buffer == OWN_SCRATCH
    users = ~(message | scratch)
    offsets = np.where(scratch, form.index * cut.pitch, form.index * (cut.width * itemsize))
    offsets[users] = slot_starts(layout, form.rank[users], form.buffer[users], form.index[users]) * itemsize
    return offsets, np.where(users, cut.width * itemsize, 0)


def _joined(form: Form, lengths: Ints, offsets: Ints, itemsize: int) -> Flags:
    """Whether each part goes on, with all its operands, where the part before it in its step ends; parts of a step
    have the same bases."""
    if not form.part_chunk.any():
        return np.zeros(form.parts, dtype=bool)
    operands = np.diff(form.part_low)
    part = np.repeat(np.arange(form.parts), operands)
    before = np.maximum(np.arange(len(part)) - operands[part - 1], 0)
    near = offsets == offsets[before] + lengths[part - 1] * itemsize
    joined = np.logical_and.reduceat(near, form.part_low[:-1]) & ~form.part_apart
    joined[1:] &= (form.part_row[1:] == form.part_row[:-1]) & (lengths[:-1] > 0)
    joined[:1] = False
    return joined


def _moves(form: Form, lengths: Ints, joined: Flags, places: tuple[Ints, Ints]) -> tuple[Rows, Rows]:
    """The MOVES and OPERAND rows: those of parts that are neither empty nor joined to the one before."""
    kept = (lengths > 0) & ~joined
    operands = np.diff(form.part_low)[kept]
    high = np.cumsum(operands)
    moves = np.zeros(len(operands), dtype=MOVES)
    moves["source_low"] = high - operands
    moves["destination_low"] = high - operands + (form.part_destination - form.part_low[:-1])[kept]
    moves["high"] = high
    if len(moves):
        moves["length"] = np.add.reduceat(np.where(kept | joined, lengths, 0), np.flatnonzero(kept))
    chosen = np.repeat(kept, np.diff(form.part_low))
    rows = np.zeros(len(form.base[chosen]), dtype=OPERAND)
    rows["base"] = form.base[chosen]
    rows["offset"], rows["stride"] = (column[chosen] for column in places)
    return moves, rows


def _point_to_moves(steps: Rows, rows: Ints) -> None:
    """Tell each step which moves are its own; ``rows`` is the step of each move, in order."""
    steps["move_low"] = np.searchsorted(rows, np.arange(len(steps)))
    steps["move_high"] = np.searchsorted(rows, np.arange(1, len(steps) + 1))


def _width(cut: Cut, moves: Rows) -> int:
    """The table's width: no move is cut in the only tile, neither one that was joined from several."""
    return cut.width if cut.tiles > 1 else int(moves["length"].max(initial=cut.width))


def _message_sizes(form: Form, lengths: Ints, itemsize: int, cut: Cut) -> Ints:
    """The bytes of each step's message: up to the end of its last chunk in the first, fullest tile."""
    ends = (form.part_chunk * cut.width + np.minimum(lengths, cut.width)) * itemsize
    sizes = np.zeros(len(form.steps), dtype=np.int64)
    np.maximum.at(sizes, form.part_row, np.where(lengths > 0, ends, 0))
    return np.where((form.steps["send"] != NONE) | (form.steps["receive"] != NONE), sizes, 0)
