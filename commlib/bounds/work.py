"""What the bounds look at: a demand's items as columns, and the links that any of them may take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np

from commlib.bounds.distances import Mask
from commlib.demand import Demand
from commlib.errors import SpecError
from commlib.topology.costs import CostTable, Ints


@dataclass(frozen=True, eq=False)
class Work:
    """A demand on a cost table; ``wanting[j]`` is an item that rank ``wanted_at[j]`` wants, items in order.

    Raises:
        SpecError: ``allowed`` is not one row of links per item, or the ranks or sizes do not fit.
    """

    costs: CostTable
    demand: Demand
    allowed: Mask | None = None
    representatives: tuple[int, ...] | None = None
    ends: tuple[int, ...] | None = None
    origin: Ints = field(init=False, repr=False)
    size: Ints = field(init=False, repr=False)
    wanting: Ints = field(init=False, repr=False)
    wanted_at: Ints = field(init=False, repr=False)

    def __post_init__(self) -> None:
        items = self.demand.items
        if self.demand.ranks != self.costs.ranks or len(self.demand.sizes) != self.costs.latency.shape[1]:
            raise SpecError("bounds need costs for the ranks and for the sizes of the demand")
        if self.allowed is not None and self.allowed.shape != (len(items), self.costs.links):
            raise SpecError(
                f"allowed has one row per item and one column per link, {len(items)} x {self.costs.links}, "
                f"not {self.allowed.shape}"
            )
        for number in self.representatives or ():
            if not 0 <= number < len(items):
                raise SpecError(f"there is no item {number} that could represent others", item=number)
        counts = [len(item.destinations) for item in items]
        self._set("origin", (item.origin for item in items))
        self._set("size", (item.size for item in items))
        self._set("wanted_at", (rank for item in items for rank in item.destinations))
        object.__setattr__(self, "wanting", np.repeat(np.arange(len(items)), np.array(counts, dtype=np.int64)))

    def _set(self, name: str, values: Iterable[int]) -> None:
        object.__setattr__(self, name, np.array(list(values), dtype=np.int64))

    @cached_property
    def links(self) -> Mask:
        """Shape (L,): the links that some item may take."""
        if self.allowed is None:
            return np.ones(self.costs.links, dtype=bool)
        taken: Mask = np.any(self.allowed, axis=0)
        return taken

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """The ranks worth looking at: ``ends``, or one per orbit where every rank is an origin, otherwise all.

        Any choice is sound: a bound that is left out only cannot be found.
        """
        if self.ends is not None:
            return self.ends
        if self.representatives is None or len(set(self.origin.tolist())) < self.costs.ranks:
            return tuple(range(self.costs.ranks))
        return tuple(sorted({int(self.origin[number]) for number in self.representatives}))

    @cached_property
    def one_each(self) -> bool:
        """Whether no item is wanted by more than one rank (alltoall, scatter, gather)."""
        return len(self.wanting) == len(np.unique(self.wanting))

    def inside(self, group: Sequence[int]) -> Mask:
        """Shape (ranks,): which ranks are in a group."""
        mask = np.zeros(self.costs.ranks, dtype=bool)
        mask[list(group)] = True
        return mask

    def entering(self, inside: Mask) -> tuple[Ints, Ints]:
        """(items, ranks): the items that begin outside a group, beside each rank inside that wants one."""
        chosen = inside[self.wanted_at] & ~inside[self.origin[self.wanting]]
        return self.wanting[chosen], self.wanted_at[chosen]


def uses(costs: CostTable, links: Ints) -> tuple[Ints, Ints]:
    """(places in ``links``, places in ``costs.use_resource``): every use of a resource by one of the links."""
    counts = costs.use_start[links + 1] - costs.use_start[links]
    place = np.repeat(np.arange(len(links)), counts)
    before = np.array([0, *accumulate(counts.tolist())], dtype=np.int64)[:-1]
    return place, np.arange(len(place)) - before[place] + costs.use_start[links][place]
