"""Greedy: routes and times at once, for items that go to many ranks; an incumbent for every engine.

In time order, each free link takes an item that its source has and its target lacks: of those, the one whose target
would have to wait longest for it otherwise. A link passes when another way is expected to bring the item sooner (a
slow link need not carry what a fast one will). In the manner of TACOS (MICRO 2024), but causal on links of different
speed, on representatives and slots, and with shared resources.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

from synth.engine import Budget
from synth.own_first import with_own_first
from synth.problem import NEVER, Problem
from synth.schedule import Transfer, makespan

PATIENCE = (1.0, 0.0, 0.5, 2.0)
"""How much of the queue before another way counts against it, by try: 0 believes that ways are free."""
SMALL = 4096
"""Transfers to choose from (representatives x links) up to which nothing is worth being cut short."""


@dataclass
class _State:
    """A schedule being made: who has what since when, what is free when, and what waits at each link slot."""

    problem: Problem
    patience: float
    chance: random.Random
    arrival: dict[int, list[int]] = field(default_factory=dict)
    missing: dict[int, int] = field(default_factory=dict)
    free: dict[int, int] = field(default_factory=dict)
    waiting: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """By link slot; what takes the link for no time waits apart, under ``~slot``, which is always free."""
    events: list[int] = field(default_factory=list)
    pending: list[tuple[int, int, int]] = field(default_factory=list)
    plan: list[Transfer] = field(default_factory=list)


def greedy(problem: Problem, budget: Budget, bound: int = 0, tries: int = 4) -> tuple[Transfer, ...] | None:
    """The best plan of a few tries; None when some destination cannot be reached or is only reached through relays.

    None too when the clock ends the first try, unless the problem is small. Deterministic for a given seed unless the
    clock ends first. Complexity: O(tries x items x links x in-degree).
    """
    best: tuple[Transfer, ...] | None = None
    for attempt in range(tries):
        if best is not None and (budget.left == 0 or makespan(problem, best) <= bound):
            break
        state = _State(problem, PATIENCE[attempt % len(PATIENCE)], random.Random(budget.seed * 1000 + attempt))
        plan = _run(state, budget)
        if plan is not None and (best is None or makespan(problem, plan) < makespan(problem, best)):
            best = plan
    return best


def is_over(problem: Problem, budget: Budget) -> bool:
    """Whether heuristics should come to an end: no time is left, and the problem is not a small one."""
    return budget.left == 0 and len(problem.representatives) * problem.costs.links > SMALL


def _run(state: _State, budget: Budget) -> tuple[Transfer, ...] | None:
    problem = state.problem
    for item in problem.representatives:
        demanded = problem.demand.items[item]
        state.arrival[item] = [int(NEVER)] * problem.costs.ranks
        state.missing[item] = len(demanded.destinations)
        _arrives(state, item, demanded.origin, 0)
    while state.events:
        if is_over(problem, budget):
            return None
        now = heapq.heappop(state.events)
        while state.events and state.events[0] == now:
            heapq.heappop(state.events)
        while state.pending and state.pending[0][0] <= now:
            _, item, rank = heapq.heappop(state.pending)
            _offer(state, item, rank)
        _start_what_can(state, now)
    return None if any(state.missing.values()) else with_own_first(problem, tuple(sorted(state.plan)))


def _arrives(state: _State, item: int, rank: int, at: int) -> None:
    state.arrival[item][rank] = at
    heapq.heappush(state.pending, (at, item, rank))
    heapq.heappush(state.events, at)


def _offer(state: _State, item: int, rank: int) -> None:
    """The item is there: every link that can take it on has one more to choose from."""
    problem = state.problem
    wanted = problem.demand.items[item].slots
    for link in problem.outgoing[rank]:
        target = problem.ends[link][1]
        if target in wanted and state.arrival[item][target] == NEVER and problem.may_use(item, link):
            state.waiting.setdefault(_queue(state, item, link)[0], []).append((item, link))


def _start_what_can(state: _State, now: int) -> None:
    """Give every free link slot something to do, fast ones first; chance breaks ties between equals."""
    ready = [slot for slot, queue in state.waiting.items() if queue and state.free.get(slot, 0) <= now]
    order = [(_latency(state, *state.waiting[slot][0]), state.chance.random(), slot) for slot in ready]
    for _, _, slot in sorted(order):
        choice = _choice(state, slot, now)
        if choice is not None:
            _send(state, *choice, now)


def _latency(state: _State, item: int, link: int) -> int:
    return state.problem.latencies[state.problem.demand.items[item].size][link]


def _choice(state: _State, slot: int, now: int) -> tuple[int, int] | None:
    """The waiting item whose target would otherwise wait longest; drops those that are there or on their way."""
    queue = [(i, e) for i, e in state.waiting[slot] if state.arrival[i][state.problem.ends[e][1]] == NEVER]
    state.waiting[slot] = queue
    best, best_key = None, (-1.0, -1.0, -1.0)
    for item, link in queue:
        if any(state.free.get(used, 0) > now for used, _ in _uses(state, item, link)):
            continue
        otherwise = _otherwise(state, item, link, now)
        if otherwise < now + _latency(state, item, link):
            continue
        key = (otherwise, float(state.missing[item]), state.chance.random())
        if key > best_key:
            best, best_key = (item, link), key
    return best


def _queue(state: _State, item: int, link: int) -> tuple[int, int]:
    """(the queue that the item joins for the link, how long it takes the link)."""
    slot, busy = state.problem.link_slots[link], state.problem.busy[state.problem.demand.items[item].size][link]
    return (slot if busy else ~slot), busy


def _uses(state: _State, item: int, link: int) -> tuple[tuple[int, int], ...]:
    return state.problem.uses[state.problem.demand.items[item].size][link]


def _otherwise(state: _State, item: int, link: int, now: int) -> float:
    """When the link's target may expect the item over another link from a rank that has it, or soon will."""
    problem, best = state.problem, float(NEVER)
    for other in problem.incoming[problem.ends[link][1]]:
        since = state.arrival[item][problem.ends[other][0]]
        if other == link or since == NEVER or not problem.may_use(item, other):
            continue
        slot, busy = _queue(state, item, other)
        queue = state.patience * busy * len(state.waiting.get(slot, ()))
        start = max(now, since, *(state.free.get(used, 0) for used, _ in _uses(state, item, other)))
        best = min(best, start + queue + _latency(state, item, other))
    return best


def _send(state: _State, item: int, link: int, now: int) -> None:
    state.plan.append(Transfer(now, item, link))
    heapq.heappush(state.events, now)  # the next of the queue, if this takes the link for no time
    for slot, ticks in _uses(state, item, link):
        state.free[slot] = now + ticks
        heapq.heappush(state.events, now + ticks)
    state.missing[item] -= 1
    _arrives(state, item, state.problem.ends[link][1], now + _latency(state, item, link))
