"""The pipeline: from a topology, a sketch and a collective to a proved algorithm with its bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from commlib.bounds import Bound, LinearProgram, LinearSolver, allreduce_bounds, bounds
from commlib.collectives import Collective, collective
from commlib.demand import chunk_bytes as bytes_per_chunk
from commlib.errors import SpecError
from commlib.topology import CostTable, Topology
from synth.compose import allreduce_moves, moves_of
from synth.engine import Budget, Ended, Outcome, Progress, Stage
from synth.moves import Moves
from synth.portfolio import Plan, run
from synth.pose import Posed, pose, require_affordable
from synth.problem import Problem, Rules
from synth.result import Result
from synth.retiming import LISTED, is_reversible
from synth.schedule import Schedule, expand
from synth.sketch import Sketch
from synth.solver_lp import LpSolver
from synth.trees import tree_allreduce

Floats = npt.NDArray[np.float64]
_UNHURRIED = 1e6
"""Seconds that no linear program of a bound takes."""
Known = Mapping[str, Plan]
"""Plans that are known already, by the collective that they solve: starting points for engines."""


@dataclass(frozen=True)
class Question:
    """What is asked: a collective whose chunks have ``chunk_bytes`` bytes, on a topology, guided by a sketch.

    ``bytes_of[s][d]`` (alltoallv only) are the bytes from rank s to rank d.
    """

    topology: Topology
    collective: Collective
    chunk_bytes: float
    sketch: Sketch | None = None
    bytes_of: Sequence[Sequence[float]] | None = None


@dataclass(frozen=True)
class Phase:
    """One schedule of a result and what is known of it; an allreduce has two."""

    posed: Posed
    outcome: Outcome
    schedule: Schedule
    bounds: tuple[Bound, ...]
    topology_bounds: tuple[Bound, ...]

    @property
    def plan(self) -> Plan:
        """The plan that the schedule expands."""
        return self.outcome.plan


def profile_chunk(topology: Topology, wanted: Collective) -> float:
    """The bytes of a chunk where no size is given: shards are as large as a chunk of the topology's profile.

    The buffer of an allreduce has a shard for each rank.
    """
    shards = wanted.ranks if wanted.name == "allreduce" else 1
    return topology.unit.chunk_bytes * shards / wanted.chunks


def question(
    topology: Topology,
    name: str | Collective,
    *,
    size: float | None = None,
    chunks: int = 1,
    root: int | None = None,
    sketch: Sketch | None = None,
    bytes_of: Sequence[Sequence[float]] | None = None,
) -> Question:
    """The question that a user puts: ``size`` is nccl-tests' size in bytes (the total output of an allgather).

    Without it, each rank has one chunk of the size of the topology's profile. ``chunks`` is how many chunks a shard
    is cut into, and a sketch's ``input_chunkup`` cuts each of those again. Instead of a name, a collective of your own
    (see ``synth.demands``).

    Raises:
        SpecError: no such collective, a root for one that has its own, or a size that is not positive.
    """
    if root is not None and isinstance(name, Collective):
        raise SpecError(f"{name.name}: a collective of your own has its root already; leave root out", root=root)
    parts = chunks * (1 if sketch is None else sketch.chunkup)
    wanted = name.refine(parts) if isinstance(name, Collective) else collective(name, topology.ranks, parts, root)
    if size is not None and not 0 < size < float("inf"):
        raise SpecError(f"a size is a positive number of bytes, not {size}")
    if wanted.name == "allreduce":
        # Its buffer is one shard per rank, so that it can be a reducescatter and an allgather of the same chunks.
        wanted = wanted.refine(topology.ranks)
    each = profile_chunk(topology, wanted) if size is None else bytes_per_chunk(wanted, size)
    return Question(topology, wanted, each, sketch, bytes_of)


def solve(
    asked: Question,
    mode: str = "auto",
    budget: Budget | None = None,
    *,
    instances: int = 1,
    name: str | None = None,
    known: Known | None = None,
) -> Result:
    """Synthesize: bounds, engines, the schedule checked and composed. ``Result.algorithm`` compiles and proves it.

    Raises:
        SketchError: the sketch does not fit the topology.
        SynthesisError: no such mode, or a rank that cannot be reached: says which and why.
        SpecError: the collective has nothing that could be synthesized.
        LimitError: too many chunks or instances.
    """
    require_affordable(asked.collective, instances)
    budget = Budget() if budget is None else budget
    build = _allreduce if asked.collective.name == "allreduce" else _single
    result = build(asked, mode, budget, known or {})
    named = name or f"{asked.collective.name}_{asked.topology.name}"
    return replace(result, instances=instances, name=named, seconds=time.monotonic() - budget.began)


def _single(asked: Question, mode: str, budget: Budget, known: Known) -> Result:
    phase = _phase(asked, asked.collective, mode, budget, known)
    outcome, best, costs = phase.outcome, phase.bounds[0], phase.posed.problem.costs
    facts = _Facts(best.seconds, best.kind, best, phase.topology_bounds[0], outcome.ended)
    began = time.monotonic()
    moves = moves_of(phase.schedule)
    phase = _later(phase, Stage("compose", time.monotonic() - began))
    proved = best.ticks
    # What an engine proves of a mirrored problem need not be true of the collective; the bounds know of that.
    holds = not phase.posed.problem.demand.reduces or is_reversible(costs)
    if outcome.bound > best.ticks and holds:
        proved, own = outcome.bound, outcome.bound_kind or outcome.engine
        facts = replace(facts, bound=costs.seconds(proved), kind=own, certificate=None)
    if moves.ticks <= proved:
        facts = replace(facts, ended=Ended.PROOF)
    elif outcome.ended is Ended.PROOF:
        facts = replace(facts, ended=Ended.HEURISTIC, notes=() if holds else (_MIRRORED,))
    return _result(asked, moves, (phase,), facts)


_MIRRORED = (
    "solved backwards; links that share a resource hold it for different parts of their time, so what a search proved "
    "backwards is no proof, and a shorter schedule may exist"
)
_SHARED = (
    "connections that share a port or NIC take it as they come when the algorithm runs: the time is that of the "
    "schedule's order, which an algorithm cannot express"
)


def _phase(
    asked: Question, wanted: Collective, mode: str, budget: Budget, known: Known, twin: Phase | None = None
) -> Phase:
    began = time.monotonic()
    posed = pose(asked.topology, wanted, asked.chunk_bytes, asked.sketch, asked.bytes_of)
    posed_at = time.monotonic()
    if twin is not None and _alike(posed.problem, twin.posed.problem):
        outcome = replace(twin.outcome, stages=(Stage("pose", posed_at - began),))
        schedule = replace(twin.schedule, problem=posed.problem)
        return Phase(posed, outcome, schedule, twin.bounds, twin.topology_bounds)
    # A work limit promises the same result every time, so that the clock must not cut the bound either.
    solver = _Watched(LpSolver(budget.left / 2 if budget.work is None else _UNHURRIED, budget.threads))
    found = problem_bounds(posed.problem, solver)
    whole = found if posed.whole is posed.problem else problem_bounds(posed.whole, solver)
    bounded_at = time.monotonic()
    budget = replace(budget, report=_with_tick(budget.report, posed.problem.costs.tick))
    outcome = run(mode, posed.problem, budget, found[0].ticks, known.get(wanted.name))
    stages = (Stage("pose", posed_at - began), Stage("bounds", bounded_at - posed_at), *outcome.stages)
    outcome = replace(outcome, stages=stages, notes=(*posed.notes, *outcome.notes))
    if solver.gave_up and outcome.ended is not Ended.PROOF:
        outcome = replace(outcome, ended=Ended.TIME, notes=(*outcome.notes, "the clock cut the flow bound"))
    expanded_at = time.monotonic()
    schedule = outcome.wider or expand(posed.problem, outcome.plan)
    found_phase = Phase(posed, outcome, schedule, tuple(found), tuple(whole))
    return _later(found_phase, Stage("expand", time.monotonic() - expanded_at))


@dataclass
class _Watched:
    """A solver of linear programs, and whether it gave up on one."""

    solver: LinearSolver
    gave_up: bool = False

    def __call__(self, program: LinearProgram) -> Floats | None:
        found = self.solver(program)
        self.gave_up |= found is None
        return found


def _with_tick(report: Callable[[Progress], None], tick: float) -> Callable[[Progress], None]:
    """A report that knows how long a tick is."""
    return lambda progress: report(progress._replace(tick=tick))


def _alike(one: Problem, other: Problem) -> bool:
    """Whether a plan for one problem is one for the other: items and links correspond by their numbers.

    Shared resources need not: what was a port out on one topology is a port in on the reversed one.
    """
    a, b = one.costs, other.costs
    same = a.tick == b.tick and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("source", "target"))
    ways = [(item.origin, item.index, item.destinations) for item in one.demand.items]
    return (
        same
        and np.array_equal(a.latency, b.latency)
        and _sharing(a) == _sharing(b)
        and ways == [(item.origin, item.index, item.destinations) for item in other.demand.items]
        and np.array_equal(one.symmetry.images, other.symmetry.images)
        and _same_rules(one.rules, other.rules)
    )


def _sharing(costs: CostTable) -> list[tuple[bytes, bytes]]:
    """For each resource the links that take it and for how long, in an order that does not know their names."""
    link = np.repeat(np.arange(costs.links), np.diff(costs.use_start))
    order = np.lexsort((link, costs.use_resource))
    cuts = np.flatnonzero(np.diff(costs.use_resource[order])) + 1
    groups = np.split(order, cuts)
    return sorted((link[group].tobytes(), costs.use_ticks[group].tobytes()) for group in groups)


def _same_rules(one: Rules, other: Rules) -> bool:
    if (one.allowed is None) != (other.allowed is None):
        return False
    return one.own_first == other.own_first and (
        one.allowed is None or other.allowed is None or np.array_equal(one.allowed, other.allowed)
    )


def problem_bounds(problem: Problem, solver: LinearSolver | None = None) -> list[Bound]:
    """The lower bounds of a problem, best first; nodes are the groups of ranks that are looked at."""
    return bounds(
        problem.costs,
        problem.demand,
        allowed=problem.rules.allowed,
        representatives=problem.representatives,
        groups=_nodes(problem.topology),
        solver=LpSolver() if solver is None else solver,
    )


def question_bounds(asked: Question) -> tuple[list[Bound], list[Bound]]:
    """The lower bounds of a question with its sketch and on the whole topology, best first; one list without a sketch.

    Raises: as ``solve``.
    """
    wanted = asked.collective
    reduces = wanted.name == "allreduce"
    if reduces:
        wanted = collective("allgather", wanted.ranks, wanted.chunks // wanted.ranks)
    posed = pose(asked.topology, wanted, asked.chunk_bytes, asked.sketch, asked.bytes_of)

    def of(problem: Problem) -> list[Bound]:
        return _allreduce_bounds(problem, asked.collective) if reduces else problem_bounds(problem)

    found = of(posed.problem)
    return found, found if posed.whole is posed.problem else of(posed.whole)


def _nodes(topology: Topology) -> list[list[int]]:
    """The ranks of each node; nothing where there is one node only."""
    groups: dict[int, list[int]] = {}
    for rank, node in enumerate(topology.node_of):
        groups.setdefault(node, []).append(rank)
    return list(groups.values()) if len(groups) > 1 else []


def _allreduce_bounds(problem: Problem, wanted: Collective) -> list[Bound]:
    ranks = sorted({problem.demand.items[item].origin for item in problem.representatives})
    return allreduce_bounds(problem.costs, wanted, groups=_nodes(problem.topology), ranks=ranks)


def _allreduce(asked: Question, mode: str, budget: Budget, known: Known) -> Result:
    """Reducescatter and allgather, one budget for both; the second takes the first one's plan where it fits."""
    ranks = asked.topology.ranks
    chunks = asked.collective.chunks // ranks
    half = replace(budget, seconds=budget.left / 2, began=time.monotonic())
    scatter = _phase(asked, collective("reducescatter", ranks, chunks), mode, half, known)
    gather = _phase(asked, collective("allgather", ranks, chunks), mode, budget, known, scatter)
    ended = scatter.outcome.ended.after(gather.outcome.ended)
    began = time.monotonic()
    moves = allreduce_moves(scatter.schedule, gather.schedule)
    composed_at = time.monotonic()
    facts = _allreduce_facts(moves, gather.posed, asked.collective, ended)
    bounded_at = time.monotonic()
    phases = (scatter, _later(gather, Stage("compose", composed_at - began)))
    found = [_result(asked, moves, phases, facts), *_through_trees(asked, phases, ended, facts)]
    best = min(found, key=lambda result: result.time)
    last = (Stage("bounds", bounded_at - composed_at), Stage("trees", time.monotonic() - bounded_at))
    return replace(best, stages=(*best.stages, *last))


