"""Pose: from a topology, a collective and perhaps a sketch to the problems that engines and bounds are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from commlib.collectives import Collective
from commlib.demand import Demand, demand
from commlib.errors import TopologyError
from commlib.topology import Topology, cost_table
from synth.discover import discover
from synth.errors import SynthesisError
from synth.logical import Logical, logical
from synth.problem import Problem, Rules
from synth.sketch import Sketch
from synth.symmetry import Actions, Ints, Symmetry


@dataclass(frozen=True, eq=False)
class Posed:
    """``problem`` is the one to solve; ``whole`` is that of the whole topology without a sketch, for bounds.

    They are one object where there is no sketch. Their ticks may differ in length: compare seconds.
    """

    problem: Problem
    whole: Problem
    notes: tuple[str, ...] = ()


def pose(
    topology: Topology,
    collective: Collective,
    chunk_bytes: float,
    sketch: Sketch | None = None,
    bytes_of: Sequence[Sequence[float]] | None = None,
    symmetric: bool = True,
) -> Posed:
    """The problem of moving chunks of ``chunk_bytes`` bytes as a collective says, guided by a sketch.

    The collective has the chunks per shard that are wanted: a sketch's ``chunkup`` is the caller's to apply
    (``collective.refine(sketch.chunkup)``). A collective that reduces is posed on the reversed topology. With
    ``symmetric``, the sketch's symmetries bind, and without a sketch symmetries are searched.

    Raises:
        SpecError: allreduce, or another collective that has no demand.
        TopologyError: the collective has another number of ranks.
        SketchError: the sketch does not fit the topology.
        SynthesisError: some rank cannot be reached; says which, and with a sketch which of its statements clash.
    """
    if topology.ranks != collective.ranks:
        message = f"{topology.name} has {topology.ranks} ranks and {collective.name} {collective.ranks}"
        raise TopologyError(message, ranks=topology.ranks)
    wanted = demand(collective, chunk_bytes, bytes_of)
    whole = _problem(topology.reversed() if wanted.reduces else topology, wanted, symmetric)
    _require_reachable(whole)
    if sketch is None:
        return Posed(whole, whole)
    found = logical(topology, sketch, wanted)
    problem, notes = _sketched(found, wanted, sketch, symmetric)
    _require_reachable(problem)
    return Posed(problem, whole, (*found.notes, *notes))


def _problem(topology: Topology, wanted: Demand, symmetric: bool) -> Problem:
    costs = cost_table(topology, wanted.sizes)
    symmetry = discover(Actions(costs, wanted), topology) if symmetric else Symmetry.trivial(topology.ranks)
    return Problem(topology, wanted, costs, symmetry)


def _sketched(found: Logical, wanted: Demand, sketch: Sketch, symmetric: bool) -> tuple[Problem, list[str]]:
    costs = cost_table(found.topology, wanted.sizes)
    if not sketch.symmetry or not symmetric:
        return Problem(found.topology, wanted, costs, Symmetry.trivial(costs.ranks), found.rules), []
    actions, notes, usable = Actions(costs, wanted), [], []
    for key, image in found.generators:
        _require_kept(actions, found.rules, sketch, key, image)
        if actions.items(image) is None:
            notes.append(f"{key} is not used: {wanted.collective.name} does not have this symmetry")
        else:
            usable.append((key, image))
    symmetry, left = actions.group(image for _, image in usable)
    for key, image in usable:
        if any(image is other for other in left):
            notes.append(f"{key} is not used: it leaves a rank or a shared resource in place")
    rules = replace(found.rules, symmetric=symmetry.order > 1)
    return Problem(found.topology, wanted, costs, symmetry, rules), notes


def _require_kept(actions: Actions, rules: Rules, sketch: Sketch, key: str, image: Ints) -> None:
    """Insist that a symmetry of the sketch maps the logical topology to itself."""
    costs, links = actions.costs, actions.links(image)
    same = (links >= 0) & (costs.latency[links] == costs.latency).all(axis=1)
    if not same.all():
        place = int(np.flatnonzero(~same)[0])
        link = (int(costs.source[place]), int(costs.target[place]))
        other = (int(image[link[0]]), int(image[link[1]]))
        why = "there is no such link" if links[place] < 0 else "their costs differ"
        message = f"link {link[0]} -> {link[1]} would become {other[0]} -> {other[1]}, and {why}"
        raise sketch.fail(key, message, link=link)
    if actions.resources(image) is None:
        raise sketch.fail(key, "links that share a port or NIC would become links that do not")
    to = actions.items(image)
    if to is not None and rules.allowed is not None and not np.array_equal(rules.allowed[to][:, links], rules.allowed):
        item, place = np.argwhere(rules.allowed[to][:, links] != rules.allowed)[0].tolist()
        message = (
            f"items of rank {actions.demand.items[item].origin} may take link {costs.source[place]} -> "
            f"{costs.target[place]} or not, and their images the other way round"
        )
        raise sketch.fail(key, message, link=(int(costs.source[place]), int(costs.target[place])))


def _require_reachable(problem: Problem) -> None:
    for number in problem.representatives:
        item = problem.demand.items[number]
        reached = problem.distances(number)
        for rank in item.destinations:
            if reached[rank] == max(reached) and not _is_reached(problem, number, rank):
                message = f"{problem.topology.name}: rank {rank} cannot be reached from rank {item.origin}"
                raise SynthesisError(message, rank=rank, origin=item.origin)


def _is_reached(problem: Problem, item: int, rank: int) -> bool:
    from synth.problem import NEVER

    return problem.distances(item)[rank] < NEVER
