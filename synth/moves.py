"""Moves: a schedule in terms of its collective: which chunk goes from whom to whom, when, and whether it is added.

Schedules of problems know items and links, and those that reduce are even found backwards. Moves are what lowering,
pictures and pricing read: forward in time, on the real links, for collectives that copy, that reduce, and for
allreduce, which does both. What travels is a *parcel*: a value that begins as contributions of some ranks and ends,
complete, in output slots of some ranks.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from commlib.collectives import Collective
from commlib.topology import CostTable
from synth.errors import ScheduleError
from synth.symmetry import Ints

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Parcel:
    """A value that travels: the contributions of ``sources``, to be complete in the output slots of ``slots``.

    Both map a rank to chunk indices, of its input and of its output. A parcel with one contribution is a chunk that
    is copied, one with several is a sum. ``size`` is its size class.
    """

    sources: Mapping[int, tuple[int, ...]] = field(repr=False)
    slots: Mapping[int, tuple[int, ...]] = field(repr=False)
    size: int = 0


class Move(NamedTuple):
    """Parcel ``parcel`` goes from ``source`` to ``target``; ``reduces``: it is added to what is there."""

    parcel: int
    source: int
    target: int
    reduces: bool


_Flight = tuple[int, int, Move, int]
"""Arrival, place in the order, move, and what it carries, as a bit set."""


@dataclass(frozen=True, eq=False)
class Moves:
    """M timed moves, shape (M,) each, times in ticks; ordered by start, and where links cost nothing by dependence.

    A copy replaces what its target has of the parcel, a reducing move is added to it. Both take what the source has
    of the parcel when they start. ``costs`` are those of the links in the direction of the moves.
    """

    collective: Collective
    costs: CostTable = field(repr=False)
    parcels: tuple[Parcel, ...] = field(repr=False)
    start: Ints = field(repr=False)
    parcel: Ints = field(repr=False)
    source: Ints = field(repr=False)
    target: Ints = field(repr=False)
    reduces: Bools = field(repr=False)

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def size(self) -> Ints:
        """The size class of each move's parcel."""
        return np.array([parcel.size for parcel in self.parcels], dtype=np.int64)[self.parcel]

    @cached_property
    def link(self) -> Ints:
        """The number of each move's link in ``costs``; -1 where there is none."""
        return links_of(self.costs, self.source, self.target)

    @cached_property
    def arrival(self) -> Ints:
        """When each move has arrived."""
        arrival: Ints = self.start + self.costs.latency[self.link, self.size]
        return arrival

    @property
    def ticks(self) -> int:
        """The last arrival."""
        return int(self.arrival.max(initial=0))

    @property
    def seconds(self) -> float:
        """The last arrival, in seconds."""
        return self.costs.seconds(self.ticks)

    @cached_property
    def steps(self) -> int:
        """The longest chain of moves of one parcel, each of which needs the one before. O(M)."""
        depth: dict[tuple[int, int], int] = {}
        longest = 0
        for move in self.rows():
            reached = depth.get((move.parcel, move.source), 0) + 1
            place = (move.parcel, move.target)
            depth[place] = max(reached, depth.get(place, 0) if move.reduces else 0)
            longest = max(longest, reached)
        return longest

    def rows(self) -> Iterator[Move]:
        """The moves as records, in order."""
        columns = (self.parcel, self.source, self.target, self.reduces)
        return map(Move, *(column.tolist() for column in columns))

    def text(self) -> str:
        """One line per move: ``start -> arrival  parcel p: source -> target``, with ``+`` where it is added."""
        times = zip(self.start.tolist(), self.arrival.tolist(), self.rows(), strict=True)
        return "".join(
            f"{start} -> {arrival}  parcel {move.parcel}: {move.source} -> {move.target}{' +' * move.reduces}\n"
            for start, arrival, move in times
        )


def ends(costs: CostTable) -> list[tuple[int, int]]:
    """(source, target) of each link, as plain integers."""
    return list(zip(costs.source.tolist(), costs.target.tolist(), strict=True))


def links_of(costs: CostTable, source: Ints, target: Ints) -> Ints:
    """The number of each link ``source -> target`` in the cost table; -1 where there is none. O(M log links)."""
    if not costs.links:
        return np.full(len(source), -1, dtype=np.int64)
    there, asked = costs.source * costs.ranks + costs.target, source * costs.ranks + target
    order = np.argsort(there, kind="stable")
    link = order[np.minimum(np.searchsorted(there[order], asked), costs.links - 1)]
    return np.where(there[link] == asked, link, -1)


Rows = Sequence[Move] | Ints
"""Moves as records, or as rows of an array of shape (M, 4), which a million of them should be."""


def to_moves(rows: Ints) -> list[Move]:
    """Rows of an array as records."""
    return [Move(parcel, source, target, bool(reduces)) for parcel, source, target, reduces in rows.tolist()]


