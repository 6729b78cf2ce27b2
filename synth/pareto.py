"""SCCL's Pareto frontier: for each number of steps, the least rounds per chunk (Cai et al., PPoPP 2021).

A point (steps, rounds, chunks) costs steps x alpha + rounds / chunks x size x beta, so a point is worth having when
its rounds per chunk are fewer than those of every point with fewer steps. The frontier begins at the distance bound of
steps and ends where rounds per chunk meet the bound that holds for every number of steps. Each point says why nothing
with as many steps is better: a linear program (see rates), checked exactly, or that all numbers of chunks were tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from commlib.collectives import Collective, collective
from commlib.demand import demand
from commlib.errors import SpecError, TopologyError
from commlib.topology import Link, Topology, cost_table
from synth.discover import discover
from synth.engine import Budget
from synth.errors import SynthesisError
from synth.problem import Problem
from synth.rates import hops, least_rate
from synth.schedule import Schedule, Transfer, check, expand
from synth.solver_cp import Limits, Status
from synth.steps import Stepped, stepped
from synth.symmetry import Actions, Symmetry

NAMES = ("allgather", "reducescatter", "allreduce", "alltoall", "broadcast", "reduce", "scatter", "gather")
Lanes = Mapping[tuple[int, int], int]
"""Chunks per round that each link carries."""


@dataclass(frozen=True)
class Point:
    """A point of the frontier, with an algorithm for it.

    ``phases`` are its schedules: one, or reducescatter and allgather for allreduce (in that order; the chunks of
    allreduce are those of both together). ``rounds_of`` are the rounds of each step of the last phase. ``proven``:
    no algorithm with as many steps has fewer rounds per chunk; ``proof`` says why, or what is missing.
    """

    steps: int
    rounds: int
    chunks: int
    rounds_of: tuple[int, ...]
    phases: tuple[Schedule, ...] = field(repr=False)
    proven: bool
    proof: str

    @property
    def rate(self) -> Fraction:
        """Rounds per chunk."""
        return Fraction(self.rounds, self.chunks)

    def to_transfers(self) -> tuple[tuple[Transfer, ...], ...]:
        """The transfers of every phase, in ticks; a phase that reduces is to be read backwards (see Demand)."""
        return tuple(
            tuple(map(Transfer, phase.start.tolist(), phase.item.tolist(), phase.link.tolist()))
            for phase in self.phases
        )


@dataclass(frozen=True)
class Frontier:
    """The points with ever more steps and ever fewer rounds per chunk.

    ``limit`` is the proved least rounds per chunk for any number of steps; ``complete``: every point is proven and
    the last one meets it, so there are no others. ``note`` says what is missing otherwise.
    """

    points: tuple[Point, ...]
    limit: Fraction
    complete: bool
    note: str


def lane_topology(lanes: Lanes, ranks: int) -> Topology:
    """Links on which a chunk of one byte takes a whole number of seconds, the same for each round of every link.

    Raises:
        TopologyError: a link with less than one lane, or one that does not join two ranks.
    """
    for (source, target), count in lanes.items():
        if count < 1:
            message = f"link {source} -> {target} has at least one lane, not {count}"
            raise TopologyError(message, source=source, destination=target)
    unit = math.lcm(*lanes.values()) if lanes else 1
    return Topology("lanes", ranks, {pair: Link(0.0, unit // count) for pair, count in sorted(lanes.items())})


def lanes_of(topology: Topology) -> dict[tuple[int, int], int]:
    """The lanes of each link: how often its time for a chunk fits into the slowest link's.

    Raises:
        TopologyError: times that are no such fractions, or links that share resources, which lanes cannot express.
    """
    if topology.resources:
        raise TopologyError(f"{topology.name}: its links share resources, and lanes cannot say that")
    costs = cost_table(topology, [topology.unit.chunk_bytes])
    times = costs.latency[:, 0].tolist()
    slowest = max(times, default=0)
    lanes = {}
    for pair, time in zip(sorted(topology.links), times, strict=True):
        if time <= 0 or slowest % time:
            raise TopologyError(
                f"{topology.name}: link {pair[0]} -> {pair[1]} is not a whole number of times as fast as the slowest "
                "(costs of --cost taccl often are)",
                link=pair,
            )
        lanes[pair] = slowest // time
    return lanes


def pareto(
    lanes: Lanes,
    ranks: int,
    name: str,
    root: int | None = None,
    budget: Budget | None = None,
    max_steps: int | None = None,
    max_chunks: int = 8,
) -> Frontier:
    """The frontier of a collective on links with whole numbers of lanes.

    Searches up to ``max_steps`` steps (default: 6 more than the distance bound) and ``max_chunks`` chunks per shard
    (per block of the pair for alltoall). Allreduce is reducescatter followed by allgather: its points are proven
    among those, and both halves have the same steps.

    Raises:
        SpecError: a collective that the frontier is not defined for.
        TopologyError: lanes that are not whole and positive, or links that do not join two ranks.
        SynthesisError: a destination that cannot be reached.
        SolverError: OR-Tools is missing.
    """
    if name not in NAMES:
        raise SpecError(f"the frontier is defined for {', '.join(NAMES)}, not for {name!r}", collective=name)
    budget = Budget() if budget is None else budget
    if name == "allreduce":
        return _allreduce(lanes, ranks, budget, max_steps, max_chunks)
    search = _Search(lanes, ranks, name, root, budget, max_chunks)
    return search.frontier(max_steps)


@dataclass(frozen=True)
class _Search:
    lanes: Lanes
    ranks: int
    name: str
    root: int | None
    budget: Budget
    max_chunks: int

    def posed(self, chunks: int) -> tuple[Problem, dict[int, int]]:
        """The problem with so many chunks, and the lanes of its links by number."""
        wanted = demand(self.collective(chunks), 1.0)
        topology = lane_topology(self.lanes, self.ranks)
        topology = topology.reversed() if wanted.reduces else topology
        costs = cost_table(topology, wanted.sizes)
        problem = Problem(topology, wanted, costs, discover(Actions(costs, wanted)))
        return problem, {
            link: self.lanes[(b, a) if wanted.reduces else (a, b)] for link, (a, b) in enumerate(problem.ends)
        }

    def collective(self, chunks: int) -> Collective:
        """The collective with so many chunks per shard."""
        return collective(self.name, self.ranks, chunks, self.root)

    def frontier(self, max_steps: int | None) -> Frontier:
        """The points, from the fewest steps on."""
        problem, lanes = self.posed(1)
        least = _fewest_steps(problem)
        limit = least_rate(problem, lanes, None, self.budget.left)
        points: list[Point] = []
        missing: list[str] = []
        for steps in range(least, 1 + (least + 6 if max_steps is None else max_steps)):
            if least == 0 or (points and points[-1].rate <= limit):
                break
            if not self.budget.left:
                missing.append(f"time ran out before {steps} steps")
                break
            best = points[-1].rate if points else None
            rate = max(limit, self._rate(steps))
            if best is None or rate < best:
                point = self._point(steps, best, rate)
                points += [] if point is None else [point]
                missing += [] if point and point.proven else [f"{steps} steps: {rate} rounds per chunk not excluded"]
        if least and not missing and not (points and points[-1].rate <= limit):
            missing.append(f"more steps may come nearer to {limit} rounds per chunk")
        return Frontier(tuple(points), limit, not missing, "; ".join(missing))

    def _rate(self, steps: int) -> Fraction:
        problem, lanes = self.posed(1)
        return least_rate(problem, lanes, steps, self.budget.left)

    def _point(self, steps: int, best: Fraction | None, rate: Fraction) -> Point | None:
        """The best point with so many steps that is better than ``best``, if one is found."""
        open_questions = False
        for rounds, chunks in self._candidates(steps, best, rate):
            status, found, problem = self._ask(steps, rounds, chunks)
            if found is not None:
                schedule = expand(problem, found.plan)
                check(schedule)
                reached = Fraction(rounds, chunks)
                proof = self._proof(steps, reached, rate, open_questions)
                return Point(steps, rounds, chunks, found.rounds, (schedule,), reached == rate, proof)
            open_questions |= status is not Status.INFEASIBLE
        return None

    def _proof(self, steps: int, reached: Fraction, rate: Fraction, open_questions: bool) -> str:
        if reached == rate:
            return f"linear program: {steps} steps take at least {rate} rounds per chunk, whatever the chunks"
        if open_questions:
            return f"not proven: at least {rate} rounds per chunk; some numbers of chunks were not decided in time"
        return f"at least {rate} rounds per chunk; exhausted: no better one with up to {self.max_chunks} chunks"

    def _candidates(self, steps: int, best: Fraction | None, rate: Fraction) -> Iterator[tuple[int, int]]:
        """(rounds, chunks) from the fewest rounds per chunk on, then the fewest chunks; in lowest terms last."""
        found = set()
        for chunks in range(1, self.max_chunks + 1):
            first = max(steps, math.ceil(rate * chunks))
            last = first + chunks * self.ranks if best is None else math.ceil(best * chunks) - 1
            found |= {(Fraction(rounds, chunks), chunks, rounds) for rounds in range(first, last + 1)}
        for _, chunks, rounds in sorted(found):
            yield rounds, chunks

    def _ask(self, steps: int, rounds: int, chunks: int) -> tuple[Status, Stepped | None, Problem]:
        """Is there such an algorithm? First a symmetric one, then any."""
        problem, lanes = self.posed(chunks)
        limits = Limits(self.budget.left, self.budget.work, self.budget.seed)
        status, found = stepped(problem, lanes, steps, rounds, limits)
        if found is None and problem.symmetry.order > 1:
            problem = replace(problem, symmetry=Symmetry.trivial(self.ranks))
            status, found = stepped(problem, lanes, steps, rounds, replace(limits, seconds=self.budget.left))
        return status, found, problem


def _fewest_steps(problem: Problem) -> int:
    """The most hops that any item needs.

    Raises:
        SynthesisError: there is no way.
    """
    most = 0
    for item in problem.representatives:
        demanded, far = problem.demand.items[item], hops(problem, item)
        for rank in demanded.destinations:
            if far[rank] >= problem.costs.ranks:
                message = f"rank {rank} cannot be reached from rank {demanded.origin}"
                raise SynthesisError(message, origin=demanded.origin, rank=rank)
            most = max(most, far[rank])
    return most


def _allreduce(lanes: Lanes, ranks: int, budget: Budget, max_steps: int | None, max_chunks: int) -> Frontier:
    """Reducescatter, then allgather, point by point; ranks x chunks chunks, twice the steps and rounds."""
    half = None if max_steps is None else max_steps // 2
    scatter = pareto(lanes, ranks, "reducescatter", None, budget, half, max_chunks)
    gather = pareto(lanes, ranks, "allgather", None, budget, half, max_chunks)
    gathers = {(point.steps, point.rounds, point.chunks): point for point in gather.points}
    points = []
    for first in scatter.points:
        second = gathers.get((first.steps, first.rounds, first.chunks))
        if second is not None:
            points.append(_joined(first, second, ranks))
    complete = scatter.complete and gather.complete and len(points) == len(gathers)
    note = "complete among reducescatter followed by allgather" if complete else scatter.note or gather.note
    return Frontier(tuple(points), (scatter.limit + gather.limit) / ranks, complete, note)


def _joined(first: Point, second: Point, ranks: int) -> Point:
    return Point(
        first.steps + second.steps,
        first.rounds + second.rounds,
        first.chunks * ranks,
        second.rounds_of,
        first.phases + second.phases,
        first.proven and second.proven,
        f"among reducescatter followed by allgather: {first.proof}; {second.proof}",
    )
