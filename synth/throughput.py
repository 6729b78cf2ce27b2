"""Throughput: how long the tightest cut takes when every rank must get everything; Dinkelbach's iteration on cuts.

For items that go to all ranks, T ticks are enough (for divisible items, without latency) exactly when from the ranks
together, each giving as many items as begin there, the network can carry all items to any one rank. This is the
throughput of ForestColl (Zhao et al., arXiv 2402.06787) and, for one root, of Edmonds' branchings (1973).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from synth.errors import SynthesisError
from synth.network import FREE, Network
from synth.solver_flow import MaxFlow
from synth.symmetry import Ints

LARGEST = 1 << 48
"""Flows are scaled to stay below this: sums over thousands of arcs stay within 63 bits."""


@dataclass(frozen=True)
class Cut:
    """``items`` must leave ``ranks``, which takes ``ticks`` at least."""

    ranks: tuple[int, ...]
    items: int
    ticks: Fraction


class Supply:
    """A network with a node that feeds each rank with the items that begin there (``supply[r]`` of them)."""

    def __init__(self, network: Network, supply: Ints) -> None:
        roots = np.flatnonzero(supply)
        start = np.full(len(roots), network.nodes, dtype=np.int64)
        self.network, self.supply = network, supply
        self._given = supply[roots]
        self._flow = MaxFlow(np.concatenate([network.tail, start]), np.concatenate([network.head, roots]))

    @property
    def total(self) -> int:
        """The number of items."""
        return int(self.supply.sum())

    def missing(self, capacity: Ints, scale: int = 1) -> int | None:
        """A rank that the network cannot bring all items to, or None; items count ``scale`` each."""
        total = self.total * scale
        limits = np.concatenate([np.minimum(capacity, total), self._given * scale])
        for sink in self.network.sinks:
            if self._flow.value(limits, self.network.nodes, sink) < total:
                return sink
        return None

    def last_cut(self) -> Cut:
        """The minimum cut of the last flow, and how long its arcs need for what must cross it."""
        network = self.network
        inside = self._flow.source_side(network.nodes + 1)
        crossed = inside[network.tail] & ~inside[network.head]
        ranks = np.flatnonzero(inside[: len(self.supply)])
        items = int(self.supply[ranks].sum())
        rate = sum((Fraction(1, ticks) for ticks in network.gate[crossed, 0].tolist()), Fraction(0))
        if not rate:
            raise SynthesisError(
                f"{network.problem.topology.name}: no link leaves ranks {ranks.tolist()}, but others want their items",
                ranks=tuple(ranks.tolist()),
            )
        return Cut(tuple(ranks.tolist()), items, items / rate)


def tightest_cut(network: Network, supply: Ints) -> Cut:
    """The cut that takes longest for its items: the least time in which trees can carry them, divisible as they like.

    Exact where the ticks' common multiple is small; else the cut returned is real, and the tightest to nine digits.
    Complexity: a few rounds of one maximum flow per rank orbit.

    Raises:
        SynthesisError: some ranks are not connected to the others.
    """
    fed = Supply(network, supply)
    ticks = network.gate[:, 0]
    common = math.lcm(*np.unique(ticks[ticks > FREE]).tolist())
    best = Cut((), 0, Fraction(0))
    while True:
        scale, capacity = _scaled(ticks, best.ticks, common, fed.total)
        if fed.missing(capacity, scale) is None:
            return best
        found = fed.last_cut()
        if found.ticks <= best.ticks:
            return best
        best = found


def _scaled(ticks: Ints, time: Fraction, common: int, total: int) -> tuple[int, Ints]:
    """(what one item counts, capacities of the arcs in ``time`` ticks), whole; rounded up where that is not exact."""
    exact = time.denominator * common
    scale = exact if exact * total < LARGEST else max(1, LARGEST // max(1, total))
    bound = total * scale
    limits = [bound if t == FREE else min(bound, math.ceil(time * scale / t)) for t in ticks.tolist()]
    return scale, np.array(limits, dtype=np.int64)


def whole_capacity(network: Network, time: int, load: Ints | None = None) -> Ints:
    """How many whole transfers each arc can take in ``time`` ticks beside the load on its slot (by resource number)."""
    ticks, resource = network.gate[:, 0], network.gate[:, 1]
    slot = network.problem.orbits.slot_of[resource]
    room = time - (0 if load is None else load[slot])
    capacity: Ints = np.where(ticks == FREE, LARGEST, np.maximum(room, 0) // np.maximum(ticks, 1))
    return capacity


def least_time(network: Network, supply: Ints, at_least: int) -> int:
    """The smallest whole number of ticks in which whole transfers can carry the items, ``at_least`` or more.

    Complexity: O(log T) rounds of one maximum flow per rank orbit.
    """
    fed = Supply(network, supply)

    def enough(time: int) -> bool:
        return fed.missing(whole_capacity(network, time)) is None

    if enough(at_least):
        return at_least
    low, high = at_least, at_least + max(1, at_least // 64)
    while not enough(high):
        low, high = high, high + 2 * (high - low)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
