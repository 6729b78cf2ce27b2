"""Step-synchronous schedules, as SCCL has them: S steps of one or more rounds each, R rounds together.

In a step, a link carries at most its lanes times the step's rounds chunks, and a rank sends only what it had before
the step. Whether S steps and R rounds are enough is a question about flags alone (item, link, step).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from synth.problem import Problem
from synth.rates import hops, hops_to
from synth.schedule import Transfer
from synth.solver_cp import Limits, Model, Solved, Status

if TYPE_CHECKING:
    from synth.solver_cp import Var


@dataclass(frozen=True)
class Stepped:
    """A plan in ticks, the rounds of each step, and the step of each of its transfers."""

    plan: tuple[Transfer, ...] = field(repr=False)
    rounds: tuple[int, ...]
    step: tuple[int, ...] = field(repr=False)


@dataclass
class _Made:
    problem: Problem
    steps: int
    model: Model
    sends: dict[tuple[int, int, int], Var] = field(default_factory=dict)
    rounds: list[Var] = field(default_factory=list)


def stepped(
    problem: Problem, lanes: dict[int, int], steps: int, rounds: int, limits: Limits
) -> tuple[Status, Stepped | None]:
    """A plan of so many steps and rounds: whether there is one, and the plan.

    A round takes as many ticks as ``lanes`` times the ticks of a transfer, on every link alike.
    Complexity: O(representatives x links x steps) flags.
    """
    made = _model(problem, lanes, steps, rounds)
    if made is None:
        return Status.INFEASIBLE, None
    solved = made.model.solve(limits)
    return solved.status, _read(made, solved, lanes) if solved.found else None


def _model(problem: Problem, lanes: dict[int, int], steps: int, rounds: int) -> _Made | None:
    made = _Made(problem, steps, Model())
    if rounds < steps:
        return None
    made.rounds = [made.model.number(1, rounds - steps + 1) for _ in range(steps)]
    made.model.at_least(rounds, sum(made.rounds))
    for item in problem.representatives:
        if not _add_item(made, item):
            return None
    load: dict[tuple[int, int], list[Var]] = {}
    room: dict[int, int] = {}
    for (_, link, step), flag in made.sends.items():
        slot = problem.link_slots[link]
        load.setdefault((slot, step), []).append(flag)
        room[slot] = lanes[link]
    for (slot, step), flags in load.items():
        made.model.at_most_sum(flags, [1] * len(flags), room[slot] * made.rounds[step])
    return made


def _add_item(made: _Made, item: int) -> bool:
    """The flags of an item; False when a destination is too many hops away."""
    problem, demanded = made.problem, made.problem.demand.items[item]
    head = hops(problem, item)
    if any(head[rank] > made.steps for rank in demanded.destinations):
        return False
    tails = [hops_to(problem, item, rank) for rank in demanded.destinations]
    tail = [min(column) for column in zip(*tails, strict=True)]
    into: dict[int, list[tuple[int, Var]]] = {}
    for link, (source, target) in enumerate(problem.ends):
        if target == demanded.origin or not problem.may_use(item, link):
            continue
        for step in range(head[source], made.steps - tail[target]):
            flag = made.sends[item, link, step] = made.model.flag()
            into.setdefault(target, []).append((step, flag))
    for rank, arrivals in into.items():
        flags = [flag for _, flag in arrivals]
        (made.model.exactly_one if rank in demanded.slots else made.model.at_most_one)(flags)
    for (number, link, step), flag in made.sends.items():
        source = problem.ends[link][0]
        if number == item and source != demanded.origin:
            made.model.implies_any(flag, [earlier for s, earlier in into.get(source, ()) if s < step])
    return True


def _read(made: _Made, solved: Solved, lanes: dict[int, int]) -> Stepped:
    """The plan: in each step, what crosses a link goes back to back, in the order of its items."""
    problem = made.problem
    rounds = tuple(solved.values(each) for each in made.rounds)
    taken = sorted((step, item, link) for (item, link, step), flag in made.sends.items() if solved.values(flag))
    placed: dict[tuple[int, int], int] = {}
    found = []
    for step, item, link in taken:
        latency = problem.latencies[problem.demand.items[item].size][link]
        slot = problem.link_slots[link]
        place = placed.get((slot, step), 0)
        placed[slot, step] = place + 1
        start = sum(rounds[:step]) * latency * lanes[link] + place * latency
        found.append((Transfer(start, item, link), step))
    found.sort()
    return Stepped(tuple(transfer for transfer, _ in found), rounds, tuple(step for _, step in found))
