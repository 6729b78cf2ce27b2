"""Lower bounds of allreduce, for every algorithm whose messages are single chunks or partial sums of one.

Each of K chunks is summed over all N ranks, and every rank gets the sum; ranks may add what they have in any order.

- *One contribution spreads.* Follow rank q's contribution to chunk c: the messages that contain it make up a broadcast
  from q. So no allreduce is faster than a broadcast of K chunks from any rank; read backwards, none is faster than a
  reduce of K chunks to any rank. Together they hold for every cut, as each cut has q on one side: with all ranks as
  sinks that is M over the least cut that splits the ranks.
- *Total work.* One chunk needs 2 (g - 1) messages between the g parts of any partition of the ranks: let parts share
  at no cost what their ranks know. Up to the moment when some part first knows the whole sum, messages must have
  joined all parts: g - 1 at least. Each of the other parts comes to know it by a later message of its own: g - 1 more.
  So all links between parts, or the resources that cover them, serve 2 (g - 1) K messages (for parts of one rank:
  2 (N - 1) M over the sum of speeds).
- *Distance.* Each contribution must reach every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from commlib.bounds.bound import Bound, Json, best_of_each, bound, microseconds
from commlib.bounds.cover import by_position, cheapest, links_alone
from commlib.bounds.crossing import Machine, least_time
from commlib.bounds.cut import MinCut, cut_bounds, dinic
from commlib.bounds.distance import PathCertificate
from commlib.bounds.distances import FAR, graph, path
from commlib.bounds.groups import ingress_bounds
from commlib.bounds.work import Work, uses
from commlib.collectives import Collective, broadcast, reduce
from commlib.demand import demand
from commlib.errors import SpecError, TopologyError
from commlib.topology.costs import CostTable, Ints

_ENDS = 64
"""Of more ranks than this, only so many are looked at as ends of cuts."""


@dataclass(frozen=True)
class TotalCertificate:
    """``messages`` messages must pass between ``parts`` parts of the ranks, through ``resources`` resources."""

    parts: int
    messages: int
    resources: int
    ticks: int
    tick: float

    def text(self) -> str:
        """The number of messages and what carries them."""
        return (
            f"{self.messages} messages, 2 ({self.parts} - 1) for each chunk, must pass between {self.parts} parts of "
            f"the ranks, and the {self.resources} resources between them need {microseconds(self.ticks, self.tick)}"
        )

    def as_json(self) -> Json:
        """The same numbers; the time in ticks."""
        return dict(vars(self))


def allreduce_bounds(
    costs: CostTable,
    collective: Collective,
    *,
    groups: Sequence[Sequence[int]] = (),
    ranks: Sequence[int] | None = None,
    min_cut: MinCut = dinic,
) -> list[Bound]:
    """Lower bounds of allreduce, the best of each kind, the best first; ``costs`` are those of one of its chunks.

    ``groups`` are the nodes; where they partition the ranks, messages between them are counted as well. ``ranks`` are
    the ends of cuts (one of each orbit of a symmetry will do); by default all, or evenly spread ones of very many.
    Complexity: two minimum cuts for each of ``ranks``, and all distances.

    Raises:
        SpecError: another collective, or several message sizes.
        TopologyError: a rank that another cannot reach.
    """
    if collective.name != "allreduce" or costs.latency.shape[1] != 1 or collective.ranks != costs.ranks:
        raise SpecError(f"allreduce bounds take an allreduce on {costs.ranks} ranks and one size, not {collective}")
    if collective.ranks == 1:
        return [bound("distance", 0, costs, PathCertificate(None, (0,), 0, costs.tick))]
    step = -(-costs.ranks // _ENDS)
    ends = tuple(range(0, costs.ranks, step)) if ranks is None else tuple(ranks)
    found = [_distance(costs, ends), *_totals(costs, collective.chunks, groups)]
    root = max((rank for rank in range(costs.ranks) if rank not in ends), default=0)
    spreading = demand(broadcast(costs.ranks, collective.chunks, root), costs.sizes[0])
    adding = demand(reduce(costs.ranks, collective.chunks, root), costs.sizes[0])
    back = replace(costs, source=costs.target, target=costs.source)
    for work in (Work(costs, spreading, ends=ends), Work(back, adding, ends=ends)):
        found += ingress_bounds(work, groups) + cut_bounds(work, min_cut)
    return best_of_each(found)


def _distance(costs: CostTable, sources: Sequence[int]) -> Bound:
    times = graph(costs, costs.latency[:, 0]).from_ranks(np.array(sources))
    row, target = divmod(int(times.argmax()), costs.ranks)
    source, ticks = sources[row], int(times[row, target])
    if ticks >= FAR:
        raise TopologyError(
            f"rank {source}'s contribution must reach rank {target}, and no path leads there; add a link",
            source=source,
            destination=target,
        )
    way = path(costs, 0, None, times[row], source, target)
    return bound("distance", ticks, costs, PathCertificate(None, tuple(way), ticks, costs.tick))


def _totals(costs: CostTable, chunks: int, groups: Sequence[Sequence[int]]) -> list[Bound]:
    part_of = np.full(costs.ranks, -1, dtype=np.int64)
    for number, group in enumerate(groups):
        part_of[list(group)] = number
    partitions = [np.arange(costs.ranks)]
    if groups and sum(map(len, groups)) == costs.ranks and (part_of >= 0).all() and len(groups) > 1:
        partitions.append(part_of)
    found = []
    for parts in partitions:
        links = np.flatnonzero(parts[costs.source] != parts[costs.target])
        place, use = uses(costs, links)
        resource, ticks = costs.use_resource[use], costs.use_ticks[use, 0]
        count = int(parts.max()) + 1
        best, used = 0, len(links)
        covers = (cheapest(place, resource, ticks, costs.links), links_alone(resource, costs.links))
        for cover in (*covers, *by_position(place, resource)):
            machines = _machines(costs, links[place], resource, ticks, cover)
            time = least_time(machines, 2 * (count - 1) * chunks, False, best)
            best, used = max((best, -used), (time, -len(cover)))
            used = -used
        certificate = TotalCertificate(count, 2 * (count - 1) * chunks, used, best, costs.tick)
        found.append(bound("total", best, costs, certificate))
    return found


def _machines(costs: CostTable, link: Ints, resource: Ints, ticks: Ints, cover: Sequence[int]) -> list[Machine]:
    chosen = np.flatnonzero(np.isin(resource, np.array(cover)))
    chosen = chosen[np.argsort(resource[chosen], kind="stable")]
    names, first = np.unique(resource[chosen], return_index=True)
    latency = np.minimum.reduceat(costs.latency[link[chosen], 0], first).tolist()
    each = np.minimum.reduceat(ticks[chosen], first).tolist()
    return [
        Machine(costs.resource_names[name], busy, 0, late, late, late)
        for name, busy, late in zip(names.tolist(), each, latency, strict=True)
    ]
