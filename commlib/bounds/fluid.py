"""Bounds for every division of a size into chunks: data as a fluid, links as pipes of 1 / beta bytes per second.

Whatever the chunks, each byte of a shard must cross every cut between its origin and a destination, and a link or
resource carries at most one byte per beta seconds. So the cut, flow and total bounds hold with times beta x bytes and
without rounding up to whole chunks. A message takes its link's alpha besides, so the least alpha of the links across
is added to a cut's time. No byte arrives before the alphas of its way are over (distance). A resource slower than its
link may still be busy when its last message has arrived: for a whole shard at most, and that is taken off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from commlib.bounds.bound import Bound, Json, best_of_each, rank_list
from commlib.bounds.cover import cheapest, complete, links_alone
from commlib.bounds.cut import MinCut, Pipes, amounts_at, dinic, group_and_cover, tightening
from commlib.bounds.distance import distance_bound
from commlib.bounds.flow import Floats, FlowCertificate, LinearSolver, flow_bound
from commlib.bounds.work import Work, uses
from commlib.collectives import Collective, broadcast, reduce
from commlib.demand import Demand, chunk_bytes, demand
from commlib.topology.costs import Ints, cost_table
from commlib.topology.model import Topology

_FLOOR = 1 - 1e-9
"""Seconds are rounded down by this much, more than floating point can be off."""


@dataclass(frozen=True)
class FluidCertificate:
    """``size`` bytes must cross between ``ranks`` and the others (or between all ranks), at ``speed`` bytes/s."""

    ranks: tuple[int, ...]
    size: float
    speed: float
    alpha: float

    def text(self) -> str:
        """The bytes, the ranks and the speed."""
        return (
            f"{self.size:.6g} bytes must cross the border of rank{'s' * (len(self.ranks) > 1)} "
            f"{rank_list(self.ranks)}, at {self.speed / 1e9:.6g} GB/s and {self.alpha * 1e6:.6g} us of latency"
        )

    def as_json(self) -> Json:
        """The same numbers."""
        return {"ranks": list(self.ranks), "bytes": self.size, "bytes_per_second": self.speed, "alpha": self.alpha}


def fluid_bounds(
    topology: Topology,
    collective: Collective,
    size: float,
    *,
    groups: Sequence[Sequence[int]] = (),
    ranks: Sequence[int] | None = None,
    solver: LinearSolver | None = None,
    min_cut: MinCut = dinic,
) -> list[Bound]:
    """Lower bounds in seconds for ``size`` bytes (as nccl-tests counts) in any chunks; best of each kind, best first.

    ``ranks`` are the ends of cuts (one of each orbit of a symmetry will do; None: all), ``groups`` more sets to look
    at. ``seconds`` is what counts; ``ticks`` is that in whole ticks of the fluid's own table, rounded down.

    Raises:
        SpecError: a size that is no size, or a collective that is not specified.
        TopologyError: a rank that cannot be reached.
    """
    found: list[Bound] = []
    for way, each, weight in _spreads(topology, collective, size):
        found += _of_spread(way, demand(each, weight), groups, ranks, solver, min_cut)
    if collective.name == "allreduce" and topology.ranks > 1:
        found.append(_total(topology, size))
    return best_of_each(found)


def _of_spread(
    way: Topology,
    moved: Demand,
    groups: Sequence[Sequence[int]],
    ranks: Sequence[int] | None,
    solver: LinearSolver | None,
    min_cut: MinCut,
) -> list[Bound]:
    pipes = _Fluid(way, moved.sizes[0])
    work = Work(pipes.costs, moved, ends=None if ranks is None else tuple(ranks))
    alphas = cost_table(way, (0.0,))
    far = distance_bound(alphas, replace(moved, sizes=(0.0,)))
    exact = np.array([way.links[pair].alpha for pair in sorted(way.links)])
    found = [replace(far, seconds=far.seconds * _floor(alphas.latency[:, 0], alphas.tick, exact))]
    cuts = (_cut(work, pipes, exact, *each) for each in _candidates(work, groups, min_cut))
    found += [cut for cut in cuts if cut is not None]
    if work.one_each:
        flow = flow_bound(work, solver)
        found += [] if flow is None else [_flow(flow, pipes)]
    return found


class _Fluid:
    """A topology without alphas: ``seconds[j]`` is how long use j of a resource lasts for a shard, exactly.

    ``spare[j]`` (0 or more) is for how much of that the resource is busy after the shard has arrived.
    """

    def __init__(self, topology: Topology, size: float) -> None:
        links = {pair: replace(link, alpha=0.0) for pair, link in topology.links.items()}
        self.costs = cost_table(replace(topology, links=links), (size,))
        seconds: list[float] = []
        spare: list[float] = []
        for _, link in sorted(links.items()):
            busy = [link.busy(size), *(topology.resources[name].busy(link, size) for name in link.resources)]
            seconds += busy
            spare += [max(0.0, each - link.latency(size)) for each in busy]
        self.seconds, self.spare = np.array(seconds), np.array(spare)

    def least(self, items: int, crossing: Ints, cover: list[int]) -> tuple[float, float]:
        """(seconds in which that many shards cross, shards per second), through the slowest cover that is tried."""
        costs = self.costs
        place, use = uses(costs, crossing)
        resource, ticks = costs.use_resource[use], costs.use_ticks[use, 0]
        best = (0.0, math.inf)
        for chosen in (
            complete(cover, place, resource, costs.links),
            cheapest(place, resource, ticks, costs.links),
            links_alone(resource, costs.links),
        ):
            kept = np.isin(resource, np.array(chosen))
            order = np.argsort(resource[kept], kind="stable")
            first = np.unique(resource[kept][order], return_index=True)[1]
            busy = np.minimum.reduceat(self.seconds[use[kept]][order], first)
            late = np.maximum.reduceat(self.spare[use[kept]][order], first)
            if busy.min() > 0:
                rate = float((1 / busy).sum())
                best = max(best, ((items - float((late / busy).sum())) / rate, rate))
        return best


def _floor(ticks: Ints, tick: float, exact: Floats) -> float:
    """A factor that makes up for rounded times that are longer than the exact ones."""
    positive = exact > 0
    ratios = ticks[positive] * tick / exact[positive]
    return _FLOOR / max(1.0, float(ratios.max())) if len(ratios) else _FLOOR


def _flow(flow: Bound, pipes: _Fluid) -> Bound:
    certificate = flow.certificate
    if not isinstance(certificate, FlowCertificate):
        return flow
    tick = pipes.costs.tick
    ratio = float(Fraction(certificate.ways + certificate.slack, certificate.total))
    seconds = max(0.0, ratio) * tick * _floor(pipes.costs.use_ticks[:, 0], tick, pipes.seconds)
    return Bound("flow", int(seconds / tick), seconds, certificate)


def _spreads(topology: Topology, collective: Collective, size: float) -> Iterator[tuple[Topology, Collective, float]]:
    """(topology, collective, bytes of a chunk) of the collectives whose bounds hold; for allreduce see there."""
    whole = replace(collective, chunks=1)
    if collective.name != "allreduce":
        back = topology.reversed() if collective.reduces else topology
        yield back, whole, chunk_bytes(whole, size)
        return
    root = topology.ranks - 1
    yield topology, broadcast(topology.ranks, 1, root), size
    yield topology.reversed(), reduce(topology.ranks, 1, root), size


def _candidates(work: Work, groups: Sequence[Sequence[int]], min_cut: MinCut) -> Iterator[tuple[list[int], list[int]]]:
    everyone = set(range(work.costs.ranks))
    for group in groups:
        if 0 < len(group) < len(everyone):
            yield list(group), []
            yield sorted(everyone.difference(group)), []
    pipes = Pipes(work)
    for rank in work.ranks:
        for leaving in (False, True) if work.one_each else (False,):
            amounts = amounts_at(work, rank, leaving)
            for near in tightening(pipes, amounts, rank, leaving, min_cut) if amounts else ():
                yield group_and_cover(work, pipes, near)


def _cut(work: Work, pipes: _Fluid, alpha: Floats, group: list[int], cover: list[int]) -> Bound | None:
    inside = work.inside(group)
    items = len(np.unique(work.entering(inside)[0]))
    crossing = np.flatnonzero(inside[work.costs.target] & ~inside[work.costs.source])
    if not items or not len(crossing):
        return None
    seconds, rate = pipes.least(items, crossing, cover)
    late, size = float(alpha[crossing].min()), work.demand.sizes[0]
    shown = tuple(group if 2 * len(group) <= work.costs.ranks else np.flatnonzero(~inside).tolist())
    certificate = FluidCertificate(shown, items * size, size * rate, late)
    seconds = (max(0.0, seconds) + late) * _FLOOR
    return Bound("cut", int(seconds / work.costs.tick), seconds, certificate)


def _total(topology: Topology, size: float) -> Bound:
    """2 (N - 1) bytes must be sent for each byte of the buffer (see ``allreduce``)."""
    pipes, count = _Fluid(topology, size), 2 * (topology.ranks - 1)
    seconds, rate = pipes.least(count, np.arange(pipes.costs.links), [])
    seconds = max(0.0, seconds) * _FLOOR
    certificate = FluidCertificate(tuple(range(topology.ranks)), count * size, size * rate, 0.0)
    return Bound("total", int(seconds / pipes.costs.tick), seconds, certificate)
