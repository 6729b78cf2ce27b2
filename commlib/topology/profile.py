"""Profiles: measured link costs of a kind of machine, in TACCL's terms and unit.

A profile gives times for one chunk of the size in its name. TACCL scales the times of small chunks: those of a
profile named ``..._1KB`` are 100 times, those of ``..._32KB`` 10 times the microseconds. ``Profile.unit`` undoes that:
times in a Topology are seconds and seconds per byte.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from commlib.errors import TopologyError
from commlib.topology.model import Link, Unit
from commlib.topology.node import Fabric

Cost = Literal["exact", "taccl"]
"""How a profile's numbers become costs: alpha + beta as they are, or TACCL's integers."""
COSTS: tuple[Cost, ...] = ("exact", "taccl")
_SIZE = re.compile(r"(?:^|[_\-])([1-9][0-9]{0,5})(B|KB|MB|GB)$", re.IGNORECASE | re.ASCII)
_BYTES = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_SCALES = {1 << 10: 100, 32 << 10: 10}


@dataclass(frozen=True)
class Cable:
    """A kind of link, for one chunk: ``beta`` beside the alpha, and ``invbw``, all of it when chunks follow closely."""

    beta: float
    invbw: float


@dataclass(frozen=True)
class Remote:
    """Between nodes, for one chunk: ``alpha`` once for a contiguous group, ``beta`` for each chunk of it."""

    alpha: float
    beta: float
    invbw: float


@dataclass(frozen=True)
class Profile:
    """The costs of one kind of machine, in the profile's own unit for chunks of ``chunk_bytes`` bytes.

    ``cables`` are the kinds of link of a named machine, fastest first. A custom profile has the cable of every
    (source, destination) in ``links`` instead. ``remote`` is None where nothing is said of several nodes.

    Raises:
        TopologyError: a negative or infinite time, or none at all (NaN).
    """

    name: str
    gpus: int
    nics: int
    alpha: float
    cables: tuple[Cable, ...] = ()
    remote: Remote | None = None
    links: Mapping[tuple[int, int], Cable] | None = None
    chunk_bytes: int = 1 << 20
    scale: int = 1

    def __post_init__(self) -> None:
        cables = [*self.cables, *(self.links or {}).values()]
        times = [self.alpha, *(time for cable in cables for time in (cable.beta, cable.invbw))]
        if self.remote is not None:
            times += [self.remote.alpha, self.remote.beta, self.remote.invbw]
        if not all(0 <= time < math.inf for time in times):
            wrong = next(time for time in times if not 0 <= time < math.inf)
            raise TopologyError(f"profile {self.name}: times are 0 or more and finite, not {wrong}")

    @property
    def unit(self) -> Unit:
        """The unit of the profile's times: ``us``, or ``us/100`` where they are scaled by 100."""
        name = "us" if self.scale == 1 else f"us/{self.scale}"
        return Unit(name, 1e-6 / self.scale, float(self.chunk_bytes))

    def link(self, cable: Cable, cost: Cost = "exact", resources: tuple[str, ...] = ()) -> Link:
        """A link inside a node: busy for alpha + beta, or for TACCL's integer, for one chunk."""
        if check_cost(cost) == "taccl":
            return self._link(0.0, _whole(cable.invbw), resources)
        return self._link(self.alpha, cable.beta, resources)

    def _link(self, alpha: float, beta: float, resources: tuple[str, ...] = ()) -> Link:
        seconds = self.unit.seconds
        return Link(alpha * seconds, beta * seconds / self.chunk_bytes, resources)

    def fabric(self, nics: tuple[int, ...], cost: Cost = "exact") -> Fabric | None:
        """What joins nodes whose local ranks use these NICs; the profile's number of NICs wins over theirs."""
        if self.remote is None:
            return None
        count = len(set(nics))
        if self.nics != count:
            count = min(self.nics, self.gpus)
            nics = tuple(rank * count // self.gpus for rank in range(self.gpus))
        alpha, beta = self.remote.alpha, self.remote.beta
        if check_cost(cost) == "taccl":
            alpha, beta = float(round(alpha)), _whole(beta)
        link = self._link(alpha, beta)
        return Fabric(nics, link.alpha, (link.beta,) * count)


def _whole(time: float) -> float:
    """TACCL's integer of a time: the whole part, but never 0 of what is not."""
    return float(int(time)) or time


def check_cost(cost: Cost) -> Cost:
    """A cost's name, if there is such a cost."""
    if cost not in COSTS:
        raise TopologyError(f"cost is one of {', '.join(COSTS)}, not {cost!r}")
    return cost


def chunk_of_name(name: str) -> tuple[int, int]:
    """(bytes of a chunk, scale of the times) by the end of a profile's name: ``_1KB``, ``_32KB``, ``_1MB``, ...

    A name without a size means 1 MB. Only 1 KB (x100) and 32 KB (x10) are scaled.
    """
    found = _SIZE.search(name)
    size = 1 << 20 if found is None else int(found[1]) * _BYTES[found[2].upper()]
    return size, _SCALES.get(size, 1)
