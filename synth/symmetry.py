"""Symmetry: a group of rank permutations under which a problem looks the same, and what it does to links and items.

A schedule that is the same for every image of a rank is found on one representative of each orbit. That is sound
only for a group that moves everything: no permutation but the identity may fix a rank, nor map a transfer to one that
takes the same resource (both would start at the same time). Such a group is called free here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from commlib.demand import Demand
from commlib.topology import CostTable

Ints = npt.NDArray[np.int64]
ALL = -1
"""In an item's signature: every rank but the origin is a destination."""


@dataclass(frozen=True, eq=False)
class Symmetry:
    """A group of permutations: ``images[g, r]`` is where element g moves rank r; row 0 is the identity."""

    images: Ints

    @property
    def order(self) -> int:
        """The number of elements."""
        return len(self.images)

    @staticmethod
    def trivial(ranks: int) -> Symmetry:
        """The group of the identity alone."""
        return Symmetry(np.arange(ranks, dtype=np.int64).reshape(1, -1))


@dataclass(frozen=True, eq=False)
class Actions:
    """What rank permutations do to the links, resources and items of a problem."""

    costs: CostTable
    demand: Demand

    @cached_property
    def link_number(self) -> Ints:
        """Shape (N, N): the number of the link from a rank to another, or -1."""
        number = np.full((self.costs.ranks, self.costs.ranks), -1, dtype=np.int64)
        number[self.costs.source, self.costs.target] = np.arange(self.costs.links)
        return number

    def links(self, image: Ints) -> Ints:
        """Shape (L,): the link that each link is mapped to; -1 where there is none."""
        return self.link_number[image[self.costs.source], image[self.costs.target]]

    def resources(self, image: Ints) -> Ints | None:
        """Shape (R,): the resource that each is mapped to; None when costs or sharing are not kept."""
        costs, links = self.costs, self.links(image)
        if (links < 0).any() or not np.array_equal(costs.latency[links], costs.latency):
            return None
        count = np.diff(costs.use_start)
        if not np.array_equal(count[links], count):
            return None
        mapped = self._mapped_uses(links)
        if not np.array_equal(costs.use_ticks[mapped], costs.use_ticks):
            return None
        to = np.full(len(costs.resource_names), -1, dtype=np.int64)
        to[costs.use_resource] = costs.use_resource[mapped]
        used = np.unique(costs.use_resource)
        if not np.array_equal(to[costs.use_resource], costs.use_resource[mapped]):
            return None
        return to if len(np.unique(to[used])) == len(used) else None

    def _mapped_uses(self, links: Ints) -> Ints:
        """The use that each use of a link becomes, place by place."""
        start = self.costs.use_start
        count = np.diff(start)
        place = np.arange(len(self.costs.use_resource)) - np.repeat(start[:-1], count)
        return np.repeat(start[links], count) + place

    def items(self, image: Ints) -> Ints | None:
        """Shape (I,): the item that each item is mapped to; None when the collective is not kept."""
        to = np.full(len(self.demand.items), -1, dtype=np.int64)
        seen: dict[object, int] = {}
        for number in range(len(self.demand.items)):
            key = self._signature(number, image)
            place = seen.get(key, 0)
            seen[key] = place + 1
            same = self._alike.get(key, ())
            if place >= len(same):
                return None
            to[number] = same[place]
        return to

    @cached_property
    def _alike(self) -> dict[object, list[int]]:
        """The items of each signature, in order; equal ones correspond by their place."""
        identity = np.arange(self.costs.ranks, dtype=np.int64)
        found: dict[object, list[int]] = {}
        for number in range(len(self.demand.items)):
            found.setdefault(self._signature(number, identity), []).append(number)
        return found

    def _signature(self, number: int, image: Ints) -> object:
        item = self.demand.items[number]
        wanted = item.destinations
        if len(wanted) == self.costs.ranks - 1:
            return int(image[item.origin]), ALL, item.size
        return int(image[item.origin]), tuple(sorted(image[list(wanted)].tolist())), item.size

    def keeps(self, image: Ints) -> bool:
        """Whether a permutation maps the problem to itself. O(uses + items)."""
        return self.resources(image) is not None and self.items(image) is not None

    def is_free(self, image: Ints) -> bool:
        """Whether it fixes no rank and maps no transfer to one that takes the same resource."""
        if (image == np.arange(len(image))).any():
            return False
        links, costs = self.links(image), self.costs
        count = np.diff(costs.use_start)
        link_of = np.repeat(np.arange(costs.links), count)
        total = len(costs.resource_names)
        own = link_of * total + costs.use_resource
        theirs = np.argsort(links)[link_of] * total + costs.use_resource
        return not np.isin(own, theirs).any()

    def group(self, generators: Iterable[Ints], limit: int = 4096) -> tuple[Symmetry, list[Ints]]:
        """The free group that the generators span, and the generators that had to be left out.

        Generators are added one after the other; one that does not keep the problem, or with which the group would no
        longer be free or have more than ``limit`` elements, is left out.
        """
        images = [np.arange(self.costs.ranks, dtype=np.int64)]
        left: list[Ints] = []
        used: list[Ints] = []
        for generator in generators:
            known = {row.tobytes() for row in images}
            if generator.tobytes() in known:
                continue
            grown = self._grown(images, [*used, generator], limit) if self.keeps(generator) else None
            if grown is None:
                left.append(generator)
            else:
                images = grown
                used.append(generator)
        return Symmetry(np.array(images)), left

    def _grown(self, images: list[Ints], generators: list[Ints], limit: int) -> list[Ints] | None:
        """The closure of a group with one more generator; None when it is not free, or too large."""
        grown, known = list(images), {row.tobytes() for row in images}
        for row in grown:  # grows while it is walked: a breadth-first closure
            for generator in generators:
                product = generator[row]
                if product.tobytes() in known:
                    continue
                if len(grown) >= min(limit, len(row)) or not self.is_free(product):
                    return None
                grown.append(product)
                known.add(product.tobytes())
        return grown


