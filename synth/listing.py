"""List scheduling: routes are given, when does each transfer start? Fast, deterministic, usually near the optimum.

Forward: of all transfers that could start, the earliest goes first, the one with the longest way still to go breaking
ties (TACCL's "longest remaining time first"). Then the schedule is pushed to its end and pulled to its start in turn
(forward-backward improvement, Li and Willis 1992), and tried again from perturbed priorities, until the bound is met.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synth.engine import Budget
from synth.errors import ScheduleError
from synth.own_first import with_own_first
from synth.problem import Problem
from synth.schedule import Transfer, makespan
from synth.waiting import Queue

Routes = Mapping[int, Sequence[int]]
"""For each item, the links that it crosses: a tree from its origin."""
_CUT = 4096
"""Transfers between two looks at the clock; fewer are listed whatever it says."""


@dataclass(frozen=True)
class _Jobs:
    """The transfers of routes, by number, each after the one that it depends on."""

    item: list[int]
    link: list[int]
    before: list[int]
    after: list[list[int]]
    latency: list[int]
    uses: list[tuple[tuple[int, int], ...]]
    tail: list[int]
    first: list[int]

    def __len__(self) -> int:
        return len(self.item)


def list_schedule(
    problem: Problem, routes: Routes, bound: int = 0, tries: int = 8, budget: Budget | None = None
) -> tuple[Transfer, ...]:
    """A plan for given routes of the representatives; stops early when its makespan is ``bound``.

    Deterministic for a given number of tries and seed, unless the clock of ``budget`` ends first: then the best so far,
    or, where there is none, the transfers in the order in which they could start if nobody were in their way.
    Complexity: O(tries x transfers x log transfers).

    Raises:
        ScheduleError: a route is not a tree that starts at its item's origin.
    """
    budget = Budget() if budget is None else budget
    jobs, chance = _jobs(problem, routes), random.Random(budget.seed)
    best: tuple[Transfer, ...] = ()
    best_end = -1
    for attempt in range(max(1, tries)):
        if attempt and budget.left == 0:
            break
        spread = 0.0 if attempt == 0 else 0.1 * attempt
        priority = [tail * (1 + spread * chance.random()) for tail in jobs.tail]
        start = _scheduled(jobs, priority, budget, best_end < 0)
        if start is None:
            break
        plan = tuple(sorted(Transfer(start[j], jobs.item[j], jobs.link[j]) for j in range(len(jobs))))
        plan = with_own_first(problem, plan)
        end = makespan(problem, plan)
        if best_end < 0 or end < best_end:
            best, best_end = plan, end
        if best_end <= bound:
            break
    return best


def _scheduled(jobs: _Jobs, priority: Sequence[float], budget: Budget, needed: bool) -> list[int] | None:
    """Start times; hasty ones, if they are ``needed``, or None when the clock ends first."""
    start = _forward(jobs, priority, budget)
    if start is not None:
        return _improved(jobs, start, budget)
    return _pulled(jobs, _heads(jobs)) if needed else None


def _heads(jobs: _Jobs) -> list[int]:
    """When each transfer could start if it had the topology for itself."""
    heads = [0] * len(jobs)
    for job, before in enumerate(jobs.before):
        if before >= 0:
            heads[job] = heads[before] + jobs.latency[before]
    return heads


def _jobs(problem: Problem, routes: Routes) -> _Jobs:
    jobs = _Jobs([], [], [], [], [], [], [], [])
    for item, links in sorted(routes.items()):
        demanded = problem.demand.items[item]
        leaving: dict[int, list[int]] = {}
        for link in links:
            leaving.setdefault(problem.ends[link][0], []).append(link)
        reached, frontier = {demanded.origin}, [(demanded.origin, -1)]
        for rank, parent in frontier:  # grows while it is walked
            for link in leaving.get(rank, ()):
                target = problem.ends[link][1]
                if target in reached:
                    raise ScheduleError(f"the route of item {item} reaches rank {target} twice", item=item, rank=target)
                reached.add(target)
                frontier.append((target, len(jobs)))
                _add(jobs, problem, item, link, parent)
        if len(reached) != len(links) + 1:
            raise ScheduleError(f"the route of item {item} is not a tree from rank {demanded.origin}", item=item)
    for job in range(len(jobs) - 1, -1, -1):
        jobs.tail[job] = jobs.latency[job] + max((jobs.tail[k] for k in jobs.after[job]), default=0)
    return jobs


def _add(jobs: _Jobs, problem: Problem, item: int, link: int, parent: int) -> None:
    size = problem.demand.items[item].size
    number = len(jobs)
    jobs.item.append(item)
    jobs.link.append(link)
    jobs.before.append(parent)
    jobs.after.append([])
    jobs.latency.append(problem.latencies[size][link])
    jobs.uses.append(problem.uses[size][link])
    jobs.tail.append(0)
    if parent < 0:
        jobs.first.append(number)
    else:
        jobs.after[parent].append(number)


def _forward(jobs: _Jobs, priority: Sequence[float], budget: Budget) -> list[int] | None:
    """Start times: always the transfer that can start first, the highest priority breaking ties.

    None when the clock ends first.
    """
    queue, started = Queue(jobs.uses), 0
    start = [0] * len(jobs)
    for job in jobs.first:
        queue.push(0, -priority[job], job)
    while (following := queue.pop()) is not None:
        at, job = following
        start[job] = at
        for child in jobs.after[job]:
            queue.push(at + jobs.latency[job], -priority[child], child)
        started += 1
        if started % _CUT == 0 and budget.left == 0:
            return None
    return start


def _improved(jobs: _Jobs, start: list[int], budget: Budget, rounds: int = 6) -> list[int]:
    """Forward-backward improvement until nothing is gained; never worse than what it was given."""
    end = _end(jobs, start)
    for _ in range(rounds):
        if len(jobs) > _CUT and budget.left == 0:
            break
        pulled = _pulled(jobs, _pushed(jobs, start, end))
        now = _end(jobs, pulled)
        if now >= end:
            return start
        start, end = pulled, now
    return start


def _pushed(jobs: _Jobs, start: Sequence[int], end: int) -> list[int]:
    """Every transfer as late as possible, taken by when they arrive, last first."""
    free: dict[int, int] = {}
    late = [0] * len(jobs)
    # A transfer comes after all that depend on it: those have greater numbers, and do not arrive before it.
    for job in sorted(range(len(jobs)), key=lambda j: (-(start[j] + jobs.latency[j]), -j)):
        limit = min((late[k] for k in jobs.after[job]), default=end) - jobs.latency[job]
        late[job] = min([limit, *(free[slot] - ticks for slot, ticks in jobs.uses[job] if slot in free)])
        for slot, _ in jobs.uses[job]:
            free[slot] = late[job]
    return late


def _pulled(jobs: _Jobs, late: Sequence[int]) -> list[int]:
    """Every transfer as early as possible, taken by when they start."""
    free: dict[int, int] = {}
    start = [0] * len(jobs)
    for job in sorted(range(len(jobs)), key=lambda j: (late[j], j)):
        before = jobs.before[job]
        ready = 0 if before < 0 else start[before] + jobs.latency[before]
        start[job] = max([ready, *(free.get(slot, 0) for slot, _ in jobs.uses[job])])
        for slot, ticks in jobs.uses[job]:
            free[slot] = start[job] + ticks
    return start


def _end(jobs: _Jobs, start: Sequence[int]) -> int:
    return max((start[job] + jobs.latency[job] for job in range(len(jobs))), default=0)
