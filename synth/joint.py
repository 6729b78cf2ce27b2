"""Routing and scheduling as one constraint model, to be solved to the end.

For each representative item and each link that it may cross: a flag (does it?) and an interval on every slot that the
link takes. For each item and rank: when it arrives. A link's start is its target's arrival less its latency, so there
is one time per item and rank only. Each destination is reached over exactly one link, a relay over at most one.

Links are kept only if they fit in: earliest arrival at the source + latency + least time from the target on to a
destination <= the limit (slack in weighted distance; hop counts would lose the optimum on links of unequal speed).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from synth.problem import NEVER, Problem
from synth.schedule import Transfer, earliest
from synth.solver_cp import Model, Solved

if TYPE_CHECKING:
    from synth.solver_cp import Interval, Var


@dataclass(frozen=True)
class Window:
    """For an item: the earliest arrival at each rank, the least time on to a destination, and the links that fit."""

    head: list[int]
    tail: list[int]
    links: tuple[int, ...]


@dataclass
class Joint:
    """A model and where its variables are; ``end`` is the makespan (None: only asked for within the limit)."""

    problem: Problem
    model: Model
    end: Var | None = None
    arrival: dict[tuple[int, int], Var] = field(default_factory=dict)
    crosses: dict[tuple[int, int], Var] = field(default_factory=dict)
    windows: dict[int, Window] = field(default_factory=dict)

    def plan(self, solved: Solved) -> tuple[Transfer, ...]:
        """The plan that a search found, without what helps nobody, and each transfer as early as its order allows."""
        return tuple(earliest(self.problem, useful(self.problem, self._transfers(solved))))

    def _transfers(self, solved: Solved) -> list[Transfer]:
        plan = []
        for (item, link), flag in self.crosses.items():
            if solved.values(flag):
                latency = self.problem.latencies[self.problem.demand.items[item].size][link]
                arrival = solved.values(self.arrival[item, self.problem.ends[link][1]])
                plan.append(Transfer(arrival - latency, item, link))
        return plan

    def hint(self, plan: Iterable[Transfer]) -> None:
        """Start the search at a plan."""
        values: dict[Var, int] = {}
        taken = {(transfer.item, transfer.link): transfer for transfer in plan}
        for key, flag in self.crosses.items():
            values[flag] = int(key in taken)
        for (item, link), transfer in taken.items():
            arrival = self.arrival.get((item, self.problem.ends[link][1]))
            if arrival is not None:
                values[arrival] = transfer.start + self.problem.latencies[self.problem.demand.items[item].size][link]
        self.model.hint(values)


def windows(problem: Problem, limit: int) -> dict[int, Window] | None:
    """The window of each representative for schedules that end by ``limit``; None when one cannot arrive in time.

    Complexity: O(representatives x links x log ranks).
    """
    found = {}
    for item in problem.representatives:
        demanded = problem.demand.items[item]
        head, tail = problem.distances(item), _tails(problem, item)
        if any(head[rank] > limit for rank in demanded.destinations):
            return None
        latency = problem.latencies[demanded.size]
        links = tuple(
            link
            for link, (source, target) in enumerate(problem.ends)
            if target != demanded.origin
            and head[source] + latency[link] + tail[target] <= limit
            and problem.may_use(item, link)
        )
        found[item] = Window(head, tail, links)
    return found


def _tails(problem: Problem, item: int) -> list[int]:
    """For each rank, the least time from it to any destination of the item (0 on a destination)."""
    demanded = problem.demand.items[item]
    latency = problem.latencies[demanded.size]
    tail = [int(NEVER)] * problem.costs.ranks
    for rank in demanded.destinations:
        tail[rank] = 0
    queue = [(0, rank) for rank in demanded.destinations]
    while queue:
        there, rank = heapq.heappop(queue)
        if there > tail[rank]:
            continue
        for link in problem.incoming[rank]:
            source, longer = problem.ends[link][0], there + latency[link]
            if longer < tail[source] and problem.may_use(item, link):
                tail[source] = longer
                heapq.heappush(queue, (longer, source))
    return tail


def useful(problem: Problem, plan: Iterable[Transfer]) -> list[Transfer]:
    """A plan without the transfers that lead to no destination."""
    into = {(t.item, problem.ends[t.link][1]): t for t in plan}
    kept: set[Transfer] = set()
    for item in problem.representatives:
        for destination in problem.demand.items[item].destinations:
            transfer = into.get((item, destination))
            while transfer is not None and transfer not in kept:
                kept.add(transfer)
                transfer = into.get((item, problem.ends[transfer.link][0]))
    return sorted(kept)


def joint(problem: Problem, lower: int, limit: int, minimise: bool) -> Joint | None:
    """The model of all schedules that end in ``lower..limit``; None when a destination is too far for that.

    Complexity: O(representatives x links) variables and constraints.
    """
    found = windows(problem, limit)
    if found is None:
        return None
    made = Joint(problem, Model(), windows=found)
    if minimise:
        made.end = made.model.number(lower, limit)
        made.model.minimise(made.end)
    for item, window in found.items():
        _add_item(made, item, window, limit)
    _add_slots(made, limit)
    _add_own_first(made, limit)
    return made


def _add_item(made: Joint, item: int, window: Window, limit: int) -> None:
    problem, model = made.problem, made.model
    into: dict[int, list[Var]] = {}
    out_of: dict[int, list[Var]] = {}
    for link in window.links:
        source, target = problem.ends[link]
        if (item, target) not in made.arrival:
            made.arrival[item, target] = model.number(window.head[target], limit - window.tail[target])
        flag = made.crosses[item, link] = model.flag()
        into.setdefault(target, []).append(flag)
        out_of.setdefault(source, []).append(flag)
    wanted = set(problem.demand.items[item].destinations)
    for rank, flags in into.items():
        if rank in wanted:
            model.exactly_one(flags)
            continue
        model.at_most_one(flags)
        for flag in flags:
            model.implies_any(flag, out_of.get(rank, []))
    for rank, flags in out_of.items():
        if rank != problem.demand.items[item].origin and rank not in wanted:
            for flag in flags:
                model.implies_any(flag, into.get(rank, []))
    _add_times(made, item, window)


def _add_times(made: Joint, item: int, window: Window) -> None:
    problem, model = made.problem, made.model
    demanded = problem.demand.items[item]
    latency = problem.latencies[demanded.size]
    for link in window.links:
        source, target = problem.ends[link]
        flag, arrival = made.crosses[item, link], made.arrival[item, target]
        if source != demanded.origin:
            model.at_least(arrival, made.arrival[item, source] + latency[link], flag)
        else:
            model.at_least(arrival, latency[link], flag)
    if made.end is not None:
        for rank in demanded.destinations:
            model.at_least(made.end, made.arrival[item, rank])
    if any(latency[link] == 0 for link in window.links):
        _add_order(made, item, window)


def _add_order(made: Joint, item: int, window: Window) -> None:
    """Where links take no time, times do not keep an item from going round in a circle; hop counts do."""
    problem = made.problem
    hops = {rank: made.model.number(0, problem.costs.ranks) for rank in range(problem.costs.ranks)}
    for link in window.links:
        source, target = problem.ends[link]
        made.model.at_least(hops[target], hops[source] + 1, made.crosses[item, link])


@dataclass
class _Slot:
    """What may take a slot, and the least time before and after any of it."""

    intervals: list[Interval] = field(default_factory=list)
    flags: list[Var] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)
    head: int = int(NEVER)
    tail: int = int(NEVER)


def _add_slots(made: Joint, limit: int) -> None:
    """One at a time on each slot; and all that takes a slot fits between its least head and tail (energy cut)."""
    problem, model = made.problem, made.model
    slots: dict[int, _Slot] = {}
    for (item, link), flag in made.crosses.items():
        size, window = problem.demand.items[item].size, made.windows[item]
        latency, (source, target) = problem.latencies[size][link], problem.ends[link]
        start = made.arrival[item, target] - latency
        for number, ticks in problem.uses[size][link]:
            if ticks:
                slot = slots.setdefault(number, _Slot())
                slot.intervals.append(model.interval(start, ticks, flag))
                slot.flags.append(flag)
                slot.ticks.append(ticks)
                slot.head = min(slot.head, window.head[source])
                slot.tail = min(slot.tail, latency - ticks + window.tail[target])
    for slot in slots.values():
        model.no_overlap(slot.intervals)
        model.at_most_sum(slot.flags, slot.ticks, (limit if made.end is None else made.end) - slot.head - slot.tail)


def _add_own_first(made: Joint, limit: int) -> None:
    """On the links where the sketch asks for it, a sender's own items start before those that it passes on."""
    problem, model = made.problem, made.model
    ordered = {int(problem.orbits.slot_of[link]) for link in problem.rules.own_first}
    turn: dict[int, Var] = {}
    for (item, link), flag in made.crosses.items():
        slot = int(problem.orbits.slot_of[link])
        if slot not in ordered:
            continue
        demanded, (source, target) = problem.demand.items[item], problem.ends[link]
        start = made.arrival[item, target] - problem.latencies[demanded.size][link]
        bar = turn.setdefault(slot, model.number(0, limit))
        if source == demanded.origin:
            model.at_least(bar, start, flag)
        else:
            model.at_least(start, bar, flag)
