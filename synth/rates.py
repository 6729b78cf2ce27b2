"""Rates: the least rounds per chunk that any number of steps, or a given one, allows; the bandwidth axis of SCCL.

A linear program over the network in which rank and step are one node: every destination receives a unit of flow of
each item it wants, flows of one item share what they both send (it is sent once), and what crosses a link in a step
is at most its lanes times the rounds of that step. Every schedule of C chunks in R rounds, divided by C, is a solution
with R / C rounds; so the optimum is a lower bound of R / C for every number of chunks.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction

from synth.problem import Problem
from synth.solver_glop import Program, solve

_LARGEST = 60_000
"""Variables of a program that is still worth solving; without it nothing is proved."""


@dataclass
class _Network:
    """A program being built, and where its variables are."""

    problem: Problem
    lanes: dict[int, int]
    steps: int | None
    program: Program = field(default_factory=Program)
    rounds: dict[int, int] = field(default_factory=dict)
    capacity: dict[tuple[int, int], int] = field(default_factory=dict)


def hops(problem: Problem, item: int) -> list[int]:
    """The number of links from the item's origin to every rank; the number of ranks where there is no way."""
    return _breadth_first(problem, item, problem.demand.items[item].origin, problem.outgoing, 1)


def hops_to(problem: Problem, item: int, rank: int) -> list[int]:
    """The number of links from every rank to ``rank``; the number of ranks where there is no way."""
    return _breadth_first(problem, item, rank, problem.incoming, 0)


def least_rate(problem: Problem, lanes: dict[int, int], steps: int | None, seconds: float) -> Fraction:
    """A proved lower bound of rounds per chunk for schedules of so many steps (None: of any number).

    ``problem`` has one chunk per shard; ``lanes`` are those of each link. 0 where the program is too large or takes
    too long.
    """
    made = _Network(problem, lanes, steps)
    for step in range(1 if steps is None else steps):
        made.rounds[step] = made.program.variable(cost=1)
    for item in problem.representatives:
        _add_item(made, item)
        if len(made.program.cost) > _LARGEST:
            return Fraction(0)
    least = solve(made.program, seconds)
    return Fraction(0) if least is None else least.proved


def _breadth_first(problem: Problem, item: int, start: int, links: tuple[tuple[int, ...], ...], end: int) -> list[int]:
    far = [problem.costs.ranks] * problem.costs.ranks
    far[start] = 0
    queue = deque([start])
    while queue:
        rank = queue.popleft()
        for link in links[rank]:
            peer = problem.ends[link][end]
            if far[peer] == problem.costs.ranks and peer != start and problem.may_use(item, link):
                far[peer] = far[rank] + 1
                queue.append(peer)
    return far


def _add_item(made: _Network, item: int) -> None:
    problem = made.problem
    head, sent = hops(problem, item), dict[tuple[int, int], int]()
    for destination in problem.demand.items[item].destinations:
        tail = hops_to(problem, item, destination)
        balance: dict[tuple[int, int], int] = {}
        for step in made.rounds:
            for link, (source, target) in enumerate(problem.ends):
                if _fits(made, head[source], tail[target], step) and problem.may_use(item, link):
                    flow = made.program.variable()
                    _add_flow(made, sent, (item, link, step), flow)
                    _move(made, balance, item, destination, (source, target, step), flow)
        _add_holding(made, balance, destination)


def _fits(made: _Network, before: int, after: int, step: int) -> bool:
    return made.steps is None or (before <= step and step + 1 + after <= made.steps)


def _add_flow(made: _Network, sent: dict[tuple[int, int], int], key: tuple[int, int, int], flow: int) -> None:
    """What is sent of an item over a link is no less than what any destination gets that way, and has room there."""
    _, link, step = key
    program = made.program
    if (link, step) not in sent:
        sent[link, step] = program.variable()
        slot = made.problem.link_slots[link]
        if (slot, step) not in made.capacity:
            made.capacity[slot, step] = program.row(0)
            program.entry(made.capacity[slot, step], made.rounds[step], made.lanes[link])
        program.entry(made.capacity[slot, step], sent[link, step], -1)
    row = program.row(0)
    program.entry(row, sent[link, step], 1)
    program.entry(row, flow, -1)


def _move(
    made: _Network,
    balance: dict[tuple[int, int], int],
    item: int,
    destination: int,
    arc: tuple[int, int, int],
    flow: int,
) -> None:
    """A flow leaves (source, step) and enters (target, step + 1); all steps are one without steps."""
    source, target, step = arc
    origin = made.problem.demand.items[item].origin
    after = step if made.steps is None else step + 1
    for rank, at, sign in ((source, step, -1), (target, after, 1)):
        if rank != origin:
            row = _balance_of(made, balance, rank, at, destination)
            made.program.entry(row, flow, sign)


def _balance_of(made: _Network, balance: dict[tuple[int, int], int], rank: int, at: int, destination: int) -> int:
    """The row: what enters (rank, at) is no less than what leaves it, by one on the destination at the end."""
    key = (rank, 0) if rank == destination else (rank, at)
    if key not in balance:
        balance[key] = made.program.row(int(rank == destination))
    return balance[key]


def _add_holding(made: _Network, balance: dict[tuple[int, int], int], destination: int) -> None:
    """Ranks keep what they have from step to step."""
    if made.steps is None:
        return
    for rank, at in sorted(balance):
        if rank != destination:
            later = min((s for r, s in balance if r == rank and s > at), default=None)
            if later is not None:
                kept = made.program.variable()
                made.program.entry(balance[rank, at], kept, -1)
                made.program.entry(balance[rank, later], kept, 1)
    if destination not in {rank for rank, _ in balance}:
        made.program.row(1)
