"""Network: a problem as a flow network, in which the resources that links share are switch nodes.

A link is a path from its source through the nodes of its shared resources to its target. Each resource is an arc from
the way in to the way out of its node. Where links of different pairs share resources, a flow may enter by one link
and leave by another, so the network can carry no less than the topology: cuts in it are bounds on the topology.
Capacities are in transfers: a resource that is busy for t ticks per transfer takes T / t in T ticks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from synth.problem import Problem
from synth.symmetry import Ints

FREE = 0
"""Ticks of an arc that takes no time, so has no limit."""


@dataclass(frozen=True, eq=False)
class Network:
    """Nodes (ranks first) and arcs; ``gate[a]`` is (ticks per transfer, resource) of what limits arc a.

    The arc of a link is limited by the link itself, the arc through a shared resource by that resource at the fastest
    of its links. Ticks FREE: no limit.
    """

    problem: Problem
    size: int
    nodes: int
    tail: Ints = field(repr=False)
    head: Ints = field(repr=False)
    gate: Ints = field(repr=False)

    @cached_property
    def sinks(self) -> tuple[int, ...]:
        """One rank of each orbit of ranks: what holds for a cut that misses it holds for its images."""
        return tuple(np.unique(self.problem.symmetry.images.min(axis=0)).tolist())


def network(problem: Problem, size: int = 0) -> Network:
    """The network of a problem for transfers of one size class. O(uses)."""
    costs = problem.costs
    ticks = costs.use_ticks[:, size].tolist()
    least: dict[int, int] = {}
    for use, resource in enumerate(costs.use_resource.tolist()):
        least[resource] = min(ticks[use], least.get(resource, ticks[use]))
    arcs: list[tuple[int, int, int, int]] = []
    node: dict[int, int] = {}
    passed: set[tuple[int, int]] = set()
    place = _places(problem)
    for resource in sorted(least):
        if resource >= costs.links:
            node[resource] = costs.ranks + 2 * len(node)
            arcs.append((node[resource], node[resource] + 1, least[resource], resource))
    for link, (source, target) in enumerate(problem.ends):
        first = int(costs.use_start[link])
        used = costs.use_resource[first + 1 : costs.use_start[link + 1]].tolist()
        shared = [node[r] for r in sorted(used, key=lambda r: place[r])]
        if not shared:
            arcs.append((source, target, ticks[first], link))
            continue
        arcs.append((source, shared[0], ticks[first], link))
        arcs.append((shared[-1] + 1, target, ticks[first], link))
        passed.update((a + 1, b) for a, b in pairwise(shared))
    arcs += [(a, b, FREE, 0) for a, b in sorted(passed)]
    table = np.array(arcs, dtype=np.int64).reshape(-1, 4)
    return Network(problem, size, costs.ranks + 2 * len(node), table[:, 0], table[:, 1], table[:, 2:])


def _places(problem: Problem) -> dict[int, float]:
    """How far down the way from source to target each resource stands: ways out have few sources, ways in many.

    The order in which a link names its resources would not do: on a reversed topology it is the wrong way round.
    """
    costs = problem.costs
    ends: dict[int, tuple[set[int], set[int]]] = {}
    for link, (source, target) in enumerate(problem.ends):
        for resource in costs.use_resource[costs.use_start[link] : costs.use_start[link + 1]].tolist():
            sources, targets = ends.setdefault(resource, (set(), set()))
            sources.add(source)
            targets.add(target)
    return {resource: len(sources) / len(targets) for resource, (sources, targets) in ends.items()}
