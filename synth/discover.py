"""Discover: the symmetries of a problem that nobody stated.

First permutations that are likely (rotations, masks, mirrors), then, on small topologies, automorphisms of the graph
by colour refinement and individualisation (McKay and Piperno, Practical graph isomorphism II, 2014, without their
pruning by automorphisms found). What is searched is not the whole automorphism group but a free subgroup of it, as
large as is found: see ``synth.symmetry``. Work is bounded by counts, never by the clock, so results are deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from synth.symmetry import Actions, Ints, Symmetry, Words, likely, mixed

_MAX_RANKS = 64
"""Beyond this, only likely permutations are tried."""
_REFINEMENTS = 6000
"""Colour refinements of one search, about a second."""
_PER_IMAGE = 8
"""Automorphisms kept for each image of rank 0."""
_STARTS = 24
"""Automorphisms from which the group is grown anew."""


def discover(actions: Actions) -> Symmetry:
    """A free group of symmetries of a problem, as large as is found; the trivial one where there is none.

    Complexity: O(ranks log ranks) trials of O(links) each, and up to 64 ranks a bounded search (about a second).
    """
    graph = _Graph(actions)
    most = graph.most
    if most == 1:
        return Symmetry.trivial(actions.costs.ranks)
    found, _ = actions.group(image for image in likely(actions.costs.ranks) if graph.may_keep(image))
    if found.order == most or actions.costs.ranks > _MAX_RANKS:
        return found
    automorphisms = [image for image in graph.automorphisms() if actions.is_free(image) and actions.keeps(image)]
    for first in range(min(len(automorphisms), _STARTS)):
        grown, _ = actions.group([automorphisms[first], *automorphisms])
        if grown.order > found.order:
            found = grown
        if found.order == most:
            break
    return found


@dataclass
class _Graph:
    """The ranks of a problem as a graph with coloured arcs."""

    actions: Actions
    left: int = field(default=_REFINEMENTS)

    @property
    def ranks(self) -> int:
        return self.actions.costs.ranks

    @cached_property
    def kind(self) -> Ints:
        """Shape (links,): links of different kind are never mapped to each other."""
        costs = self.actions.costs
        count = np.diff(costs.use_start)
        work = np.zeros((costs.links, len(costs.sizes)), dtype=np.int64)
        np.add.at(work, np.repeat(np.arange(costs.links), count), costs.use_ticks)
        columns = np.column_stack([costs.latency, costs.busy, work, count])
        return np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)

    @cached_property
    def colours(self) -> Ints:
        """Shape (ranks,): the stable colouring that starts from what each rank sends and wants."""
        demand = self.actions.demand
        known = np.zeros((self.ranks, 3), dtype=np.int64)
        for item in demand.items:
            known[item.origin] += (1, len(item.destinations), item.size)
        everyone = [item for item in demand.items if len(item.destinations) < self.ranks - 1]
        wants = [rank for item in everyone for rank in item.destinations]
        wanted = np.bincount(np.array(wants, dtype=np.int64), minlength=self.ranks)
        start = np.unique(np.column_stack([known, wanted]), axis=0, return_inverse=True)[1].reshape(-1)
        return self.refined(start.astype(np.int64))

    @cached_property
    def most(self) -> int:
        """No free group has more elements: all its orbits of ranks and shared resources are as long as it is large."""
        return math.gcd(*np.bincount(self.colours).tolist(), *self._alike_resources())

    def _alike_resources(self) -> list[int]:
        """How many shared resources there are of each sort, told by the links that take them."""
        costs = self.actions.costs
        shared = costs.use_resource >= costs.links
        link = np.repeat(np.arange(costs.links), np.diff(costs.use_start))[shared]
        sort = np.column_stack([self.kind, self.colours[costs.source], self.colours[costs.target]])
        words = mixed(np.unique(sort, axis=0, return_inverse=True)[1].reshape(-1)[link])
        resource = costs.use_resource[shared] - costs.links
        total = len(costs.resource_names) - costs.links
        # Resources of the very same links are one: between two nodes, the way out of one and into the other.
        _, first = np.unique(mixed_sum(resource, mixed(link), total), return_index=True)
        users = mixed_sum(resource, words, total)
        for salt, end in enumerate((costs.source, costs.target)):  # tells a way out from a way in
            pairs = np.unique(resource * costs.ranks + end[link]) // costs.ranks
            users += mixed(np.bincount(pairs, minlength=total) * 2 + salt) * (users > 0)
        counts: list[int] = np.unique(users[first][users[first] > 0], return_counts=True)[1].tolist()
        return counts

    def may_keep(self, image: Ints) -> bool:
        """Whether a permutation keeps colours."""
        return np.array_equal(self.colours[image], self.colours)

    def refined(self, colours: Ints) -> Ints:
        """The coarsest stable colouring that is finer, numbered alike in isomorphic graphs. O(links x rounds)."""
        source, target = self.actions.costs.source, self.actions.costs.target
        out, into = mixed(self.kind * 2), mixed(self.kind * 2 + 1)
        count = len(np.unique(colours))
        while True:
            words = mixed(colours)
            sums = mixed_sum(source, out * words[target], self.ranks)
            sums += mixed_sum(target, into * words[source], self.ranks)
            order = np.lexsort((sums, colours))
            fresh = (np.diff(colours[order]) != 0) | (np.diff(sums[order]) != 0)
            colours = np.empty_like(colours)
            colours[order] = np.concatenate([[0], np.cumsum(fresh)])
            if count == (count := int(colours.max()) + 1):
                return colours

    def automorphisms(self) -> Iterator[Ints]:
        """Automorphisms of the coloured graph that move rank 0, some for each image of it; resources are not looked at.

        Every image gets an equal share of the refinements.
        """
        images = [rank for rank in range(1, self.ranks) if self.colours[rank] == self.colours[0]]
        for image in images:
            self.left = _REFINEMENTS // len(images)
            for count, found in enumerate(self._extend(self.colours, self.colours, 0, image), 1):
                yield found
                if count == _PER_IMAGE:
                    break

    def _extend(self, ours: Ints, theirs: Ints, rank: int, image: int) -> Iterator[Ints]:
        """The automorphisms between two colourings that take a rank to another and fix none."""
        self.left -= 2
        if self.left < 0 or rank == image:
            return
        ours, theirs = self._individual(ours, rank), self._individual(theirs, image)
        if not np.array_equal(np.bincount(ours), np.bincount(theirs)):
            return
        sizes = np.bincount(ours)
        if sizes.max() == 1:
            found = np.argsort(theirs)[ours]
            if not (found == np.arange(self.ranks)).any() and self._keeps_kinds(found):
                yield found
            return
        colour = int(np.argmin(np.where(sizes > 1, sizes, self.ranks + 1)))
        first = int(np.flatnonzero(ours == colour)[0])
        for other in np.flatnonzero(theirs == colour).tolist():
            yield from self._extend(ours, theirs, first, other)

    def _individual(self, colours: Ints, rank: int) -> Ints:
        """The refinement of a colouring in which a rank has a colour of its own, before its former like."""
        own = 2 * colours + 1
        own[rank] -= 1
        return self.refined(np.unique(own, return_inverse=True)[1].reshape(-1).astype(np.int64))

    def _keeps_kinds(self, image: Ints) -> bool:
        links = self.actions.links(image)
        return bool((links >= 0).all()) and np.array_equal(self.kind[links], self.kind)


def mixed_sum(place: Ints, words: Words, count: int) -> Words:
    """Shape (count,): the sum of the words of each place, wrapping; a hash of the set of them."""
    sums = np.zeros(count, dtype=np.uint64)
    np.add.at(sums, place, words)
    return sums
