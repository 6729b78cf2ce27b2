"""Random small problems and good schedules for them, found by search: a bound above such a time is a wrong bound."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from commlib.collectives import Collective
from commlib.demand import Demand, demand
from commlib.topology.costs import CostTable, cost_table
from commlib.topology.model import Link, Resource, Topology


def random_topology(chance: random.Random, ranks: int) -> Topology:
    """A strongly connected digraph: whole costs, some links pipelined, some on shared resources of any speed."""
    resources = {
        f"r{k}": Resource(chance.choice([None, None, 1.0, 2.0, 5.0])) for k in range(chance.choice([0, 1, 2, 3]))
    }
    ring = list(range(ranks))
    chance.shuffle(ring)
    pairs = {(a, b) for a, b in zip(ring, ring[1:] + ring[:1], strict=True)}
    density = chance.random()
    pairs |= {(a, b) for a in range(ranks) for b in range(ranks) if a != b and chance.random() < density}
    links = {}
    for pair in sorted(pairs):
        shared = tuple(name for name in resources if chance.random() < 0.5)
        alpha, beta = chance.choice([0, 1, 2, 7]), chance.choice([1, 2, 3])
        links[pair] = Link(alpha, beta, shared, chance.random() < 0.4)
    return Topology("random", ranks, links, resources)


def ported_topology(chance: random.Random, ranks: int) -> Topology:
    """Nodes of two ranks: links inside, and between nodes through a NIC of each node (in and out, or both on one)."""
    half = chance.random() < 0.3
    nodes = range((ranks + 1) // 2)
    names = [(f"n{k}", f"n{k}") if half else (f"out{k}", f"in{k}") for k in nodes]
    resources = {name: Resource() for pair in names for name in pair}
    inside, between = chance.choice([1, 2, 3]), chance.choice([1, 2, 5])
    links = {}
    for a in range(ranks):
        for b in range(ranks):
            if a // 2 == b // 2 and a != b:
                links[a, b] = Link(0, inside)
            elif a // 2 != b // 2:
                links[a, b] = Link(chance.choice([0, 3]), between, (names[a // 2][0], names[b // 2][1]), True)
    return Topology("ported", ranks, links, resources, tuple(r // 2 for r in range(ranks)))


def posed(topology: Topology, collective: Collective) -> tuple[CostTable, Demand]:
    """Costs and demand for chunks of one byte, of a reducing collective on the reversed topology."""
    wanted = demand(collective, 1.0)
    return cost_table(topology.reversed() if wanted.reduces else topology, wanted.sizes), wanted


@dataclass
class Search:
    """Depth-first search over transfers in order of their starts, each as early as it can, ``limit`` nodes.

    ``backwards``: a transfer takes its resources at its end (how a reduction runs, read backwards).
    """

    costs: CostTable
    wanted: Demand
    chance: random.Random
    limit: int = 2000
    backwards: bool = False
    allowed: npt.NDArray[np.bool_] | None = None
    best: int = 1 << 60

    def run(self) -> int:
        """The best time found."""
        arrival = {(k, item.origin): 0 for k, item in enumerate(self.wanted.items)}
        missing = {(k, d) for k, item in enumerate(self.wanted.items) for d in item.destinations}
        self._descend(arrival, missing, {}, 0, 0)
        return self.best

    def _moves(self, arrival, missing, free, now):
        found = []
        alive = {k for k, _ in missing}
        for k, rank in arrival:
            if k not in alive:
                continue
            size = self.wanted.items[k].size
            for e in range(self.costs.links):
                target = int(self.costs.target[e])
                barred = self.allowed is not None and not self.allowed[k, e]
                if barred or int(self.costs.source[e]) != rank or (k, target) in arrival:
                    continue
                late = int(self.costs.latency[e, size])
                uses = []
                start = max(arrival[k, rank], now)
                for u in range(int(self.costs.use_start[e]), int(self.costs.use_start[e + 1])):
                    busy = int(self.costs.use_ticks[u, size])
                    shift = late - busy if self.backwards else 0
                    resource = int(self.costs.use_resource[u])
                    start = max(start, free.get(resource, -(1 << 40)) - shift)
                    uses.append((resource, shift, busy))
                if start + late < self.best:
                    found.append((start + late, self.chance.random(), start, k, target, uses))
        return sorted(found)

    def _descend(self, arrival, missing, free, now, last):
        if not missing:
            self.best = min(self.best, last)
            return
        self.limit -= 1
        for end, _, start, k, target, uses in self._moves(arrival, missing, free, now):
            if self.limit <= 0:
                return
            if end >= self.best:
                continue
            taken = dict(free)
            taken.update({resource: start + shift + busy for resource, shift, busy in uses})
            counted = max(last, end) if (k, target) in missing else last
            self._descend({**arrival, (k, target): end}, missing - {(k, target)}, taken, start, counted)


def ndv2(nodes: int = 1, double: float = 23.0, single: float = 46.0) -> Topology:
    """NDv2 in microseconds a chunk of one byte: 8 GPUs in a hybrid cube mesh; nodes joined through one NIC each."""
    pairs = dict.fromkeys(((0, 3), (0, 4), (1, 2), (1, 5), (2, 3), (4, 7), (5, 6), (6, 7)), double)
    pairs |= dict.fromkeys(((0, 1), (0, 2), (1, 3), (2, 6), (3, 7), (4, 5), (4, 6), (5, 7)), single)
    links = {}
    for base in range(0, 8 * nodes, 8):
        for (a, b), cost in pairs.items():
            links[base + a, base + b] = links[base + b, base + a] = Link(0, cost * 1e-6)
    ranks = 8 * nodes
    far = [(a, b) for a in range(ranks) for b in range(ranks) if a // 8 != b // 8]
    links |= {(a, b): Link(3e-6, 105e-6, (f"out{a // 8}", f"in{b // 8}"), True) for a, b in far}
    nics = {f"{way}{node}": Resource() for node in range(nodes) for way in ("out", "in")} if nodes > 1 else {}
    return Topology(f"ndv2 x{nodes}", ranks, links, nics, tuple(rank // 8 for rank in range(ranks)))


def switched(ranks: int, cost: float = 8.0) -> Topology:
    """Ranks on a switch, one port out and one in each; ``cost`` microseconds a chunk of one byte."""
    ports = {f"{way}{rank}": Resource() for rank in range(ranks) for way in ("out", "in")}
    pairs = [(a, b) for a in range(ranks) for b in range(ranks) if a != b]
    return Topology("switch", ranks, {(a, b): Link(0, cost * 1e-6, (f"out{a}", f"in{b}")) for a, b in pairs}, ports)


def random_allreduce(costs: CostTable, chunks: int, chance: random.Random) -> int:
    """The time of an allreduce along random trees: for each chunk into a random root, then out of it again."""
    free: dict[int, int] = {}
    last = 0

    def send(link: int, ready: int) -> int:
        uses = range(int(costs.use_start[link]), int(costs.use_start[link + 1]))
        start = max([ready, *(free.get(int(costs.use_resource[u]), 0) for u in uses)])
        free.update({int(costs.use_resource[u]): start + int(costs.use_ticks[u, 0]) for u in uses})
        return start + int(costs.latency[link, 0])

    for _ in range(chunks):
        root = chance.randrange(costs.ranks)
        ready = dict.fromkeys(range(costs.ranks), 0)
        for link in reversed(_tree(costs.target, costs.source, root, chance)):
            target = int(costs.target[link])
            ready[target] = max(ready[target], send(link, ready[int(costs.source[link])]))
        arrival = {root: ready[root]}
        for link in _tree(costs.source, costs.target, root, chance):
            arrival[int(costs.target[link])] = send(link, arrival[int(costs.source[link])])
        last = max(last, *arrival.values())
    return last


def _tree(near, far, root: int, chance: random.Random) -> list[int]:
    """Links of a random tree from ``root``, each after the one that reaches its near end."""
    reached, links = {root}, []
    while True:
        open_links = [e for e in range(len(near)) if int(near[e]) in reached and int(far[e]) not in reached]
        if not open_links:
            return links
        links.append(chance.choice(open_links))
        reached.add(int(far[links[-1]]))
