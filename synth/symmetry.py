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
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]
_Elements = dict[bytes, tuple[Ints, Ints]]
"""By a permutation's bytes: what it does to ranks and to shared resources."""


@dataclass(frozen=True, eq=False)
class Symmetry:
    """A group of permutations: ``images[g, r]`` is where element g moves rank r; row 0 is the identity.

    ``generators`` (None: all images) are elements from which all others are products.
    """

    images: Ints
    generators: Ints | None = field(default=None, repr=False)

    @property
    def order(self) -> int:
        """The number of elements."""
        return len(self.images)

    @staticmethod
    def trivial(ranks: int) -> Symmetry:
        """The group of the identity alone."""
        return Symmetry(np.arange(ranks, dtype=np.int64).reshape(1, -1))


def mixed(values: Ints) -> Words:
    """Well spread 64-bit words, one for each integer (splitmix64, Steele et al. 2014); deterministic."""
    words = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


@dataclass(frozen=True, eq=False)
class _Items:
    """A demand's items as columns; item i goes to ``destination[start[i]:start[i + 1]]``, in order."""

    ranks: int
    origin: Ints
    size: Ints
    start: Ints
    destination: Ints

    @staticmethod
    def of(demand: Demand) -> _Items:
        items, ranks = demand.items, demand.ranks
        wanted = [item.destinations for item in items]
        # All others, or nobody: equal origins say it all, and long rows of them would only cost time.
        wanted = [() if len(row) == ranks - 1 else row for row in wanted]
        count = [len(row) for row in wanted]
        return _Items(
            ranks,
            np.array([item.origin for item in items], dtype=np.int64),
            np.array([2 * item.size + (len(item.destinations) == ranks - 1) for item in items], dtype=np.int64),
            np.concatenate([[0], np.cumsum(count, dtype=np.int64)]).astype(np.int64),
            np.array([rank for row in wanted for rank in row], dtype=np.int64),
        )

    @cached_property
    def count(self) -> Ints:
        return np.diff(self.start)

    @cached_property
    def row(self) -> Ints:
        """The item of each entry of ``destination``."""
        return np.repeat(np.arange(len(self.origin)), self.count)

    def sorted(self, image: Ints) -> tuple[tuple[npt.NDArray[np.generic], ...], Ints]:
        """(the items' keys under a permutation in order, the items in that order); equal keys stay in their order."""
        words = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(mixed(image[self.destination]))])
        keys = (image[self.origin], self.size, self.count, words[self.start[1:]] - words[self.start[:-1]])
        order = np.lexsort(keys[::-1])
        return tuple(key[order] for key in keys), order

    @cached_property
    def identity(self) -> tuple[tuple[npt.NDArray[np.generic], ...], Ints]:
        return self.sorted(np.arange(self.ranks, dtype=np.int64))

    def moved(self, image: Ints) -> Ints | None:
        """The item that each item is mapped to, or None."""
        keys, order = self.sorted(image)
        if not all(np.array_equal(key, own) for key, own in zip(keys, self.identity[0], strict=True)):
            return None
        to = np.empty(len(order), dtype=np.int64)
        to[order] = self.identity[1]
        # Keys hold a sum of words for each set of destinations; equal sums are no proof, so look at the sets.
        reached = np.sort(self.row * self.ranks + image[self.destination]) - self.row * self.ranks
        place = np.arange(len(self.row)) - self.start[:-1][self.row] + self.start[:-1][to][self.row]
        return to if np.array_equal(self.destination[place], reached) else None