def _later(phase: Phase, stage: Stage) -> Phase:
    """The phase with one more stage."""
    return replace(phase, outcome=replace(phase.outcome, stages=(*phase.outcome.stages, stage)))


def _allreduce_facts(moves: Moves, posed: Posed, wanted: Collective, ended: Ended) -> _Facts:
    best, whole = _allreduce_bounds(posed.problem, wanted)[0], _allreduce_bounds(posed.whole, wanted)[0]
    ended = Ended.PROOF if moves.ticks <= best.ticks else ended
    return _Facts(best.seconds, best.kind, best, whole, ended)


def _through_trees(asked: Question, phases: tuple[Phase, ...], ended: Ended, asked_of: _Facts) -> Iterator[Result]:
    """Reduce to a root and broadcast back: with all chunks, and with the buffer in one piece, for small ones.

    Not where a sketch restricts who may send what, since a tree would not keep to that.
    """
    problem = phases[-1].posed.problem
    if problem.rules.allowed is not None or len(problem.demand.items) * problem.costs.ranks > LISTED:
        return
    for pieces in sorted({asked.collective.chunks, asked.collective.chunks // asked.topology.ranks}):
        share = asked.collective.chunks // pieces
        wanted = replace(asked.collective, chunks=pieces)
        cut = replace(asked, collective=wanted, chunk_bytes=asked.chunk_bytes * share)
        posed = pose(asked.topology, collective("allgather", wanted.ranks), cut.chunk_bytes, asked.sketch)
        moves = tree_allreduce(posed.problem.costs, pieces)
        facts = _allreduce_facts(moves, posed, wanted, ended)
        if asked_of.bound < facts.bound:
            # What holds for one piece need not hold for the chunks that were asked for.
            met = moves.seconds <= asked_of.bound
            facts = replace(asked_of, ended=Ended.PROOF if met else ended)
        gather = replace(phases[-1], posed=posed)
        yield replace(_result(cut, moves, (*phases[:-1], gather), facts), engine="trees")


@dataclass(frozen=True)
class _Facts:
    """What is known of a result's quality; ``bound`` in seconds."""

    bound: float
    kind: str
    certificate: Bound | None
    whole: Bound
    ended: Ended
    notes: tuple[str, ...] = ()


def _forward(problem: Problem) -> Topology:
    """The problem's topology with its links in the direction of the moves."""
    return problem.topology.reversed() if problem.demand.reduces else problem.topology


def _name(phase: Phase) -> str:
    return phase.posed.problem.demand.collective.name


def _result(asked: Question, moves: Moves, phases: tuple[Phase, ...], facts: _Facts) -> Result:
    stages = [
        Stage(stage.name if len(phases) == 1 else f"{_name(phase)} {stage.name}", stage.seconds)
        for phase in phases
        for stage in phase.outcome.stages
    ]
    engines = dict.fromkeys(phase.outcome.engine for phase in phases)
    notes = dict.fromkeys(note for phase in phases for note in (*phase.outcome.notes, *facts.notes))
    if len(moves.costs.resource_names) > moves.costs.links:
        notes[_SHARED] = None
    return Result(
        collective=asked.collective,
        topology=asked.topology,
        logical=_forward(phases[-1].posed.problem),
        moves=moves,
        chunk_bytes=asked.chunk_bytes,
        engine="+".join(engines),
        ended=facts.ended,
        time=moves.seconds,
        bound=facts.bound,
        bound_kind=facts.kind,
        certificate=facts.certificate,
        topology_bound=facts.whole.seconds,
        topology_bound_kind=facts.whole.kind,
        stages=tuple(stages),
        seconds=0.0,
        notes=tuple(notes),
        plans={_name(phase): phase.plan for phase in phases},
    )
