"""own_first: on some links a sketch wants a sender's own items to start before those that it passes on."""

from __future__ import annotations

from collections.abc import Iterable

from synth.problem import Problem
from synth.schedule import Transfer, earliest, makespan


def is_own(problem: Problem, transfer: Transfer) -> bool:
    """Whether a transfer sends an item from the rank where it began."""
    return problem.ends[transfer.link][0] == problem.demand.items[transfer.item].origin


def slots_own_first(problem: Problem) -> frozenset[int]:
    """The slots of the links on which a sender's own items go first."""
    return frozenset(int(problem.orbits.slot_of[link]) for link in problem.rules.own_first)


def keeps_own_first(problem: Problem, plan: Iterable[Transfer]) -> bool:
    """Whether on every link of ``own_first`` no item of the sender starts after one that it passes on."""
    slots = slots_own_first(problem)
    passed: dict[int, int] = {}
    own: dict[int, int] = {}
    for transfer in plan:
        slot = int(problem.orbits.slot_of[transfer.link])
        if slot in slots and is_own(problem, transfer):
            own[slot] = max(own.get(slot, 0), transfer.start)
        elif slot in slots:
            passed[slot] = min(passed.get(slot, transfer.start), transfer.start)
    return all(own.get(slot, 0) <= start for slot, start in passed.items())


def with_own_first(problem: Problem, plan: tuple[Transfer, ...]) -> tuple[Transfer, ...]:
    """The plan, reordered where it breaks ``own_first``: the sender's own items, which wait for nothing, move to front.

    Their order among themselves and that of the rest stay, so no cycle of waits can arise.
    """
    if not problem.rules.own_first or keeps_own_first(problem, plan):
        return plan
    slots, end = slots_own_first(problem), makespan(problem, plan)
    moved = [
        transfer._replace(start=transfer.start - end - 1)
        if int(problem.orbits.slot_of[transfer.link]) in slots and is_own(problem, transfer)
        else transfer
        for transfer in plan
    ]
    return tuple(earliest(problem, moved))
