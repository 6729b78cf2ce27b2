"""Packing: a spanning tree for every item, such that no link or shared resource is loaded for more than a given time.

The trees grow one after the other, each like a shortest-path tree; a link is taken only if what is left of the
network can still carry all trees that are unfinished. By Lovasz's proof of Edmonds' theorem (with roots as Bérczi and
Frank have them, and edges chosen as in ForestColl, Zhao et al., arXiv 2402.06787) some link passes that test as long
as any rank is missing, on every graph without shared resources; shared resources are switch nodes to the test, so the
same holds where every link into a switch is joined to every link out of it (edge splitting does not lose throughput,
Bang-Jensen, Frank and Jackson 1995). Elsewhere, and for a group of symmetries, whose images all grow at once, the
packing may get stuck at a time that the cuts would allow; then it needs a little more time.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from synth.engine import Budget
from synth.network import Network
from synth.problem import Problem
from synth.solver_flow import MaxFlow
from synth.symmetry import Ints
from synth.throughput import whole_capacity

LARGEST_GROWTH = 1 << 18
"""Images x ranks, and links, up to which a packing is tried: each test of a link is a flow through so many arcs."""


@dataclass(eq=False)
class _Packing:
    """Trees being made for items: the load on each slot (ticks, by resource number), what each root has yet to pack.

    ``time`` is what no slot may be loaded beyond; ``spread`` is how much a slot's load counts beside distance.
    """

    network: Network
    time: int
    spread: float
    load: Ints
    unfinished: Ints
    test: _Test

    @property
    def problem(self) -> Problem:
        """The problem that is solved."""
        return self.network.problem


@dataclass(eq=False)
class _Tree:
    """The tree of one item: when each rank is reached (in latency alone), over which links."""

    item: int
    reached: dict[int, int]
    links: list[int] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)


def supply_of(problem: Problem) -> Ints:
    """Shape (N,): how many items begin on each rank."""
    origins = [item.origin for item in problem.demand.items if item.destinations]
    return np.bincount(np.array(origins, dtype=np.int64), minlength=problem.costs.ranks)


def spanning(problem: Problem, items: Sequence[int]) -> bool:
    """Whether all items go to all ranks and are of one size, so that trees can be packed for them."""
    demanded = [problem.demand.items[item] for item in items]
    return all(len(item.destinations) == problem.costs.ranks - 1 for item in demanded) and (
        len({item.size for item in demanded}) == 1
    )


def small_enough(problem: Problem) -> bool:
    """Whether the tests of links are affordable."""
    return problem.symmetry.order * problem.costs.ranks + problem.costs.links <= LARGEST_GROWTH


def pack_trees(
    network: Network, time: int, spread: float = 0.5, budget: Budget | None = None
) -> dict[int, tuple[int, ...]] | None:
    """A spanning tree for each representative, loads within ``time`` ticks; None when it gets stuck or out of time.

    ``spread`` is how much the load of a slot counts beside distance when a tree chooses its next link.
    Complexity: at most one maximum flow per item and link.
    """
    problem = network.problem
    load = np.zeros(len(problem.costs.resource_names), dtype=np.int64)
    packing = _Packing(network, time, spread, load, supply_of(problem), _Test(network))
    routes: dict[int, tuple[int, ...]] = {}
    for item in _in_turn(problem):
        if budget is not None and budget.left == 0:
            return None
        tree = _grown(packing, item)
        if tree is None:
            return None
        routes[item] = tuple(tree.links)
    return routes


def _in_turn(problem: Problem) -> list[int]:
    """The representatives, the first of every root before the second of any: all roots get good trees."""
    place: dict[int, int] = {}
    keyed = []
    for item in problem.representatives:
        origin = problem.demand.items[item].origin
        place[origin] = place.get(origin, -1) + 1
        keyed.append((place[origin], item))
    return [item for _, item in sorted(keyed)]


def _grown(packing: _Packing, item: int) -> _Tree | None:
    problem = packing.problem
    origin = problem.demand.items[item].origin
    images = problem.symmetry.images
    np.subtract.at(packing.unfinished, images[:, origin], 1)
    tree = _Tree(item, {origin: 0})
    while len(tree.reached) < problem.costs.ranks:
        link = _next_link(packing, tree)
        if link is None:
            return None
        source, target = problem.ends[link]
        tree.reached[target] = tree.reached[source] + problem.latencies[packing.network.size][link]
        tree.links.append(link)
    return tree


def _next_link(packing: _Packing, tree: _Tree) -> int | None:
    """The nearest link that leaves the tree and passes the test; its load is counted then."""
    problem = packing.problem
    queue = [
        (_distance(packing, tree, link), link)
        for rank in tree.reached
        for link in problem.outgoing[rank]
        if problem.ends[link][1] not in tree.reached and link not in tree.refused and problem.may_use(tree.item, link)
    ]
    heapq.heapify(queue)
    while queue:
        _, link = heapq.heappop(queue)
        _count(packing, link, 1)
        if not _fits(packing, link) or not packing.test.reaches(packing, tree, link):
            # A set of ranks that has no reserve for this tree stays so: the link need not be asked for again.
            tree.refused.add(link)
        elif link in packing.test.unshared or packing.test.spares(packing, tree, link):
            return link
        _count(packing, link, -1)
    return None


def _distance(packing: _Packing, tree: _Tree, link: int) -> float:
    problem, size = packing.problem, packing.network.size
    loads = [packing.load[slot] + ticks for slot, ticks in problem.uses[size][link]]
    filled = max(loads, default=0) / max(1, packing.time)
    near = tree.reached[problem.ends[link][0]] + problem.latencies[size][link]
    return near * float(1 + packing.spread * filled)


def _count(packing: _Packing, link: int, sign: int) -> None:
    for slot, ticks in packing.problem.uses[packing.network.size][link]:
        packing.load[slot] += sign * ticks


def _fits(packing: _Packing, link: int) -> bool:
    return all(packing.load[slot] <= packing.time for slot, _ in packing.problem.uses[packing.network.size][link])


class _Test:
    """Whether all unfinished trees can still be completed when one more link is taken, with its images.

    A set of ranks X must be enterable by every tree that has no rank in it yet. Taking the link u -> v can hurt sets
    with v and without u (the images of the link hurt the images of those). So let a source feed u without limit, each
    root with the trees that are yet to start there, and one tree to each image of the growing tree, which stands
    behind a node of its own: these sets are fine if the source can send all trees to v. A link through a switch can
    also hurt sets of the switch and others of its ranks; then all trees must get to each rank, without help from u.
    """

    def __init__(self, network: Network) -> None:
        symmetry, ranks = network.problem.symmetry, network.problem.costs.ranks
        self._network, self._source = network, network.nodes
        self.unshared = frozenset(np.flatnonzero(np.diff(network.problem.costs.use_start) == 1).tolist())
        image = network.nodes + 1 + np.arange(symmetry.order)
        fed = np.concatenate([np.arange(ranks), image])
        tail = [network.tail, np.full(len(fed), self._source), np.repeat(image, ranks)]
        head = [network.head, fed, symmetry.images.reshape(-1)]
        self._flow = MaxFlow(np.concatenate(tail), np.concatenate(head))
        self._known = np.full((len(network.sinks), sum(map(len, tail))), LARGEST_GROWTH, dtype=np.int64)

    def reaches(self, packing: _Packing, tree: _Tree, link: int) -> bool:
        """Whether the link, whose load is counted already, leaves enough for the sets that it enters."""
        source, target = self._network.problem.ends[link]
        limits, trees = self._limits(packing, tree, target)
        limits[len(self._network.tail) + source] = trees
        return self._flow.value(limits, self._source, target) >= trees

    def spares(self, packing: _Packing, tree: _Tree, link: int) -> bool:
        """Whether it leaves enough for all others; known flows are sent again only where they no longer fit."""
        limits, trees = self._limits(packing, tree, self._network.problem.ends[link][1])
        for place in np.flatnonzero((self._known > limits).any(axis=1)).tolist():
            if self._flow.value(limits, self._source, self._network.sinks[place]) < trees:
                return False
            self._known[place] = self._flow.flows()
        return True

    def _limits(self, packing: _Packing, tree: _Tree, target: int) -> tuple[Ints, int]:
        """The capacities of all arcs when the tree has ``target`` too, and how many trees are unfinished."""
        problem = self._network.problem
        order = problem.symmetry.order
        trees = int(packing.unfinished.sum()) + order
        left = np.minimum(whole_capacity(self._network, packing.time, packing.load), trees)
        grown = np.zeros(problem.costs.ranks, dtype=np.int64)
        grown[[*tree.reached, target]] = 1
        return np.concatenate([left, packing.unfinished, np.ones(order, np.int64), np.tile(grown, order)]), trees
