"""Topology: ranks, directed links with alpha-beta costs, and the resources that links share.

A transfer of b bytes over a link arrives ``alpha + b * beta`` seconds after it starts. While it lasts, the link and
each shared resource that it takes (a switch port, a NIC, a PCI bus) serve nobody else:

- a plain link is busy for ``alpha + b * beta``: the next message starts when this one has arrived;
- a *pipelined* link is busy for ``b * beta`` only: alpha is latency, so that n messages back to back take
  ``alpha + n * b * beta``, as TACCL prices a contiguous group between nodes;
- a resource is taken for as long as the link is busy, or for ``b * beta`` of its own where it has one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from commlib.errors import TopologyError


@dataclass(frozen=True)
class Link:
    """The cost of one directed link, in seconds and seconds per byte; see the module's text.

    ``resources`` names the shared resources that a transfer takes besides the link itself.

    Raises:
        TopologyError: a negative or infinite cost, or none at all (NaN), or a resource named twice.
    """

    alpha: float = 0.0
    beta: float = 0.0
    resources: tuple[str, ...] = ()
    pipelined: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.alpha < math.inf and 0 <= self.beta < math.inf):
            raise TopologyError(f"a link has alpha and beta of 0 or more, not {self.alpha} and {self.beta}")
        if len(set(self.resources)) != len(self.resources):
            raise TopologyError(f"a link takes each resource once, not {', '.join(self.resources)}")

    def latency(self, size: float) -> float:
        """Seconds from the start of a transfer of ``size`` bytes to its arrival."""
        return self.alpha + size * self.beta

    def busy(self, size: float) -> float:
        """Seconds for which a transfer of ``size`` bytes keeps the link from others."""
        return size * self.beta if self.pipelined else self.alpha + size * self.beta


@dataclass(frozen=True)
class Resource:
    """Something that several links share, one transfer at a time: a switch port, a NIC, a bus.

    ``beta`` (seconds per byte) is its own speed; None: it is taken for as long as the link is busy.

    Raises:
        TopologyError: a negative or infinite beta, or none at all (NaN).
    """

    beta: float | None = None

    def __post_init__(self) -> None:
        if self.beta is not None and not 0 <= self.beta < math.inf:
            raise TopologyError(f"a resource has a beta of 0 or more, not {self.beta}")

    def busy(self, link: Link, size: float) -> float:
        """Seconds for which a transfer of ``size`` bytes over ``link`` keeps the resource from others."""
        return link.busy(size) if self.beta is None else self.beta * size


@dataclass(frozen=True)
class Unit:
    """The unit in which a profile states its times: ``seconds`` each, for chunks of ``chunk_bytes``.

    TACCL's profiles are in microseconds for 1 MB, 32 KB or 1 KB, the latter two scaled by 10 and 100.
    """

    name: str = "us"
    seconds: float = 1e-6
    chunk_bytes: float = float(1 << 20)

    def __post_init__(self) -> None:
        if not (0 < self.seconds < math.inf and 0 < self.chunk_bytes < math.inf):
            raise TopologyError(f"a unit has positive seconds and bytes, not {self.seconds} and {self.chunk_bytes}")


@dataclass(frozen=True)
class Topology:
    """``ranks`` ranks and the directed links between them, keyed by (source, destination).

    ``node_of[r]`` is the node (machine) of rank r; by default all are in node 0. ``unit`` is only how times are shown.

    Raises:
        TopologyError: no ranks, a link from or to a rank that does not exist or from a rank to itself, a link that
            takes a resource that does not exist, or ``node_of`` of another length.
    """

    name: str
    ranks: int
    links: Mapping[tuple[int, int], Link] = field(repr=False)
    resources: Mapping[str, Resource] = field(default_factory=dict, repr=False)
    node_of: tuple[int, ...] = field(default=(), repr=False)
    unit: Unit = field(default=Unit(), repr=False)

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise TopologyError(f"{self.name}: a topology has at least one rank, not {self.ranks}", ranks=self.ranks)
        for (source, destination), link in self.links.items():
            if not (0 <= source < self.ranks and 0 <= destination < self.ranks) or source == destination:
                raise TopologyError(
                    f"{self.name}: link {source} -> {destination} does not join two of its {self.ranks} ranks",
                    source=source,
                    destination=destination,
                )
            self._require_resources(source, destination, link)
        if self.node_of and len(self.node_of) != self.ranks:
            raise TopologyError(f"{self.name}: nodes are given for {len(self.node_of)} ranks, not for {self.ranks}")
        object.__setattr__(self, "links", MappingProxyType(dict(self.links)))
        object.__setattr__(self, "resources", MappingProxyType(dict(self.resources)))
        object.__setattr__(self, "node_of", tuple(self.node_of) or (0,) * self.ranks)

    def _require_resources(self, source: int, destination: int, link: Link) -> None:
        for name in link.resources:
            if name not in self.resources:
                raise TopologyError(
                    f"{self.name}: link {source} -> {destination} takes resource {name!r}, which is not defined",
                    source=source,
                    destination=destination,
                    resource=name,
                )

    def has_link(self, source: int, destination: int) -> bool:
        """Whether ``source`` can send to ``destination`` directly."""
        return (source, destination) in self.links

    def neighbours(self, rank: int) -> list[int]:
        """The ranks that ``rank`` can send to directly, in order."""
        return self._neighbours[rank]

    @cached_property
    def _neighbours(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in range(self.ranks)]
        for source, destination in sorted(self.links):
            found[source].append(destination)
        return found

    @property
    def nodes(self) -> int:
        """The number of nodes (machines)."""
        return len(set(self.node_of))

    def reversed(self) -> Topology:
        """The same with every link turned round; what reduces towards a rank is what spreads from it, reversed."""
        links = {(destination, source): link for (source, destination), link in self.links.items()}
        return Topology(self.name, self.ranks, links, self.resources, self.node_of, self.unit)
