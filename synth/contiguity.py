"""Stage 3 of TACCL: contiguity and exact scheduling of given routes (NSDI 2023, section 5.3).

The paper fixes routes and orders, and decides which neighbours on an inter-node link travel as one contiguous group:
a group of n pays alpha once and n times beta, but its first item waits for the last and all arrive together. Here a
pipelined link is busy for beta only, so items sent back to back pay alpha once anyway, and each arrives on its own:
a group costs what the paper says and delays nobody, to join one is never worse than not to, and no binary is left to
decide. For fixed orders the exact schedule is then a longest path (``earliest``), and ``groups`` reads off who travels
together. So the program here spends its binaries on what the paper leaves to the greedy: on each slot, neighbours
that are at most ``window`` places apart may change places. Like the paper's it minimises the time of given routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from synth.engine import Budget
from synth.own_first import is_own, slots_own_first
from synth.problem import Problem
from synth.routing import limits
from synth.schedule import Transfer, earliest, in_order, makespan
from synth.solver import Feasible, Model, Optimal, solve

MOST_PAIRS = 150
"""Pairs whose order may be left open; where there are more the window shrinks."""
NODES = 500
"""Nodes of the search tree for it: deterministic, and what is not found by then the joint problem finds sooner."""
MOST_ROWS = 20_000
"""Rows beyond which the greedy order is taken as it is: the program would not be solved in time."""


@dataclass(eq=False)
class _Fixed:
    """The transfers of a plan in order; when each could start at the earliest, and must at the latest, to end in time.

    ``pairs[i, j]`` (i before j in the plan): ticks from the start of i to that of j, and back, for sharing slots.
    """

    problem: Problem
    transfers: list[Transfer]
    above: list[int]
    latency: list[int]
    early: list[int]
    late: list[int]
    pairs: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    apart: dict[tuple[int, int], int] = field(default_factory=dict)
    bound: set[tuple[int, int]] = field(default_factory=set)


def groups(problem: Problem, plan: Sequence[Transfer]) -> list[tuple[Transfer, ...]]:
    """The contiguous groups of a plan: runs back to back on a pipelined link, of at most ``rules.window`` items.

    In order of their first transfer; other links have groups of one. O(transfers log transfers).
    """
    costs = problem.costs
    pipelined = np.any(costs.busy < costs.latency, axis=1).tolist()
    found: list[list[Transfer]] = []
    last: dict[int, tuple[int, list[Transfer]]] = {}
    for transfer in sorted(plan):
        ends, group = last.get(transfer.link, (-1, []))
        if not pipelined[transfer.link] or ends != transfer.start or len(group) >= problem.rules.window:
            group = []
            found.append(group)
        group.append(transfer)
        busy = problem.busy[problem.demand.items[transfer.item].size][transfer.link]
        last[transfer.link] = (transfer.start + busy, group)
    return [tuple(group) for group in found]


def schedule_exactly(problem: Problem, plan: Sequence[Transfer], bound: int, budget: Budget) -> tuple[Transfer, ...]:
    """The plan with the least time for its routes, within the window; never a longer one than the plan given.

    Raises:
        SolverError: there is no solver.
    """
    best = min(tuple(plan), tuple(earliest(problem, plan)), key=lambda each: makespan(problem, each))
    goal = makespan(problem, best) - 1
    fixed = None if goal < bound or not budget.left else _fixed(problem, best, goal)
    if fixed is None:
        return best
    open_pairs = _open_pairs(fixed, problem.rules.window)
    if not open_pairs or len(fixed.pairs) > MOST_ROWS:
        return best
    model, starts = _model(fixed, open_pairs, bound, goal)
    solution = solve(model, replace(limits(budget), nodes=NODES))
    if not isinstance(solution, Optimal | Feasible):
        return best
    exact = _exact(fixed, [solution.values[start] for start in starts])
    return exact if makespan(problem, exact) < makespan(problem, best) else best


def _exact(fixed: _Fixed, starts: Sequence[float]) -> tuple[Transfer, ...]:
    """A solver's answer is rounded and only gives the order; the starts of ``earliest`` are exact."""
    moved: list[Transfer] = []
    for k, transfer in enumerate(fixed.transfers):
        above = fixed.above[k]
        start = max(round(starts[k] * _unit(fixed)), moved[above].start if above >= 0 else 0)
        moved.append(transfer._replace(start=start))
    return tuple(earliest(fixed.problem, moved))


