"""Problem: what an engine solves. A logical topology, a demand, a symmetry, and the rules that a sketch adds.

Engines see one representative item of each orbit and *slots* (orbits of resources): a transfer of a representative
over a link stands for its images under the whole group, all at the same time, and two transfers of representatives
may overlap in time exactly when they share no slot. With the trivial group this is the plain problem.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from commlib.bounds.bound import microseconds
from commlib.demand import Demand
from commlib.topology import CostTable, Topology
from synth.symmetry import Actions, Ints, Orbits, Symmetry, orbits

NEVER = np.iinfo(np.int64).max // 4
"""A distance or time that is not reached."""


@dataclass(frozen=True, eq=False)
class Rules:
    """What a sketch asks of a schedule beyond the links that it leaves.

    ``allowed`` has shape (items, links): whether an item may use a link; None: all. On the links of ``own_first`` a
    sender's own items start before those that it passes on. ``switches`` are sets of ranks with the preference
    ("uc-min" few, "uc-max" many distinct links) for TACCL's routing; ``spread`` is "minmax" or "maxmin" or "".
    ``window`` is the most items in one contiguous group. ``symmetric``: schedules must have the problem's symmetry;
    otherwise the symmetry was found, helps the search, and a proof about symmetric schedules is none about all.
    """

    allowed: npt.NDArray[np.bool_] | None = None
    own_first: frozenset[int] = frozenset()
    switches: tuple[tuple[frozenset[int], str], ...] = ()
    spread: str = ""
    window: int = 6
    symmetric: bool = False


@dataclass(frozen=True, eq=False)
class Problem:
    """A demand on a logical topology whose links cost what ``costs`` says; see the module's text.

    A demand that reduces is posed on the reversed topology: ``topology`` and ``costs`` are the reversed ones then.
    """

    topology: Topology
    demand: Demand
    costs: CostTable
    symmetry: Symmetry
    rules: Rules = field(default=Rules())

    @cached_property
    def actions(self) -> Actions:
        """What permutations do to links, resources and items."""
        return Actions(self.costs, self.demand)

    @cached_property
    def orbits(self) -> Orbits:
        """What the symmetry identifies."""
        return orbits(self.actions, self.symmetry)

    @cached_property
    def representatives(self) -> tuple[int, ...]:
        """One item of each orbit, without those that have nowhere to go."""
        return tuple(item for item in self.orbits.representatives if self.demand.items[item].destinations)

    @cached_property
    def incoming(self) -> tuple[tuple[int, ...], ...]:
        """The links into each rank."""
        return _grouped(self.costs.target, self.costs.ranks)

    @cached_property
    def outgoing(self) -> tuple[tuple[int, ...], ...]:
        """The links out of each rank."""
        return _grouped(self.costs.source, self.costs.ranks)

    @cached_property
    def ends(self) -> tuple[tuple[int, int], ...]:
        """(source, target) of each link, as plain integers."""
        return tuple(zip(self.costs.source.tolist(), self.costs.target.tolist(), strict=True))

    @cached_property
    def uses(self) -> tuple[tuple[tuple[tuple[int, int], ...], ...], ...]:
        """``uses[size][link]``: the (slot, ticks) that a transfer of that size class takes.

        What takes a slot for no time waits for nobody there and lets nobody wait: such uses are left out.
        """
        slot = self.orbits.slot_of[self.costs.use_resource].tolist()
        start = self.costs.use_start.tolist()
        tables = []
        for size in range(len(self.costs.sizes)):
            ticks = self.costs.use_ticks[:, size].tolist()
            pairs = list(zip(slot, ticks, strict=True))
            tables.append(tuple(tuple(pair for pair in pairs[a:b] if pair[1]) for a, b in pairwise(start)))
        return tuple(tables)

    @cached_property
    def link_slots(self) -> tuple[int, ...]:
        """The slot that each link itself is in."""
        return tuple(self.orbits.slot_of[: self.costs.links].tolist())

    @cached_property
    def busy(self) -> tuple[tuple[int, ...], ...]:
        """``busy[size][link]``: for how many ticks a transfer of that size class takes the link itself."""
        return tuple(map(tuple, self.costs.busy.T.tolist()))

    @cached_property
    def latencies(self) -> tuple[tuple[int, ...], ...]:
        """``latencies[size][link]``: ticks from the start of a transfer to its arrival."""
        return tuple(tuple(self.costs.latency[:, size].tolist()) for size in range(len(self.costs.sizes)))

    def time(self, ticks: float) -> str:
        """Ticks for a person: microseconds to six digits."""
        return microseconds(ticks, self.costs.tick)

    @property
    def quotient_is_exact(self) -> bool:
        """Whether a proof about symmetric schedules is one about all schedules of the problem."""
        return self.symmetry.order == 1 or self.rules.symmetric

    def may_use(self, item: int, link: int) -> bool:
        """Whether the sketch lets an item use a link."""
        return self.rules.allowed is None or bool(self.rules.allowed[item, link])

    def distances(self, item: int, origin: int | None = None) -> list[int]:
        """Store-and-forward distance of every rank from the item's origin (or another rank), over its links.

        NEVER where a rank is not reached. O(links log ranks).
        """
        start = self.demand.items[item].origin if origin is None else origin
        return self._dijkstra(item, start, self.outgoing, 1)

    def distances_to(self, item: int, rank: int) -> list[int]:
        """Store-and-forward distance from every rank to ``rank``, over the item's links. O(links log ranks)."""
        return self._dijkstra(item, rank, self.incoming, 0)

    def _dijkstra(self, item: int, start: int, links: tuple[tuple[int, ...], ...], end: int) -> list[int]:
        latency = self.latencies[self.demand.items[item].size]
        found = [int(NEVER)] * self.costs.ranks
        found[start] = 0
        queue = [(0, start)]
        while queue:
            reached, rank = heapq.heappop(queue)
            if reached > found[rank]:
                continue
            for link in links[rank]:
                peer, there = self.ends[link][end], reached + latency[link]
                if there < found[peer] and self.may_use(item, link):
                    found[peer] = there
                    heapq.heappush(queue, (there, peer))
        return found


def _grouped(ends: Ints, ranks: int) -> tuple[tuple[int, ...], ...]:
    groups: list[list[int]] = [[] for _ in range(ranks)]
    for link, rank in enumerate(ends.tolist()):
        groups[rank].append(link)
    return tuple(map(tuple, groups))
