"""Schedule: which item crosses which link when; its text form, its slow and obvious check, and its timing.

A *plan* is a schedule of the representatives only: what engines return. ``expand`` gives the schedule of all items.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from synth.errors import ScheduleError
from synth.problem import Problem
from synth.symmetry import Ints


class Transfer(NamedTuple):
    """Item ``item`` enters link ``link`` at tick ``start``."""

    start: int
    item: int
    link: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """All transfers of a problem, ordered by start; shape (T,) each, times in ticks."""

    problem: Problem
    start: Ints = field(repr=False)
    item: Ints = field(repr=False)
    link: Ints = field(repr=False)

    def __len__(self) -> int:
        return len(self.start)

    @property
    def arrival(self) -> Ints:
        """When each transfer has arrived."""
        sizes = np.array([item.size for item in self.problem.demand.items], dtype=np.int64)
        arrival: Ints = self.start + self.problem.costs.latency[self.link, sizes[self.item]]
        return arrival

    @property
    def ticks(self) -> int:
        """The last arrival."""
        return int(self.arrival.max(initial=0))

    @property
    def seconds(self) -> float:
        """The last arrival, in seconds."""
        return self.problem.costs.seconds(self.ticks)

    def text(self) -> str:
        """One line per transfer: ``start -> arrival  item i: source -> target``."""
        costs = self.problem.costs
        rows = zip(self.start, self.arrival, self.item, self.link, strict=True)
        return "".join(f"{s} -> {a}  item {i}: {costs.source[e]} -> {costs.target[e]}\n" for s, a, i, e in rows)


def makespan(problem: Problem, plan: Iterable[Transfer]) -> int:
    """The last arrival of a plan, in ticks (0 for an empty one)."""
    items, latencies = problem.demand.items, problem.latencies
    return max((t.start + latencies[items[t.item].size][t.link] for t in plan), default=0)


def expand(problem: Problem, plan: Sequence[Transfer]) -> Schedule:
    """The schedule of all items that a plan of the representatives stands for. O(order x plan)."""
    start = np.array([t.start for t in plan], dtype=np.int64)
    item = np.array([t.item for t in plan], dtype=np.int64)
    link = np.array([t.link for t in plan], dtype=np.int64)
    columns = [(start, item, link)]
    for image in problem.symmetry.images[1:]:
        to_items = problem.actions.items(image)
        if to_items is None:
            raise ScheduleError("the symmetry of the problem does not keep its collective")
        columns.append((start, to_items[item], problem.actions.links(image)[link]))
    parts = [np.concatenate(column) for column in zip(*columns, strict=True)]
    order = np.lexsort((parts[2], parts[1], parts[0]))
    return Schedule(problem, parts[0][order], parts[1][order], parts[2][order])


def check(schedule: Schedule) -> None:
    """Simulate a schedule step by step and insist that it solves its problem; the definition of "feasible".

    Knows nothing of symmetry or of how the schedule was found. O(transfers x log transfers).

    Raises:
        ScheduleError: an item leaves a rank before it is there, arrives twice, uses a forbidden link, two transfers
            take one resource at once, or a destination is not reached.
    """
    problem, costs = schedule.problem, schedule.problem.costs
    held = {(number, item.origin): 0 for number, item in enumerate(problem.demand.items)}
    columns = (schedule.arrival, schedule.start, schedule.item, schedule.link)
    rows = sorted(zip(*(column.tolist() for column in columns), strict=True))
    for arrival, _, item, link in rows:
        target = problem.ends[link][1]
        if (item, target) in held:
            raise ScheduleError(f"item {item} arrives on rank {target} twice", item=item, rank=target)
        held[item, target] = arrival
    taken: dict[int, list[tuple[int, int, int, int]]] = {}
    first, resources, ticks = costs.use_start.tolist(), costs.use_resource.tolist(), costs.use_ticks.tolist()
    for _, start, item, link in rows:
        _check_transfer(problem, held, start, item, link)
        size = problem.demand.items[item].size
        for use in range(first[link], first[link + 1]):
            busy = (start, start + ticks[use][size], item, link)
            taken.setdefault(resources[use], []).append(busy)
    _check_own_first(problem, rows)
    for resource, intervals in taken.items():
        _check_exclusive(costs.resource_names[resource], sorted(intervals))
    for number, demanded in enumerate(problem.demand.items):
        for rank in demanded.destinations:
            if (number, rank) not in held:
                raise ScheduleError(f"item {number} never reaches rank {rank}", item=number, rank=rank)


def _check_transfer(problem: Problem, held: dict[tuple[int, int], int], start: int, item: int, link: int) -> None:
    source, target = problem.ends[link]
    if start < 0 or held.get((item, source), start + 1) > start:
        raise ScheduleError(
            f"item {item} leaves rank {source} for {target} at tick {start}, before it is there",
            item=item,
            rank=source,
            link=(source, target),
        )
    if not problem.may_use(item, link):
        raise ScheduleError(f"item {item} may not use link {source} -> {target}", item=item, link=(source, target))


def _check_own_first(problem: Problem, rows: Iterable[tuple[int, int, int, int]]) -> None:
    turns: dict[int, tuple[list[int], list[int]]] = {}
    for _, start, item, link in rows:
        if link in problem.rules.own_first:
            is_own = problem.demand.items[item].origin == problem.ends[link][0]
            turns.setdefault(link, ([], []))[is_own].append(start)
    for link, (passed_on, own) in turns.items():
        if own and passed_on and max(own) > min(passed_on):
            source, target = problem.ends[link]
            message = f"rank {source} passes an item on to {target} at tick {min(passed_on)}, its own at {max(own)}"
            raise ScheduleError(f"{message}, and own items go first there", link=(source, target))


def _check_exclusive(name: str, intervals: list[tuple[int, int, int, int]]) -> None:
    end = None
    for start, stop, item, _ in intervals:
        if end is not None and start < end and stop > start:
            raise ScheduleError(f"{name} is taken when item {item} wants it at tick {start}", resource=name, item=item)
        end = stop if end is None else max(end, stop)


def earliest(problem: Problem, plan: Iterable[Transfer]) -> list[Transfer]:
    """The same transfers in the same order on every link and resource, each as early as that allows.

    Transfers that take a resource for no time have no place in its order; only ``own_first`` is kept for them too.
    Complexity: O(transfers log transfers). Never later than the plan was.
    """
    free: dict[int, int] = {}
    begun: dict[int, int] = {}
    there: dict[tuple[int, int], int] = {}
    moved = []
    for transfer in in_order(problem, plan):
        item = problem.demand.items[transfer.item]
        source, target = problem.ends[transfer.link]
        uses = problem.uses[item.size][transfer.link]
        start = 0 if source == item.origin else there[transfer.item, source]
        start = max([start, *(free.get(slot, 0) for slot, _ in uses)])
        if transfer.link in problem.rules.own_first:
            turn = problem.link_slots[transfer.link]
            if source == item.origin:
                begun[turn] = max(start, begun.get(turn, 0))
            else:
                start = max(start, begun.get(turn, 0))
        for slot, ticks in uses:
            free[slot] = start + ticks
        there[transfer.item, target] = start + problem.latencies[item.size][transfer.link]
        moved.append(Transfer(start, transfer.item, transfer.link))
    return sorted(moved)


def order_of(schedule: Schedule) -> Ints:
    """The numbers of a schedule's transfers in the order of ``in_order``. O(transfers log transfers), on columns."""
    problem, ranks = schedule.problem, schedule.problem.costs.ranks
    rows = np.lexsort((schedule.link, schedule.item, schedule.start))
    item, link = schedule.item[rows], schedule.link[rows]
    into, out_of = (item * ranks + end[link] for end in (problem.costs.target, problem.costs.source))
    by_place = np.argsort(into, kind="stable")
    last = np.searchsorted(into[by_place], out_of, side="right") - 1
    known = (last >= 0) & (into[by_place[last]] == out_of)
    depth = _distances(np.where(known, by_place[last], -1))
    order: Ints = rows[np.lexsort((link, item, depth, schedule.start[rows]))]
    return order


def _distances(above: Ints) -> Ints:
    """How many rows there are from each up to the root of its tree (``above`` is -1 there). By pointer jumping."""
    distance = np.ones(len(above), dtype=np.int64)
    for _ in range(len(above).bit_length()):
        climbs = np.flatnonzero(above >= 0)
        if not len(climbs):
            break
        distance[climbs] += distance[above[climbs]]
        above = np.where(above >= 0, above[above], -1)
    return distance


def in_order(problem: Problem, plan: Iterable[Transfer]) -> list[Transfer]:
    """A plan by start; where links cost nothing, a transfer comes after the one that it depends on."""
    transfers = sorted(plan)
    into = {(t.item, problem.ends[t.link][1]): t for t in transfers}
    depth: dict[Transfer, int] = {}
    for transfer in transfers:
        trail: list[Transfer] = []
        above: Transfer | None = transfer
        while above is not None and above not in depth and len(trail) <= problem.costs.ranks:
            trail.append(above)
            above = into.get((above.item, problem.ends[above.link][0]))
        base = depth.get(above, 0) if above is not None else 0
        for hops, passed in enumerate(reversed(trail), 1):
            depth[passed] = base + hops
    return sorted(transfers, key=lambda t: (t.start, depth[t], t.item, t.link))