def _unit(fixed: _Fixed) -> float:
    """Ticks in a unit of the program, whose numbers stay small for the sake of the solver's tolerances."""
    return max(1.0, max(fixed.late) / 1000)


def _fixed(problem: Problem, plan: Sequence[Transfer], goal: int) -> _Fixed | None:
    """What is fixed for plans that end by ``goal``; None when their longest path alone takes longer."""
    transfers = in_order(problem, plan)
    into = {(t.item, problem.ends[t.link][1]): k for k, t in enumerate(transfers)}
    above = [into.get((t.item, problem.ends[t.link][0]), -1) for t in transfers]
    latency = [problem.latencies[problem.demand.items[t.item].size][t.link] for t in transfers]
    early = [0] * len(transfers)
    late = [goal - ticks for ticks in latency]
    for k, parent in enumerate(above):
        if parent >= 0:
            early[k] = early[parent] + latency[parent]
    for k in range(len(transfers) - 1, -1, -1):
        if above[k] >= 0:
            late[above[k]] = min(late[above[k]], late[k] - latency[above[k]])
    if any(first > last for first, last in zip(early, late, strict=True)):
        return None
    fixed = _Fixed(problem, transfers, above, latency, early, late)
    _pair_up(fixed)
    return fixed


def _pair_up(fixed: _Fixed) -> None:
    """All pairs on a slot, how far apart they are in its order, and those whose order the sketch binds."""
    problem, slots = fixed.problem, dict[int, list[tuple[int, int]]]()
    for k, transfer in enumerate(fixed.transfers):
        for slot, ticks in problem.uses[problem.demand.items[transfer.item].size][transfer.link]:
            if ticks:
                slots.setdefault(slot, []).append((k, ticks))
    ordered = slots_own_first(problem)
    for slot, users in slots.items():
        for place, (i, forth) in enumerate(users):
            # Who is farther behind waits through those between: any distance beyond the window is a sum of fixed ones.
            for distance, (j, back) in enumerate(users[place + 1 : place + 2 * problem.rules.window + 2], 1):
                known = fixed.pairs.get((i, j), (0, 0))
                fixed.pairs[i, j] = (max(known[0], forth), max(known[1], back))
                fixed.apart[i, j] = max(distance, fixed.apart.get((i, j), 0))
                if slot in ordered and is_own(problem, fixed.transfers[i]) != is_own(problem, fixed.transfers[j]):
                    fixed.bound.add((i, j))


def _open_pairs(fixed: _Fixed, window: int) -> set[tuple[int, int]]:
    """The pairs that may change places: near each other, and neither order is against the clock."""
    near = window
    free = [
        pair
        for pair, (_, back) in fixed.pairs.items()
        if pair not in fixed.bound
        and fixed.apart[pair] <= window
        and fixed.early[pair[1]] + back <= fixed.late[pair[0]]
    ]
    while near > 1 and len(free) > MOST_PAIRS:
        near -= 1
        free = [pair for pair in free if fixed.apart[pair] <= near]
    return set(free) if len(free) <= MOST_PAIRS else set()


def _model(fixed: _Fixed, open_pairs: set[tuple[int, int]], bound: int, goal: int) -> tuple[Model, list[int]]:
    model, unit = Model(), _unit(fixed)
    starts = [model.variable(first / unit, last / unit) for first, last in zip(fixed.early, fixed.late, strict=True)]
    end = model.variable(bound / unit, goal / unit, whole=unit == 1.0, cost=1.0)
    for k, above in enumerate(fixed.above):
        model.row([(end, 1.0), (starts[k], -1.0)], ">=", fixed.latency[k] / unit)
        if above >= 0:
            model.row([(starts[k], 1.0), (starts[above], -1.0)], ">=", fixed.latency[above] / unit)
    for (i, j), (forth, back) in fixed.pairs.items():
        if (i, j) not in open_pairs:
            model.row([(starts[j], 1.0), (starts[i], -1.0)], ">=", forth / unit)
            continue
        first = model.binary()  # 1: i before j
        big = (forth + fixed.late[i] - fixed.early[j]) / unit
        model.row([(starts[j], 1.0), (starts[i], -1.0), (first, -big)], ">=", forth / unit - big)
        big = (back + fixed.late[j] - fixed.early[i]) / unit
        model.row([(starts[i], 1.0), (starts[j], -1.0), (first, big)], ">=", back / unit)
    return model, starts