@dataclass(frozen=True, eq=False)
class Orbits:
    """What a group identifies: ``item_of[i]`` is the first item of i's orbit, ``slot_of[r]`` resource r's orbit."""

    representatives: tuple[int, ...]
    item_of: Ints = field(repr=False)
    slot_of: Ints = field(repr=False)


def orbits(actions: Actions, symmetry: Symmetry) -> Orbits:
    """The orbits of items and resources. O(order x (uses + items))."""
    items = np.arange(len(actions.demand.items), dtype=np.int64)
    slots = np.arange(len(actions.costs.resource_names), dtype=np.int64)
    for image in symmetry.images[1:]:
        to_items, to_resources = actions.items(image), actions.resources(image)
        if to_items is not None and to_resources is not None:
            np.minimum.at(items, to_items, np.arange(len(items)))
            known = to_resources >= 0
            np.minimum.at(slots, to_resources[known], np.flatnonzero(known))
    return Orbits(tuple(np.unique(items).tolist()), items, slots)


def rotation(ranks: int, offset: int, group: int) -> Ints:
    """TACCL's symmetry offset: within each group of ``group`` neighbours, r becomes r + offset, cyclically."""
    rank = np.arange(ranks, dtype=np.int64)
    return rank // group * group + (rank % group + offset) % group


def likely(ranks: int) -> Iterator[Ints]:
    """Permutations worth a try on any topology: rotations of blocks and exclusive-or with a mask.

    They generate the full translation groups of rings, row-major tori and meshes of nodes, hypercubes and switches.
    """
    divisors = [d for d in range(1, ranks + 1) if ranks % d == 0]
    pairs = [(offset, group) for group in divisors for offset in divisors if group % offset == 0 and offset < group]
    for offset, group in sorted(pairs, key=lambda pair: (-(pair[1] // pair[0]), pair[0])):
        yield rotation(ranks, offset, group)
    if ranks & (ranks - 1) == 0:
        for mask in range(1, ranks):
            yield np.arange(ranks, dtype=np.int64) ^ mask