def timed(
    collective: Collective, costs: CostTable, parcels: tuple[Parcel, ...], start: Sequence[int] | Ints, rows: Rows
) -> Moves:
    """Moves from records that are in an order of dependences, and their starts. O(M log M)."""
    starts = np.asarray(start, dtype=np.int64)
    order = np.argsort(starts, kind="stable")
    columns = np.asarray(rows, dtype=np.int64).reshape(-1, 4)[order]
    return Moves(
        collective, costs, parcels, starts[order], columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3] > 0
    )


def check_moves(moves: Moves) -> None:
    """Simulate moves step by step and insist that they do what their collective wants; the definition of "right".

    Knows sets of contributions and resources, and nothing of how the moves were found. O(M log M), and set operations.

    Raises:
        ScheduleError: a move over a link that is not there, of nothing, of a contribution that is there already, or
            while a resource is taken; or an output that does not hold what the collective wants.
    """
    _require_links(moves)
    _require_free(moves)
    _require_complete(moves, _final_values(moves))


def _require_links(moves: Moves) -> None:
    missing = np.flatnonzero(moves.link < 0)
    if len(missing):
        source, target = int(moves.source[missing[0]]), int(moves.target[missing[0]])
        raise ScheduleError(f"there is no link {source} -> {target}", link=(source, target))


def _require_free(moves: Moves) -> None:
    costs = moves.costs
    taken: dict[int, list[tuple[int, int, int]]] = {}
    rows = zip(moves.start.tolist(), moves.link.tolist(), moves.size.tolist(), moves.parcel.tolist(), strict=True)
    for start, link, size, parcel in rows:
        for use in range(costs.use_start[link], costs.use_start[link + 1]):
            busy = (start, start + int(costs.use_ticks[use, size]), parcel)
            taken.setdefault(int(costs.use_resource[use]), []).append(busy)
    for resource, unordered in taken.items():
        intervals = sorted(interval for interval in unordered if interval[1] > interval[0])
        for (_, end, _), (start, _, parcel) in pairwise(intervals):
            if start < end:
                name = costs.resource_names[resource]
                raise ScheduleError(f"{name} is taken when parcel {parcel} wants it at tick {start}", resource=name)


def _final_values(moves: Moves) -> dict[tuple[int, int], int]:
    """What each (parcel, rank) holds in the end, as a bit set over ``_contributions`` of the parcel."""
    held: dict[tuple[int, int], int] = {}
    for number, parcel in enumerate(moves.parcels):
        for bit, (rank, _) in enumerate(_contributions(parcel)):
            held[number, rank] = held.get((number, rank), 0) | 1 << bit
    flying: list[_Flight] = []
    times = zip(moves.start.tolist(), moves.arrival.tolist(), moves.rows(), strict=True)
    for place, (start, arrival, move) in enumerate(times):
        _land(held, flying, start)
        value = held.get((move.parcel, move.source))
        if value is None or start < 0:
            raise ScheduleError(
                f"parcel {move.parcel} leaves rank {move.source} for {move.target} at tick {start}, before it is there",
                parcel=move.parcel,
                rank=move.source,
            )
        heapq.heappush(flying, (arrival, place, move, value))
    _land(held, flying, moves.ticks)
    return held


def _contributions(parcel: Parcel) -> list[tuple[int, int]]:
    return [(rank, index) for rank, indices in sorted(parcel.sources.items()) for index in indices]


def _land(held: dict[tuple[int, int], int], flying: list[_Flight], now: int) -> None:
    """Let what has arrived by ``now`` take effect, in the order of arrival."""
    while flying and flying[0][0] <= now:
        _, _, move, value = heapq.heappop(flying)
        there = held.get((move.parcel, move.target), 0) if move.reduces else 0
        if there & value:
            raise ScheduleError(
                f"rank {move.target} has a contribution to parcel {move.parcel} already that {move.source} brings",
                parcel=move.parcel,
                rank=move.target,
            )
        held[move.parcel, move.target] = there | value


def _require_complete(moves: Moves, held: dict[tuple[int, int], int]) -> None:
    collective = moves.collective
    placed: dict[tuple[int, int], frozenset[tuple[int, int]]] = {}
    for number, parcel in enumerate(moves.parcels):
        names = _contributions(parcel)
        whole, everything = frozenset(names), (1 << len(names)) - 1
        for rank, indices in parcel.slots.items():
            complete = held.get((number, rank)) == everything
            placed.update({(rank, index): whole for index in indices if complete})
    for rank in range(collective.ranks):
        for index in range(collective.output_chunks(rank)):
            wanted = collective.expected(rank, index)
            if wanted is not None and placed.get((rank, index)) != wanted:
                raise ScheduleError(
                    f"output chunk {index} of rank {rank} does not get what {collective.name} wants there",
                    rank=rank,
                    chunk=index,
                )