@dataclass(frozen=True, eq=False)
class _Uses:
    """The uses of a cost table, so ordered within each link that equal links have like uses in like places."""

    costs: CostTable

    @cached_property
    def count(self) -> Ints:
        """Uses of each link."""
        return np.diff(self.costs.use_start)

    @cached_property
    def link(self) -> Ints:
        """The link of each use."""
        return np.repeat(np.arange(self.costs.links), self.count)

    @cached_property
    def _order(self) -> Ints:
        costs, total = self.costs, len(self.costs.resource_names)
        ends = [
            np.bincount(np.unique(costs.use_resource * costs.ranks + end[self.link]) // costs.ranks, minlength=total)
            for end in (costs.source, costs.target)
        ]
        users = np.bincount(costs.use_resource, minlength=total)
        colour = [column[costs.use_resource] for column in (users, *ends)]
        shared = costs.use_resource >= costs.links
        return np.lexsort((*colour, *costs.use_ticks.T, shared, self.link))

    @cached_property
    def resource(self) -> Ints:
        """The resource of each use."""
        return self.costs.use_resource[self._order]

    @cached_property
    def ticks(self) -> Ints:
        """Shape (uses, sizes)."""
        return self.costs.use_ticks[self._order]

    @cached_property
    def together(self) -> tuple[Ints, Ints]:
        """The pairs of shared resources (numbered from 0) that some link takes at once, each with itself, too."""
        shared = np.flatnonzero(self.resource >= self.costs.links)
        resource, link = self.resource[shared] - self.costs.links, self.link[shared]
        total = max(1, len(self.costs.resource_names) - self.costs.links)
        found = [resource * total + resource]
        for apart in range(1, int(self.count.max(initial=1))):
            same = link[apart:] == link[:-apart]
            first, second = resource[apart:][same], resource[:-apart][same]
            found += [first * total + second, second * total + first]
        pairs = np.unique(np.concatenate(found))
        return pairs // total, pairs % total

    def mapped(self, links: Ints) -> Ints:
        """The use that each use of a link becomes, place by place."""
        start = self.costs.use_start[:-1]
        place = np.arange(len(self.link)) - start[self.link]
        return start[links][self.link] + place


@dataclass(frozen=True, eq=False)
class Actions:
    """What rank permutations do to the links, resources and items of a problem.

    ``allowed``, shape (items, links), is what a sketch allows; None: everything.
    """

    costs: CostTable
    demand: Demand
    allowed: Bools | None = None

    @cached_property
    def link_number(self) -> Ints:
        """Shape (N, N): the number of the link from a rank to another, or -1."""
        number = np.full((self.costs.ranks, self.costs.ranks), -1, dtype=np.int64)
        number[self.costs.source, self.costs.target] = np.arange(self.costs.links)
        return number

    @cached_property
    def _uses(self) -> _Uses:
        return _Uses(self.costs)

    @cached_property
    def _items(self) -> _Items:
        return _Items.of(self.demand)

    def links(self, image: Ints) -> Ints:
        """Shape (L,): the link that each link is mapped to; -1 where there is none."""
        return self.link_number[image[self.costs.source], image[self.costs.target]]

    def resources(self, image: Ints) -> Ints | None:
        """Shape (R,): the resource that each is mapped to (-1: nobody uses it); None when costs or sharing are lost."""
        costs, uses, links = self.costs, self._uses, self.links(image)
        if (links < 0).any() or not np.array_equal(costs.latency[links], costs.latency):
            return None
        if not np.array_equal(uses.count[links], uses.count):
            return None
        mapped = uses.mapped(links)
        if not np.array_equal(uses.ticks[mapped], uses.ticks):
            return None
        to = np.full(len(costs.resource_names), -1, dtype=np.int64)
        to[uses.resource] = uses.resource[mapped]
        if not np.array_equal(to[uses.resource], uses.resource[mapped]):
            return None
        return to if np.bincount(to[to >= 0], minlength=1).max() <= 1 else None

    def items(self, image: Ints) -> Ints | None:
        """Shape (I,): the item that each item is mapped to; None when the collective is not kept.

        Equal items correspond by their order. O(items log items).
        """
        return self._items.moved(image)

    def keeps(self, image: Ints) -> bool:
        """Whether a permutation maps the problem to itself. O(uses + items log items), more with ``allowed``."""
        if self.resources(image) is None:
            return False
        to = self.items(image)
        if to is None or self.allowed is None:
            return to is not None
        links = self.links(image)
        return all(np.array_equal(self.allowed[other][links], row) for other, row in zip(to, self.allowed, strict=True))

    def is_free(self, image: Ints) -> bool:
        """Whether it keeps the resources, fixes no rank and maps no transfer to one that takes the same resource."""
        to = self.resources(image)
        return to is not None and self._moves_all(image, self._shared(to))

    def _shared(self, to: Ints) -> Ints:
        """The part of a resource map that is about shared resources, numbered from 0; unused ones stay."""
        shared = to[self.costs.links :] - self.costs.links
        return np.where(shared < 0, np.arange(len(shared)), shared)

    def _moves_all(self, image: Ints, shared: Ints) -> bool:
        # Links of their own are moved where ranks are; a shared resource may only go where no link takes both.
        first, second = self._uses.together
        fixes = (image == np.arange(len(image))).any() or (shared[first] == second).any()
        return not fixes

    def group(self, generators: Iterable[Ints], limit: int = 4096) -> tuple[Symmetry, list[Ints]]:
        """The free group that the generators span, and the generators that had to be left out.

        Generators are added one after the other; one that does not keep the problem, or with which the group would no
        longer be free or have more than ``limit`` elements, is left out. O(order x generators x ranks).
        """
        rank = np.arange(self.costs.ranks, dtype=np.int64)
        shared = np.arange(len(self.costs.resource_names) - self.costs.links, dtype=np.int64)
        elements, used, left = {rank.tobytes(): (rank, shared)}, list[tuple[Ints, Ints]](), []
        for generator in generators:
            if generator.tobytes() in elements:
                continue
            # A free group has at most as many elements as ranks, and one that grows at least doubles.
            moves = self._shared_moves(generator) if 2 * len(elements) <= min(limit, len(rank)) else None
            grown = None if moves is None else self._closure(elements, [*used, (generator, moves)], limit)
            if moves is None or grown is None:
                left.append(generator)
            else:
                elements = grown
                used.append((generator, moves))
        images = np.array([image for image, _ in elements.values()])
        return Symmetry(images, np.array([image for image, _ in used]).reshape(-1, len(rank))), left

    def _shared_moves(self, generator: Ints) -> Ints | None:
        """What a generator does to shared resources; None when it does not keep the problem or is not free."""
        to = self.resources(generator)
        if to is None or not self._moves_all(generator, self._shared(to)) or not self.keeps(generator):
            return None
        return self._shared(to)

    def _closure(self, elements: _Elements, steps: list[tuple[Ints, Ints]], limit: int) -> _Elements | None:
        """The closure of a group with one more generator, the last; None when it is not free, or too large."""
        grown, rows = dict(elements), list(elements.values())
        for image, shared in rows:  # grows while it is walked: a breadth-first closure
            for step, moves in steps:
                product = step[image]
                key = product.tobytes()
                if key in grown:
                    continue
                grown[key] = product, moves[shared]
                if len(grown) > min(limit, len(image)) or not self._moves_all(*grown[key]):
                    return None
                rows.append(grown[key])
        return grown


@dataclass(frozen=True, eq=False)
class Orbits:
    """What a group identifies: ``item_of[i]`` is the first item of i's orbit, ``slot_of[r]`` resource r's orbit."""

    representatives: tuple[int, ...]
    item_of: Ints = field(repr=False)
    slot_of: Ints = field(repr=False)


def orbits(actions: Actions, symmetry: Symmetry) -> Orbits:
    """The orbits of items and resources. O(generators x (uses + items) log order)."""
    generators = symmetry.images[1:] if symmetry.generators is None else symmetry.generators
    maps = [(actions.items(image), actions.resources(image)) for image in generators]
    items = _first_of_orbits(len(actions.demand.items), [to for to, _ in maps if to is not None], symmetry.order)
    every = np.arange(len(actions.costs.resource_names), dtype=np.int64)
    slots = [np.where(to < 0, every, to) for _, to in maps if to is not None]
    return Orbits(tuple(np.unique(items).tolist()), items, _first_of_orbits(len(every), slots, symmetry.order))


def _first_of_orbits(count: int, maps: list[Ints], order: int) -> Ints:
    """The least member of each orbit under permutations of cycles no longer than ``order``."""
    first = np.arange(count, dtype=np.int64)
    while True:
        before = first
        for to in maps:
            power, reach = to, 1
            while reach < order:  # after each round, the least of twice as many images
                first, power, reach = np.minimum(first, first[power]), power[power], 2 * reach
        if np.array_equal(before, first):
            return first


def rotation(ranks: int, offset: int, group: int) -> Ints:
    """TACCL's symmetry offset: within each group of ``group`` neighbours, r becomes r + offset, cyclically."""
    rank = np.arange(ranks, dtype=np.int64)
    return rank // group * group + (rank % group + offset) % group


def likely(ranks: int) -> Iterator[Ints]:
    """Permutations worth a try on any topology: rotations of blocks, exclusive-or with a mask, and mirrors of blocks.

    They generate the full translation groups of rings, row-major tori and nodes of ranks, hypercubes and switches.
    O(divisors squared + ranks) of them, on more than 256 ranks only those masks that have one bit or all.
    """
    divisors = [d for d in range(1, ranks + 1) if ranks % d == 0]
    pairs = [(offset, group) for group in divisors for offset in divisors if group % offset == 0 and offset < group]
    for offset, group in sorted(pairs, key=lambda pair: (-(pair[1] // pair[0]), pair[0])):
        yield rotation(ranks, offset, group)
    rank = np.arange(ranks, dtype=np.int64)
    if ranks & (ranks - 1) == 0:
        masks = range(1, ranks) if ranks <= 256 else [1 << bit for bit in range(ranks.bit_length() - 1)]
        for mask in masks:
            yield rank ^ mask
    for offset, group in pairs:  # the order of blocks of ``offset`` ranks is turned round in each group
        block = rank % group // offset
        yield rank + (group // offset - 1 - 2 * block) * offset
