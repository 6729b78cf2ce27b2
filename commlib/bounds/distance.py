"""The distance bound: the item that has furthest to go, store and forward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from commlib.bounds.bound import Bound, Json, bound, microseconds
from commlib.bounds.distances import FAR, Mask, graph, path
from commlib.demand import Demand, Item
from commlib.errors import TopologyError
from commlib.topology.costs import CostTable, Ints


@dataclass(frozen=True)
class PathCertificate:
    """``item`` (its number; None: any contribution) must go from ``path[0]`` to ``path[-1]``, a quickest way."""

    item: int | None
    path: tuple[int, ...]
    ticks: int
    tick: float

    def text(self) -> str:
        """The item, the path and its time; that nothing moves, where the path has no link."""
        if len(self.path) == 1:
            return "nothing must move from one rank to another"
        way = " -> ".join(map(str, self.path))
        what = "what begins there" if self.item is None else f"item {self.item}"
        return (
            f"{what} must get from rank {self.path[0]} to rank {self.path[-1]}: the quickest way, {way}, "
            f"takes {microseconds(self.ticks, self.tick)}"
        )

    def as_json(self) -> Json:
        """The item, the path and its time."""
        return {"item": self.item, "path": list(self.path), "ticks": self.ticks, "tick": self.tick}


def distance_bound(
    costs: CostTable, demand: Demand, allowed: Mask | None = None, representatives: Sequence[int] | None = None
) -> Bound:
    """The largest shortest time from an item's origin to one of its destinations, over the links it may take.

    An item is sent on only after it has arrived, so it reaches a rank no sooner than along the quickest path; queues
    only add to that. Items of the same origin, size class and links are looked at once.

    For a demand that reduces, the path is shown as the sum travels it.

    Raises:
        TopologyError: a destination that the item cannot reach.
    """
    worst, place = -1, (0, 0)
    known: dict[tuple[int, int, bytes], Ints] = {}
    for number in _items(demand, representatives):
        item = demand.items[number]
        times = _times(costs, item, None if allowed is None else allowed[number], known)
        wanted = times[list(item.destinations)]
        if len(wanted) and wanted.max() > worst:
            worst, place = int(wanted.max()), (number, item.destinations[int(wanted.argmax())])
    number, destination = place
    if worst < 0:
        return bound("distance", 0, costs, PathCertificate(0, (0,), 0, costs.tick))
    if worst >= FAR:
        raise _unreachable(number, demand.items[number].origin, destination, allowed is not None)
    item, links = demand.items[number], None if allowed is None else allowed[number]
    way = path(costs, item.size, links, _times(costs, item, links, known), item.origin, destination)
    seen = tuple(reversed(way) if demand.reduces else way)
    return bound("distance", worst, costs, PathCertificate(number, seen, worst, costs.tick))


def _times(costs: CostTable, item: Item, links: Mask | None, known: dict[tuple[int, int, bytes], Ints]) -> Ints:
    key = (item.origin, item.size, b"" if links is None else np.packbits(links).tobytes())
    if key not in known:
        known[key] = graph(costs, costs.latency[:, item.size], links).from_ranks(np.array([item.origin]))[0]
    return known[key]


def _items(demand: Demand, representatives: Sequence[int] | None) -> Iterable[int]:
    return range(len(demand.items)) if representatives is None else representatives


def _unreachable(number: int, origin: int, destination: int, sketched: bool) -> TopologyError:
    return TopologyError(
        f"item {number} of rank {origin} must reach rank {destination}, and no path of links "
        f"{'that it may take ' if sketched else ''}leads there; add a link"
        f"{' or allow one' if sketched else ''}",
        item=number,
        source=origin,
        destination=destination,
    )
