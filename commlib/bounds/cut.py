"""The cut bound: the set of ranks whose links are slowest for what must enter it, found by Dinkelbach's method.

For one sink t, n(S) of the items that t wants begin in S, and the links and shared resources out of S carry C(S)
items per tick. T >= n(S) / C(S) for every S without t. Given a T, one maximum flow decides whether some S beats it:
capacities T / ticks, a super source with an arc of n items to each origin; if less than all items flow to t, the
minimum cut is a better S (Dinkelbach 1967; ForestColl, Zhao et al. 2024, for switches). A shared resource is a node
of its own with a capacity: what one of its links brings in any other may take out, which adds ways and so can only
weaken the bound. What is found is only where to count: the set is counted exactly, with heads and tails
(``entering``), so the flow may be computed with rounded capacities.

For allgather over all sinks this is exact: trees that reach the largest ratio exist (Edmonds).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from commlib.bounds.bound import Bound, bound
from commlib.bounds.entering import Found, crossing_bound
from commlib.bounds.maxflow import Network
from commlib.bounds.work import Work
from commlib.topology.costs import Ints

_SCALE = 1 << 24
_ROUNDS = 64
MinCut = Callable[["FlowArcs", int, int], tuple[int, list[bool]]]
"""(arcs, source, sink) -> (value of a maximum flow, the nodes on the source's side of a minimum cut)."""


@dataclass
class FlowArcs:
    """A network as columns: node, node, capacity (whole numbers)."""

    nodes: int
    tail: list[int] = field(default_factory=list)
    head: list[int] = field(default_factory=list)
    capacity: list[int] = field(default_factory=list)

    def add(self, tail: int, head: int, capacity: int) -> None:
        """Add an arc."""
        self.tail.append(tail)
        self.head.append(head)
        self.capacity.append(capacity)


def dinic(arcs: FlowArcs, source: int, sink: int) -> tuple[int, list[bool]]:
    """A minimum cut by ``maxflow``; the default."""
    network = Network(arcs.nodes)
    for tail, head, capacity in zip(arcs.tail, arcs.head, arcs.capacity, strict=True):
        network.arc(tail, head, capacity)
    value = network.max_flow(source, sink)
    return value, network.reachable(source)


class Pipes:
    """Links and shared resources as a network; ``ticks`` per item of a resource, and who is behind whom.

    Nodes are the ranks, then two for each shared resource (before and after it), then the super source or sink.
    """

    def __init__(self, work: Work) -> None:
        costs = work.costs
        self.ranks = costs.ranks
        self.shared = len(costs.resource_names) - costs.links
        self.super = self.ranks + 2 * self.shared
        ticks = costs.use_ticks.min(axis=1)
        self.rate: dict[tuple[int, int], float] = {}
        self.ticks: dict[int, float] = {}
        for link in np.flatnonzero(work.links).tolist():
            low, high = int(costs.use_start[link]), int(costs.use_start[link + 1])
            at = int(costs.source[link])
            capacity = 1 / max(float(ticks[low]), 1e-3)
            for use in range(low + 1, high):
                node = self.ranks + 2 * (int(costs.use_resource[use]) - costs.links)
                self.ticks[node] = min(self.ticks.get(node, np.inf), max(float(ticks[use]), 1e-3))
                self._join(at, node, capacity)
                at, capacity = node + 1, np.inf
            self._join(at, int(costs.target[link]), capacity)

    def _join(self, tail: int, head: int, rate: float) -> None:
        self.rate[tail, head] = self.rate.get((tail, head), 0.0) + rate

    def arcs(self, time: float, amounts: dict[int, int], to_super: bool) -> FlowArcs:
        """The network for a time: what each arc can carry in it, and the items at the ranks, all times _SCALE."""
        total = sum(amounts.values()) * _SCALE
        arcs = FlowArcs(self.super + 1)
        for (tail, head), rate in self.rate.items():
            arcs.add(tail, head, min(total, int(min(rate * time, 2**30) * _SCALE)))
        for node, ticks in self.ticks.items():
            arcs.add(node, node + 1, min(total, int(time / ticks * _SCALE)))
        for rank, amount in amounts.items():
            arcs.add(*((rank, self.super) if to_super else (self.super, rank)), amount * _SCALE)
        return arcs

    def around(self, rank: int, leaving: bool) -> list[bool]:
        """The source's side of the cut between one rank and all others, through the resources at that rank."""
        near = [not leaving] * (self.super + 1)
        near[rank] = leaving
        for tail, head in self.rate:
            if head == rank and tail >= self.ranks and not leaving:
                near[tail] = False
        return near

    def ratio(self, near: list[bool], amounts: dict[int, int], leaving: bool) -> float:
        """Items that must cross a cut over what crosses it per tick; 0 where nothing must or no time passes."""
        items = sum(amount for rank, amount in amounts.items() if near[rank] != leaving)
        rate = sum(rate for (tail, head), rate in self.rate.items() if near[tail] and not near[head])
        rate += sum(1 / ticks for node, ticks in self.ticks.items() if near[node] and not near[node + 1])
        return items / rate if rate else 0.0


def cut_bounds(work: Work, min_cut: MinCut = dinic) -> list[Bound]:
    """The best cut into every rank worth looking at, and out of it where items have one destination each.

    Complexity: a few maximum flows for each rank.

    Raises:
        TopologyError: items must cross a cut that no link crosses.
    """
    pipes = Pipes(work)
    found = []
    for rank in work.ranks:
        for to_super in (False, True) if work.one_each else (False,):
            best = _cut(work, pipes, rank, to_super, min_cut)
            if best is not None:
                found.append(bound("cut", best.ticks, work.costs, best.certificate))
    return found


def amounts_at(work: Work, rank: int, leaving: bool) -> dict[int, int]:
    """Items per origin that a rank wants, or per destination that it has."""
    if leaving:
        others: Ints = work.wanted_at[work.origin[work.wanting] == rank]
    else:
        others = work.origin[work.wanting[work.wanted_at == rank]]
    ranks, counts = np.unique(others, return_counts=True)
    return dict(zip(ranks.tolist(), counts.tolist(), strict=True))


def _cut(work: Work, pipes: Pipes, rank: int, leaving: bool, min_cut: MinCut) -> Found | None:
    amounts = amounts_at(work, rank, leaving)
    if not amounts:
        return None
    found = (_counted(work, pipes, near) for near in tightening(pipes, amounts, rank, leaving, min_cut))
    return max((each for each in found if each), key=lambda each: each.ticks, default=None)


def tightening(
    pipes: Pipes, amounts: dict[int, int], rank: int, leaving: bool, min_cut: MinCut
) -> Iterator[list[bool]]:
    """The source's sides of cuts with rising ratios, the last one the highest (up to the rounding of capacities)."""
    ends = (rank, pipes.super) if leaving else (pipes.super, rank)
    near, time = pipes.around(rank, leaving), 0.0
    for _ in range(_ROUNDS):
        ratio = pipes.ratio(near, amounts, leaving)
        if ratio <= time * (1 + 1e-9):
            return
        yield near
        time = ratio
        value, near = min_cut(pipes.arcs(time, amounts, leaving), *ends)
        if value >= sum(amounts.values()) * _SCALE * (1 - 1e-6):
            return


def _counted(work: Work, pipes: Pipes, near: list[bool]) -> Found | None:
    return crossing_bound(work, *group_and_cover(work, pipes, near))


def group_and_cover(work: Work, pipes: Pipes, near: list[bool]) -> tuple[list[int], list[int]]:
    """The ranks on the far side of a cut, and the shared resources that it cuts."""
    group = [rank for rank in range(pipes.ranks) if not near[rank]]
    cover = [work.costs.links + (node - pipes.ranks) // 2 for node in pipes.ticks if near[node] and not near[node + 1]]
    return group, cover
