"""The flow bound: prices on resources that show how much work all items together make.

Give each resource a price of 0 or more per tick. An item that goes from rank to rank takes at least the cheapest way,
a link's cost being the sum over its resources of busy ticks times price. A resource is busy for at most T - slack by
time T (slack: least latency - busy of its links, or the known bound ``at_least`` if that is smaller). So
T x sum of prices >= sum of the items' cheapest ways + sum of prices x slacks, whatever the prices are. The best prices
are the dual of maximum concurrent flow (Shahrokhi and Matula 1990), a linear program with one commodity per origin
(or per origin and size). A solver only proposes prices: they are rounded to whole numbers, and the ways are found
again, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from commlib.bounds.bound import Bound, Json, bound, microseconds
from commlib.bounds.distances import FAR, graph
from commlib.bounds.work import Work
from commlib.topology.costs import Ints

Floats = npt.NDArray[np.float64]
_SHADES = 1 << 20
"""Steps between no price and the highest one."""
_SUM = 1 << 60


@dataclass(frozen=True, eq=False)
class LinearProgram:
    """Maximise ``objective`` x subject to A x <= ``upper`` and x >= 0.

    Row i of A has ``value[row_start[i]:row_start[i + 1]]`` in the columns of the same part of ``column``.
    """

    objective: Floats = field(repr=False)
    row_start: Ints = field(repr=False)
    column: Ints = field(repr=False)
    value: Floats = field(repr=False)
    upper: Floats = field(repr=False)


class LinearSolver(Protocol):
    """What the flow bound needs of a solver."""

    def __call__(self, program: LinearProgram) -> Floats | None:
        """An x, nearly optimal and nearly feasible; None where there is none to be had."""
        ...


@dataclass(frozen=True)
class FlowCertificate:
    """``prices`` (whole numbers, by resource name, only those above 0) that add up to ``total``.

    The items' cheapest ways cost ``ways`` at these prices; ``slack`` is the sum of prices times slacks.
    """

    prices: tuple[tuple[str, int], ...] = field(repr=False)
    total: int
    ways: int
    slack: int
    items: int
    ticks: int
    tick: float

    def text(self) -> str:
        """The number of items and of priced resources, and the mean work."""
        return (
            f"{self.items} items by their cheapest ways keep {len(self.prices)} resources (priced by a linear program, "
            f"or alike) busy for {microseconds((self.ways + self.slack) / self.total, self.tick)} on average"
        )

    def as_json(self) -> Json:
        """The prices and the sums."""
        return {
            "prices": dict(self.prices),
            "total": self.total,
            "ways": self.ways,
            "slack": self.slack,
            "items": self.items,
            "ticks": self.ticks,
            "tick": self.tick,
        }


def flow_bound(work: Work, solver: LinearSolver | None = None, at_least: int = 0) -> Bound | None:
    """The best flow bound that equal prices or a solver's prices give; None for a demand without items to move.

    ``at_least`` is a bound that is known. Items of several destinations count with the costliest one (valid, weak).
    Complexity: all shortest paths for each choice of prices; the program has ranks^2 + resources columns and
    ranks x links rows for each message size.
    """
    if not len(work.wanting):
        return None
    slack = slacks(work, at_least)
    best = max((_priced(work, prices, slack) for prices in _proposals(work, solver)), key=lambda each: each.ticks)
    return bound("flow", best.ticks, work.costs, best)


def _proposals(work: Work, solver: LinearSolver | None) -> list[Floats]:
    costs = work.costs
    links, resources = costs.links, len(costs.resource_names)
    proposals = [np.ones(resources), np.r_[np.ones(links), np.zeros(resources - links)]]
    if resources > links:
        proposals.append(np.r_[np.zeros(links), np.ones(resources - links)])
    if solver is not None:
        found = solver(dual_program(work))
        if found is not None and np.isfinite(found).all():
            proposals.append(np.asarray(found, dtype=np.float64)[:resources])
    return [prices for prices in proposals if prices.max() > 0]


def slacks(work: Work, at_least: int) -> Ints:
    """Shape (resources,): by how much less than T a resource can be busy, from the links that take it."""
    costs = work.costs
    link = np.repeat(np.arange(costs.links), np.diff(costs.use_start))
    idle = (costs.latency[link] - costs.use_ticks).min(axis=1)
    least = np.full(len(costs.resource_names), at_least, dtype=np.int64)
    np.minimum.at(least, costs.use_resource, idle)
    return least


def lengths(work: Work, prices: Ints, size: int) -> Ints:
    """Shape (L,): what a link costs at these prices."""
    costs = work.costs
    each = costs.use_ticks[:, size] * prices[costs.use_resource]
    return np.add.reduceat(each, costs.use_start[:-1])


def cheapest_ways(work: Work, prices: Ints) -> int:
    """The sum over the items of the cheapest way to their costliest destination."""
    total = 0
    firsts = np.flatnonzero(np.r_[True, work.wanting[1:] != work.wanting[:-1]])
    size, origin = work.size[work.wanting[firsts]], work.origin[work.wanting]
    for each in np.unique(size).tolist():
        ways = graph(work.costs, lengths(work, prices, each), work.links).from_ranks(np.arange(work.costs.ranks))
        most = np.maximum.reduceat(ways[origin, work.wanted_at], firsts)[size == each]
        if most.max() >= FAR:
            return 0
        total += sum(most.tolist())
    return total


def _priced(work: Work, prices: Floats, slack: Ints) -> FlowCertificate:
    whole = _whole(work, prices)
    ways, total = cheapest_ways(work, whole), sum(whole.tolist())
    idle = sum(price * least for price, least in zip(whole.tolist(), slack.tolist(), strict=True))
    ticks = max(0, -(-(ways + idle) // total))
    names = work.costs.resource_names
    shown = tuple((names[k], price) for k, price in enumerate(whole.tolist()) if price)
    return FlowCertificate(shown, total, ways, idle, len(np.unique(work.wanting)), ticks, work.costs.tick)


def _whole(work: Work, prices: Floats) -> Ints:
    """Prices as whole numbers, so small that no way costs more than 2**60."""
    costs = work.costs
    longest = int(np.add.reduceat(costs.use_ticks.max(axis=1), costs.use_start[:-1]).max()) * costs.ranks
    scale = max(1, min(_SHADES, _SUM // max(longest, 1)))
    rounded: Ints = np.rint(np.maximum(prices, 0) / prices.max() * scale).astype(np.int64)
    return rounded


def dual_program(work: Work) -> LinearProgram:
    """The program whose first columns are the prices: they add up to 1, and the cheapest ways cost as much as can be.

    The other columns are costs from each origin to each rank: none exceeds that of a rank before it by more than the
    link between them costs. Ticks are scaled by the longest one.
    """
    costs, resources = work.costs, len(work.costs.resource_names)
    sizes, scale = len(costs.sizes), float(max(1, costs.use_ticks.max()))
    pairs = np.unique(work.origin[work.wanting] * sizes + work.size[work.wanting])
    links = np.flatnonzero(work.links)
    columns = resources + len(pairs) * costs.ranks
    row_of, value = [np.zeros(resources, dtype=np.int64)], [np.ones(resources)]
    column: list[Ints] = [np.arange(resources)]
    for number, (origin, size) in enumerate(zip(pairs // sizes, pairs % sizes, strict=True)):
        first, base = 1 + number * len(links), resources + number * costs.ranks
        rows = first + np.arange(len(links))
        counts = np.diff(costs.use_start)[links]
        use = np.concatenate([np.arange(costs.use_start[e], costs.use_start[e + 1]) for e in links])
        start = costs.source[links] != origin
        row_of += [rows, rows[start], np.repeat(rows, counts)]
        column += [base + costs.target[links], base + costs.source[links][start], costs.use_resource[use]]
        value += [np.ones(len(links)), -np.ones(int(start.sum())), -costs.use_ticks[use, size] / scale]
    objective = np.zeros(columns)
    place = np.searchsorted(pairs, work.origin[work.wanting] * sizes + work.size[work.wanting])
    np.add.at(objective, resources + place * costs.ranks + work.wanted_at, 1.0)
    rows_all, order = np.concatenate(row_of), np.argsort(np.concatenate(row_of), kind="stable")
    count = 1 + len(pairs) * len(links)
    starts = np.r_[0, np.cumsum(np.bincount(rows_all, minlength=count))].astype(np.int64)
    upper = np.r_[1.0, np.zeros(count - 1)]
    return LinearProgram(
        objective, starts, np.concatenate(column)[order].astype(np.int64), np.concatenate(value)[order], upper
    )
