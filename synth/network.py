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
    for resource in sorted(least):
        if resource >= costs.links:
            node[resource] = costs.ranks + 2 * len(node)
            arcs.append((node[resource], node[resource] + 1, least[resource], resource))
    for link, (source, target) in enumerate(problem.ends):
        first = int(costs.use_start[link])
        shared = [node[r] for r in costs.use_resource[first + 1 : costs.use_start[link + 1]].tolist()]
        if not shared:
            arcs.append((source, target, ticks[first], link))
            continue
        arcs.append((source, shared[0], ticks[first], link))
        arcs.append((shared[-1] + 1, target, ticks[first], link))
        passed.update((a + 1, b) for a, b in pairwise(shared))
    arcs += [(a, b, FREE, 0) for a, b in sorted(passed)]
    table = np.array(arcs, dtype=np.int64).reshape(-1, 4)
    return Network(problem, size, costs.ranks + 2 * len(node), table[:, 0], table[:, 1], table[:, 2:])
