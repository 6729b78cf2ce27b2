"""A pure interpreter of RankTables: all ranks in one thread, steps interleaved at random, memory as numpy bytes.

It knows tables and nothing else: what it computes is compared with the reference executor of Algorithms.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from commlib.reductions import Combine
from commlib.runtime.kernels import NUMPY_COMBINES
from commlib.runtime.table import (
    MESSAGE_IN,
    MESSAGE_OUT,
    MOVE,
    NONE,
    OWN_INPUT,
    OWN_OUTPUT,
    OWN_SCRATCH,
    PEERS,
    SIGNAL,
    WAIT,
    RankTable,
)


@dataclass
class Place:
    """Where a threadblock is."""

    block: int
    row: int


@dataclass
class Rank:
    """One rank at work in its tile."""

    table: RankTable
    memory: dict[int, np.ndarray]
    tile: int = -1
    places: list[Place] = field(default_factory=list)
    signals: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    waited: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))


class TableMachine:
    """One or several calls of the tables of all ranks.

    ``inputs`` and ``outputs`` are byte arrays that a rank's tensors are (in place: views of one span). Scratch and
    unused message room are filled with noise; what lies outside a lane or slot cannot be reached.
    """

    def __init__(self, tables: Sequence[RankTable], lane: int, slot: int, depth: int, seed: int) -> None:
        self.random, self.depth, self.slot = random.Random(seed), depth, slot
        self.noise = np.random.default_rng(seed)
        self.tables, self.lane = tables, lane
        self.steps = [_records(table.steps) for table in tables]
        self.moves = [_records(table.moves) for table in tables]
        self.depends = [table.depends.tolist() for table in tables]
        self.blocks = [table.blocks.tolist() for table in tables]
        self.operands = [table.operands.tolist() for table in tables]
        self.scratch = [[self._noise(lane), self._noise(lane)] for _ in tables]
        self.done = [0] * len(tables)
        self.fifos: dict[tuple[int, int, int], deque[np.ndarray]] = defaultdict(deque)
        self.signals: dict[tuple[int, int, int], int] = defaultdict(int)
        self.waits: dict[tuple[int, int, int], int] = defaultdict(int)

    def _noise(self, size: int) -> np.ndarray:
        return self.noise.integers(0, 120, size, dtype=np.uint8)

    def call(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """Run every table once on these tensors; ends when nothing moves any more, which must be the end."""
        self.first = min(self.done)
        assert self.done == [self.first] * len(self.tables), "between calls all ranks have done the same epochs"
        self.inputs, self.outputs = inputs, outputs
        self.ranks = [Rank(table, {}) for table in self.tables]
        while True:
            able = [work for rank in range(len(self.ranks)) for work in self._able(rank)]
            if not able:
                break
            self._do(*self.random.choice(able))
        ended = [self.done[rank] - self.first == table.tiles for rank, table in enumerate(self.tables)]
        assert all(ended), f"stuck: {[rank.places for rank in self.ranks]}"

    def _able(self, rank: int) -> list[tuple[int, Place | None]]:
        work = self.ranks[rank]
        if work.tile == -1 or (not work.places and work.tile + 1 < work.table.tiles):
            return [(rank, None)] if self._may_enter(rank) else []
        return [(rank, place) for place in work.places if self._ready(rank, place)]

    def _may_enter(self, rank: int) -> bool:
        epoch = self.first + self.ranks[rank].tile + 2
        if self.tables[rank].synchronizing:
            return True
        return all(done >= epoch - 2 for done in self.done)

    def _ready(self, rank: int, place: Place) -> bool:
        step = self.steps[rank][place.row]
        for block, count in self.depends[rank][step["depend_low"] : step["depend_high"]]:
            if self._finished(rank, block) < count:
                return False
        if step["kind"] == WAIT:
            key = (int(step["peer"]), rank, int(step["channel"]))
            return self.signals[key] > self.waits[key]
        if step["receive"] != NONE and not self.fifos[self._incoming(rank, step)]:
            return False
        return step["send"] == NONE or len(self.fifos[self._outgoing(rank, step)]) < self.depth

    def _finished(self, rank: int, block: int) -> int:
        low, high = self.blocks[rank][block]
        at = [place.row for place in self.ranks[rank].places if place.block == block]
        return int(at[0] - low if at else high - low)

    def _incoming(self, rank: int, step: dict[str, int]) -> tuple[int, int, int]:
        peer, channel = self.tables[rank].receives[step["receive"]]
        return int(peer), rank, int(channel)

    def _outgoing(self, rank: int, step: dict[str, int]) -> tuple[int, int, int]:
        peer, channel = self.tables[rank].sends[step["send"]]
        return rank, int(peer), int(channel)

    def _do(self, rank: int, place: Place | None) -> None:
        work = self.ranks[rank]
        if place is None:
            work.tile += 1
            work.places = [Place(block, int(low)) for block, (low, _) in enumerate(self.blocks[rank])]
        else:
            self._step(rank, self.steps[rank][place.row])
            place.row += 1
            if place.row == self.blocks[rank][place.block][1]:
                work.places.remove(place)
        if not work.places:
            self.done[rank] += 1

    def _step(self, rank: int, step: dict[str, int]) -> None:
        peer, channel = int(step["peer"]), int(step["channel"])
        if step["kind"] == SIGNAL:
            self.signals[rank, peer, channel] += 1
        elif step["kind"] == WAIT:
            self.waits[peer, rank, channel] += 1
        elif step["kind"] == MOVE:
            self._move(rank, step)

    def _move(self, rank: int, step: dict[str, int]) -> None:
        incoming = self.fifos[self._incoming(rank, step)].popleft() if step["receive"] != NONE else None
        if incoming is not None:
            assert len(incoming) == step["message"], "both ends agree on a message's size"
        outgoing = self._noise(int(step["message"])) if step["send"] != NONE else None
        assert outgoing is None or len(outgoing) <= self.slot
        for move in self.moves[rank][step["move_low"] : step["move_high"]]:
            self._one(rank, move, incoming, outgoing)
        if outgoing is not None:
            self.fifos[self._outgoing(rank, step)].append(outgoing)

    def _one(self, rank: int, move: dict[str, int], incoming: np.ndarray | None, outgoing: np.ndarray | None) -> None:
        table, tile = self.tables[rank], self.ranks[rank].tile
        length = min(max(int(move["length"]) - tile * table.width, 0), table.width)
        views = []
        for base, _, offset, stride in self.operands[rank][move["source_low"] : move["high"]]:
            memory = {MESSAGE_IN: incoming, MESSAGE_OUT: outgoing}.get(base)
            memory = self._base(rank, base) if memory is None else memory
            low = offset + tile * stride
            part = memory[low : low + length * table.itemsize]
            assert low >= 0
            assert len(part) == length * table.itemsize or not length, "every operand lies in its memory"
            views.append(part.view(table.dtype))
        sources = int(move["destination_low"] - move["source_low"])
        _refuse_overlaps(views)
        if length:
            combined = reduce(combine_function(table.combine), views[:sources])
            for destination in views[sources:]:
                destination[:] = combined

    def _base(self, rank: int, base: int) -> np.ndarray:
        owner, buffer = divmod(base - PEERS, 3) if base >= PEERS else (rank, base)
        assert base < PEERS or owner != rank, "a rank's own memory has its own bases"
        lane = (self.first + self.ranks[rank].tile + 1) % 2
        return {
            OWN_INPUT: self.inputs[owner],
            OWN_OUTPUT: self.outputs[owner],
            OWN_SCRATCH: self.scratch[owner][lane],
        }[buffer]


def _records(rows: np.ndarray) -> list[dict[str, int]]:
    return [dict(zip(rows.dtype.names, row, strict=True)) for row in rows.tolist()]


def combine_function(name: Combine | None):
    """The function of two arrays of a combine; None is called by nothing."""
    return NUMPY_COMBINES["sum" if name is None else name]


def _refuse_overlaps(views: list[np.ndarray]) -> None:
    """Operands of one move are the same memory or have nothing in common."""
    for index, view in enumerate(views):
        for other in views[:index]:
            assert not np.may_share_memory(view, other) or view.ctypes.data == other.ctypes.data
