"""Pose: from a topology, a collective and perhaps a sketch to the problems that engines and bounds are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from commlib.collectives import Collective
from commlib.demand import Demand, demand
from commlib.errors import LimitError, TopologyError
from commlib.topology import Topology, cost_table
from synth.discover import discover
from synth.explain import require_kept, require_reachable
from synth.logical import Logical, logical
from synth.problem import Problem
from synth.sketch import Sketch
from synth.symmetry import Actions, Symmetry

DELIVERIES = 1 << 22
"""Chunks that all ranks together are delivered, at most: four per shard of an allgather on 1024 ranks."""
PARTS = 1 << 24
"""The same times the instances: parts of chunks that the algorithm moves, at least."""


def require_affordable(collective: Collective, instances: int = 1) -> None:
    """Refuse what would take hours and all memory, before anything is made of it. O(ranks).

    Raises:
        LimitError: more than ``DELIVERIES`` chunks are to be delivered, or ``PARTS`` parts of them.
    """
    counts = (collective.input_chunks, collective.output_chunks)
    delivered = max(sum(count(rank) for rank in range(collective.ranks)) for count in counts)
    if delivered > DELIVERIES:
        raise LimitError(
            f"{collective} delivers {delivered} chunks in all, over the limit of {DELIVERIES}: ask for fewer than "
            f"{collective.chunks} chunks, or for fewer than {collective.ranks} ranks",
            limit=DELIVERIES,
            chunks=collective.chunks,
            ranks=collective.ranks,
        )
    if delivered * instances > PARTS:
        raise LimitError(
            f"{collective} delivers {delivered} chunks in all, in {instances} instances more than {PARTS} parts: "
            f"at most {PARTS // delivered} instances can be had",
            limit=PARTS,
            instances=instances,
        )


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
        LimitError: it has too many chunks (see ``require_affordable``).
        SketchError: the sketch does not fit the topology.
        SynthesisError: some rank cannot be reached; says which, and with a sketch which of its statements clash.
    """
    if topology.ranks != collective.ranks:
        message = f"{topology.name} has {topology.ranks} ranks and {collective.name} {collective.ranks}"
        raise TopologyError(message, ranks=topology.ranks)
    require_affordable(collective)
    wanted = demand(collective, chunk_bytes, bytes_of)
    whole = _whole(topology.reversed() if wanted.reduces else topology, wanted, symmetric)
    require_reachable(whole, topology)
    if sketch is None:
        return Posed(whole, whole)
    found = logical(topology, sketch, wanted)
    problem, notes = _sketched(found, topology, wanted, sketch, symmetric)
    require_reachable(problem, topology, sketch)
    return Posed(problem, whole, (*found.notes, *notes))


def _whole(topology: Topology, wanted: Demand, symmetric: bool) -> Problem:
    costs = cost_table(topology, wanted.sizes)
    symmetry = discover(Actions(costs, wanted)) if symmetric else Symmetry.trivial(topology.ranks)
    return Problem(topology, wanted, costs, symmetry)


def _sketched(
    found: Logical, topology: Topology, wanted: Demand, sketch: Sketch, symmetric: bool
) -> tuple[Problem, list[str]]:
    """The sketch's problem. Its symmetries bind; a sketch that states none gets those that are found."""
    costs = cost_table(found.topology, wanted.sizes)
    actions = Actions(costs, wanted, found.rules.allowed)
    symmetry, rules, notes = Symmetry.trivial(costs.ranks), found.rules, list[str]()
    if symmetric and sketch.symmetry:
        for generator in found.generators:
            require_kept(actions, topology, sketch, generator)
        symmetry, notes = _stated(found, actions)
        rules = replace(rules, symmetric=symmetry.order > 1)
    elif symmetric:
        symmetry = discover(actions)
    return Problem(found.topology, wanted, costs, symmetry, rules), notes


def _stated(found: Logical, actions: Actions) -> tuple[Symmetry, list[str]]:
    """The group of a sketch's symmetries, and notes of those that cannot be used."""
    name, notes, usable = actions.demand.collective.name, [], []
    for key, image in found.generators:
        if actions.items(image) is None:
            notes.append(f"{key} is not used: {name} does not have this symmetry")
        else:
            usable.append((key, image))
    symmetry, left = actions.group(image for _, image in usable)
    for key, image in usable:
        if any(image is other for other in left):
            notes.append(f"{key} is not used: it leaves a rank or a shared resource where it is")
    return symmetry, notes
