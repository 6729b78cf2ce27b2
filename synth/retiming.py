"""Retiming: starts for moves that are given in an order of dependences; in that order, or by list scheduling.

A move needs every earlier move of its parcel that reaches its source: what a rank passes on is all it has by then.
Slots are the resources of the cost table; a move holds each for its ticks, and has arrived after the latency.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from commlib.collectives import Collective
from commlib.topology import CostTable
from synth.errors import ScheduleError
from synth.moves import Move, Moves, Parcel, Rows, ends, links_of, timed, to_moves
from synth.waiting import Queue

LISTED = 60_000
"""Moves up to which list scheduling is tried: beyond, its queue is too long, and orders that engines made are good."""


@dataclass(frozen=True)
class Prices:
    """What each link costs, as plain integers: ``latency[size][link]``, ``uses[size][link]``.

    Uses of no ticks are left out: a move neither waits for such a resource nor keeps it.
    """

    number: dict[tuple[int, int], int]
    latency: list[list[int]]
    uses: list[list[list[tuple[int, int]]]]

    @classmethod
    def of(cls, costs: CostTable) -> Prices:
        """The prices of a cost table. O(uses x sizes)."""
        number = {pair: link for link, pair in enumerate(ends(costs))}
        resource, start = costs.use_resource.tolist(), costs.use_start.tolist()
        latency, uses = [], []
        for size in range(len(costs.sizes)):
            pairs = list(zip(resource, costs.use_ticks[:, size].tolist(), strict=True))
            uses.append([[pair for pair in pairs[a:b] if pair[1]] for a, b in pairwise(start)])
            latency.append(costs.latency[:, size].tolist())
        return cls(number, latency, uses)

    def of_move(self, move: Move, size: int) -> tuple[int, list[tuple[int, int]]]:
        """(latency, uses) of a move of a parcel of that size class.

        Raises:
            ScheduleError: there is no such link.
        """
        link = self.number.get((move.source, move.target))
        if link is None:
            raise no_link(move.source, move.target)
        return self.latency[size][link], self.uses[size][link]


def no_link(source: int, target: int) -> ScheduleError:
    """The error about a move over a link that is not there."""
    return ScheduleError(f"there is no link {source} -> {target}", link=(source, target))


def in_sequence(collective: Collective, costs: CostTable, parcels: tuple[Parcel, ...], rows: Rows) -> Moves:
    """Every move as early as possible, each resource serving them in the order of ``rows``. O(M log M).

    Raises:
        ScheduleError: a move over a link that is not there.
    """
    columns = np.asarray(rows, dtype=np.int64).reshape(-1, 4)
    parcel, source, target = columns[:, 0], columns[:, 1], columns[:, 2]
    size = np.array([each.size for each in parcels], dtype=np.int64)[parcel]
    link = links_of(costs, source, target)
    if (link < 0).any():
        missing = int(np.argmax(link < 0))
        raise no_link(int(source[missing]), int(target[missing]))
    uses = [each for of_size in Prices.of(costs).uses for each in of_size]
    taken = map(uses.__getitem__, (size * costs.links + link).tolist())
    places = (parcel * costs.ranks + source).tolist(), (parcel * costs.ranks + target).tolist()
    starts = _earliest(zip(*places, costs.latency[link, size].tolist(), taken, strict=True), len(costs.resource_names))
    return timed(collective, costs, parcels, starts, columns)


def _earliest(jobs: Iterable[tuple[int, int, int, list[tuple[int, int]]]], resources: int) -> list[int]:
    """The start of each job: (place it needs, place it serves, latency, (resource, ticks) that it takes)."""
    free, there, starts = [0] * resources, dict[int, int](), []
    for needed, served, latency, uses in jobs:
        start = there.get(needed, 0)
        for resource, _ in uses:
            if free[resource] > start:
                start = free[resource]
        for resource, ticks in uses:
            free[resource] = start + ticks
        if there.get(served, 0) < start + latency:
            there[served] = start + latency
        starts.append(start)
    return starts


def listed(collective: Collective, costs: CostTable, parcels: tuple[Parcel, ...], rows: Sequence[Move]) -> Moves:
    """List scheduling: of all moves that can start, the earliest; then the one with the longest way to go.

    ``rows`` give the dependences only. O(M log M) and again each time that a move waited for more than one resource.

    Raises:
        ScheduleError: a move over a link that is not there.
    """
    work = _Work.of(costs, parcels, rows)
    queue = Queue(work.uses)
    ready = [0] * len(rows)
    starts = [0] * len(rows)
    waiting = list(work.needs)
    for m in range(len(rows)):
        if not waiting[m]:
            queue.push(0, -work.tail[m], m)
    order = []
    while (following := queue.pop()) is not None:
        at, m = following
        starts[m] = at
        order.append(m)
        for follower in work.after[m]:
            ready[follower] = max(ready[follower], at + work.latency[m])
            waiting[follower] -= 1
            if not waiting[follower]:
                queue.push(ready[follower], -work.tail[follower], follower)
    return timed(collective, costs, parcels, [starts[m] for m in order], [rows[m] for m in order])


def better(one: Moves, other: Moves) -> Moves:
    """The shorter one; the first when they are equal."""
    return other if other.ticks < one.ticks else one


def shortest(collective: Collective, costs: CostTable, parcels: tuple[Parcel, ...], rows: Rows) -> Moves:
    """The shorter of the given order and list scheduling (which is tried up to ``LISTED`` moves)."""
    found = in_sequence(collective, costs, parcels, rows)
    if len(rows) > LISTED:
        return found
    records = to_moves(rows) if isinstance(rows, np.ndarray) else rows
    return better(found, listed(collective, costs, parcels, records))


@dataclass(frozen=True)
class _Work:
    """Moves as jobs: ``after[m]`` need m, ``needs[m]`` counts what m needs, ``tail[m]`` is the way from its start."""

    latency: list[int]
    uses: list[list[tuple[int, int]]]
    after: list[list[int]]
    needs: list[int]
    tail: list[int]

    @classmethod
    def of(cls, costs: CostTable, parcels: tuple[Parcel, ...], rows: Sequence[Move]) -> _Work:
        prices = Prices.of(costs)
        priced = [prices.of_move(move, parcels[move.parcel].size) for move in rows]
        into: dict[tuple[int, int], list[int]] = {}
        after: list[list[int]] = [[] for _ in rows]
        needs = [0] * len(rows)
        for m, move in enumerate(rows):
            before = into.get((move.parcel, move.source), ())
            needs[m] = len(before)
            for earlier in before:
                after[earlier].append(m)
            place = (move.parcel, move.target)
            into[place] = [*into.get(place, ()), m] if move.reduces else [m]
        latency = [each for each, _ in priced]
        tail = list(latency)
        for m in reversed(range(len(rows))):
            tail[m] += max((tail[k] for k in after[m]), default=0)
        return cls(latency, [uses for _, uses in priced], after, needs, tail)


def turned(costs: CostTable) -> CostTable:
    """The costs with every link turned round; shared resources keep their numbers. Its own inverse. O(uses)."""
    order = np.lexsort((costs.source, costs.target))
    place = np.empty(costs.links, dtype=np.int64)
    place[order] = np.arange(costs.links)
    spans = [np.arange(costs.use_start[e], costs.use_start[e + 1]) for e in order.tolist()]
    uses = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
    resource = costs.use_resource[uses]
    own = resource < costs.links
    resource[own] = place[resource[own]]
    source, target = costs.target[order], costs.source[order]
    names = [f"link {a} -> {b}" for a, b in zip(source.tolist(), target.tolist(), strict=True)]
    return CostTable(
        costs.tick,
        costs.sizes,
        costs.ranks,
        source,
        target,
        costs.latency[order],
        np.concatenate([[0], np.cumsum(np.diff(costs.use_start)[order])]).astype(np.int64),
        resource,
        costs.use_ticks[uses],
        (*names, *costs.resource_names[costs.links :]),
    )


def is_reversible(costs: CostTable) -> bool:
    """Whether the mirror image of every schedule is one on the links turned round, as long and as free of conflicts.

    So it is where all links and sizes that share a resource hold it for the same time short of their latency. Then a
    proof about the mirrored problem is one about the problem. O(uses).
    """
    link = np.repeat(np.arange(costs.links), np.diff(costs.use_start))
    rest = costs.latency[link] - costs.use_ticks
    low = np.full(len(costs.resource_names), np.iinfo(np.int64).max)
    high = np.full(len(costs.resource_names), np.iinfo(np.int64).min)
    taken = costs.use_ticks > 0
    owner = np.broadcast_to(costs.use_resource[:, None], rest.shape)
    np.minimum.at(low, owner[taken], rest[taken])
    np.maximum.at(high, owner[taken], rest[taken])
    return bool((high <= low).all())
