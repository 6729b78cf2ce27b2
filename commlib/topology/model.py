"""Topology: ranks and directed links with alpha-beta costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType

from commlib.errors import TopologyError


@dataclass(frozen=True)
class Link:
    """The cost of one directed link: a message of b bytes takes ``alpha + b * beta`` seconds.

    Raises:
        TopologyError: a negative or infinite cost, or none at all (NaN).
    """

    alpha: float = 0.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.alpha < math.inf and 0 <= self.beta < math.inf):
            raise TopologyError(f"a link has alpha and beta of 0 or more, not {self.alpha} and {self.beta}")


@dataclass(frozen=True)
class Topology:
    """``ranks`` ranks and the directed links between them, keyed by (source, destination).

    Raises:
        TopologyError: no ranks, or a link from or to a rank that does not exist, or from a rank to itself.
    """

    name: str
    ranks: int
    links: Mapping[tuple[int, int], Link] = field(repr=False)

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise TopologyError(f"{self.name}: a topology has at least one rank, not {self.ranks}", ranks=self.ranks)
        for source, destination in self.links:
            if not (0 <= source < self.ranks and 0 <= destination < self.ranks) or source == destination:
                raise TopologyError(
                    f"{self.name}: link {source} -> {destination} does not join two of its {self.ranks} ranks",
                    source=source,
                    destination=destination,
                )
        object.__setattr__(self, "links", MappingProxyType(dict(self.links)))

    def has_link(self, source: int, destination: int) -> bool:
        """Whether ``source`` can send to ``destination`` directly."""
        return (source, destination) in self.links

    def neighbours(self, rank: int) -> list[int]:
        """The ranks that ``rank`` can send to directly, in order."""
        return sorted(destination for source, destination in self.links if source == rank)


def _symmetric(name: str, ranks: int, pairs: Iterable[tuple[int, int]], link: Link) -> Topology:
    links = {pair: link for a, b in pairs if a != b for pair in ((a, b), (b, a))}
    return Topology(name, ranks, links)


def fully_connected(ranks: int, link: Link = Link()) -> Topology:
    """Every rank linked to every other."""
    return _symmetric("fully_connected", ranks, ((a, b) for a in range(ranks) for b in range(a)), link)


def ring(ranks: int, link: Link = Link()) -> Topology:
    """Rank r linked to its two neighbours r - 1 and r + 1, cyclically."""
    return _symmetric("ring", ranks, ((r, (r + 1) % ranks) for r in range(ranks)), link)


def torus(shape: Sequence[int], link: Link = Link()) -> Topology:
    """A torus of any number of dimensions; ranks count in row-major order."""
    cells = list(product(*(range(size) for size in shape)))
    rank_of = {cell: rank for rank, cell in enumerate(cells)}
    pairs = (
        (rank_of[cell], rank_of[(*cell[:axis], (cell[axis] + 1) % shape[axis], *cell[axis + 1 :])])
        for cell in cells
        for axis in range(len(shape))
    )
    return _symmetric("torus " + "x".join(map(str, shape)), len(cells), pairs, link)


def nodes(count: int, local: int, inside: Link = Link(), between: Link = Link()) -> Topology:
    """``count`` nodes of ``local`` ranks: all linked inside a node, equal local ranks linked between nodes."""
    ranks = count * local
    links = {
        (a, b): inside if a // local == b // local else between
        for a in range(ranks)
        for b in range(ranks)
        if a != b and (a // local == b // local or a % local == b % local)
    }
    return Topology(f"{count} nodes x {local}", ranks, links)
