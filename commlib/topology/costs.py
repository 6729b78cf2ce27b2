"""Costs: a topology's times for given message sizes, in whole ticks and as columns.

Solvers and bounds compare sums of thousands of times; in floating point the comparison of a schedule with its bound
would depend on the order of the additions. So every time becomes a whole number of ticks, once, here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from commlib.errors import TopologyError
from commlib.topology.model import Topology

Ints = npt.NDArray[np.int64]
_DIGITS = 6
"""Decimal digits kept of the smallest time that is not zero, before common factors are taken out."""
_MOST_PARTS = 96
"""Parts into which a chunk with decimal costs may be cut so that its costs are still whole ticks."""
_LARGEST = 1 << 40
"""Ticks of the longest transfer; a greater range of times is rounded more coarsely, so that sums fit 63 bits."""


@dataclass(frozen=True, eq=False)
class CostTable:
    """L links in (source, target) order, R resources, K message sizes; times in ticks of ``tick`` seconds.

    The first L resources are the links themselves, the rest those that links share. Link e takes the resources
    ``use_resource[use_start[e]:use_start[e + 1]]``, itself first, for ``use_ticks[same, k]`` from its start on;
    a transfer of size class k arrives after ``latency[e, k]``.
    """

    tick: float
    sizes: tuple[float, ...]
    ranks: int
    source: Ints = field(repr=False)
    target: Ints = field(repr=False)
    latency: Ints = field(repr=False)
    use_start: Ints = field(repr=False)
    use_resource: Ints = field(repr=False)
    use_ticks: Ints = field(repr=False)
    resource_names: tuple[str, ...] = field(repr=False)

    @property
    def links(self) -> int:
        """The number of links."""
        return len(self.source)

    @property
    def busy(self) -> Ints:
        """Shape (L, K): for how long each link itself is busy."""
        return self.use_ticks[self.use_start[:-1]]

    def seconds(self, ticks: float) -> float:
        """Ticks as seconds, to twelve digits: without what floating point would add to a decimal time."""
        return float(f"{ticks * self.tick:.12g}")


def cost_table(topology: Topology, sizes: Sequence[float]) -> CostTable:
    """The costs of every link of a topology for messages of each of ``sizes`` bytes.

    Decimal costs (23.3 us) and their parts (of a chunk cut into 6) come out exact. Other times are rounded to the
    nearest tick, a millionth of the smallest time or finer, so that each is off by at most one part in two millions
    (or the smallest one by more, where times differ by more than 2**20).
    Complexity: O(links x sizes).

    Raises:
        TopologyError: no size, or one that is negative or infinite.
    """
    if not sizes or not all(0 <= size < math.inf for size in sizes):
        raise TopologyError(f"{topology.name}: message sizes are 0 bytes or more, not {list(sizes)}")
    pairs = sorted(topology.links)
    number = {name: len(pairs) + k for k, name in enumerate(sorted(topology.resources))}
    latency, ticks, resources, starts = [], [], [], [0]
    for place, pair in enumerate(pairs):
        link = topology.links[pair]
        latency.append([link.latency(size) for size in sizes])
        ticks.append([link.busy(size) for size in sizes])
        resources.append(place)
        for name in link.resources:
            ticks.append([topology.resources[name].busy(link, size) for size in sizes])
            resources.append(number[name])
        starts.append(len(resources))
    columns = len(sizes)
    tick, whole = _ticks(np.array(latency + ticks, dtype=np.float64).reshape(-1, columns))
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return CostTable(
        tick,
        tuple(map(float, sizes)),
        topology.ranks,
        ends[:, 0].copy(),
        ends[:, 1].copy(),
        whole[: len(pairs)],
        np.array(starts, dtype=np.int64),
        np.array(resources, dtype=np.int64),
        whole[len(pairs) :],
        tuple(f"link {a} -> {b}" for a, b in pairs) + tuple(number),
    )


def _ticks(seconds: npt.NDArray[np.float64]) -> tuple[float, Ints]:
    """(seconds per tick, the same times in ticks) without common factors."""
    positive = np.unique(seconds[seconds > 0])
    if not len(positive):
        return 1e-12, np.zeros(seconds.shape, dtype=np.int64)
    digits, parts = _exact(positive) or (_rounded(positive), 1)
    whole = np.rint(seconds * 10.0**digits * parts).astype(np.int64)
    common = int(np.gcd.reduce(whole, axis=None)) or 1
    return float(f"{common * 10.0**-digits / parts:.12g}"), whole // common


def _exact(times: npt.NDArray[np.float64]) -> tuple[int, int] | None:
    """(decimal digits, parts): with ticks of 10**-digits / parts seconds every time is whole, or None.

    A profile's decimal costs of a chunk that is cut into a few parts are such times: 23.3 us / 6 is 233 ticks.
    """
    parts = np.arange(1, _MOST_PARTS + 1)
    first = math.floor(-math.log10(times[0]))
    for digits in range(first, first + _DIGITS):
        if times[-1] * 10.0**digits * _MOST_PARTS > _LARGEST:
            return None
        for count in parts[_whole(times[0] * 10.0**digits * parts)].tolist():
            if _whole(times * 10.0**digits * count).all():
                return digits, count
    return None


def _whole(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which numbers are whole, but for what floating point makes of a decimal fraction."""
    nearest = np.rint(numbers)
    whole: npt.NDArray[np.bool_] = (nearest >= 1) & (np.abs(numbers - nearest) <= 1e-11 * nearest)
    return whole


def _rounded(times: npt.NDArray[np.float64]) -> int:
    """The decimal digits to which times are rounded that no short tick divides."""
    digits = _DIGITS - math.floor(math.log10(times[0]))
    return min(digits, math.floor(math.log10(_LARGEST / times[-1])))
