"""The counting bound of one group of ranks, from a cost table: which items enter, through what, from where, how far.

See ``crossing`` for the argument. Everything that is not exact here errs towards a smaller bound: heads are distances
from any origin, tails distances to any entry, times the smallest over the sizes that are counted together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from commlib.bounds.cover import by_position, cheapest, complete, links_alone
from commlib.bounds.crossing import CrossingCertificate, Load, Machine, least_time
from commlib.bounds.distances import FAR, Mask, graph
from commlib.bounds.work import Work, uses
from commlib.errors import TopologyError
from commlib.topology.costs import Ints

_FULL_WORK = 1 << 23
"""Entries x links of a group beyond which the second count (of entries to all destinations) is left out."""
_THRESHOLDS = 8
"""Heads and tails, each, at which subsets of the items are tried."""


@dataclass(frozen=True, eq=False)
class Columns:
    """Per use of a resource by a link into the group, and per item: the times of ``crossing``."""

    items: Ints
    place: Ints
    resource: Ints
    ticks: Ints
    latency: Ints
    head: Ints
    tail: Ints
    full: Ints
    item_head: Ints
    item_tail: Ints


@dataclass(frozen=True)
class Found:
    """The best count of a group: its time and what shows it."""

    ticks: int
    certificate: CrossingCertificate


def crossing_bound(work: Work, group: Sequence[int], cover: Sequence[int] | None = None) -> Found | None:
    """The best counting bound of the items that must enter ``group``; None where none must.

    ``cover`` adds a choice of resources to those tried. Complexity: O((links + wanted items) x log) and the shortest
    paths inside and outside the group.

    Raises:
        TopologyError: items must enter, and no link leads in.
    """
    inside = work.inside(group)
    items, wanted_at = work.entering(inside)
    if not len(items):
        return None
    backwards = (False, True) if work.demand.reduces else (False,)
    found = [
        best
        for least in _sizes(work, items)
        if (best := _weaker(work, inside, items[keep := work.size[items] >= least], wanted_at[keep], cover, backwards))
    ]
    return max(found, key=lambda each: each.ticks)


def _sizes(work: Work, items: Ints) -> list[int]:
    """Size classes from which on items are counted: all, and only the larger ones."""
    classes = [int(each) for each in np.unique(work.size[items])]
    return classes if len(classes) <= _THRESHOLDS else classes[:: -(-len(classes) // _THRESHOLDS)]


def _weaker(
    work: Work,
    inside: Mask,
    items: Ints,
    wanted_at: Ints,
    cover: Sequence[int] | None,
    backwards: tuple[bool, ...],
) -> Found:
    columns = _columns(work, inside, items, wanted_at)
    choices = _covers(work, columns, cover)
    readings = [
        max((_best(work, inside, columns, chosen, each) for chosen in choices), key=lambda found: found.ticks)
        for each in backwards
    ]
    return min(readings, key=lambda found: found.ticks)


def _covers(work: Work, columns: Columns, given: Sequence[int] | None) -> list[list[int]]:
    links = work.costs.links
    covers = [
        cheapest(columns.place, columns.resource, columns.ticks, links),
        links_alone(columns.resource, links),
        *by_position(columns.place, columns.resource),
    ]
    if given is not None:
        covers.append(complete(list(given), columns.place, columns.resource, links))
    return [cover for place, cover in enumerate(covers) if cover not in covers[:place]]


def _columns(work: Work, inside: Mask, items: Ints, wanted_at: Ints) -> Columns:
    costs = work.costs
    crossing = np.flatnonzero(work.links & inside[costs.target] & ~inside[costs.source])
    if not len(crossing):
        raise TopologyError(
            f"items must enter rank {int(wanted_at[0])} and its group, and no link leads there from outside; add one",
            destination=int(wanted_at[0]),
        )
    sizes = np.unique(work.size[items])
    latency = costs.latency[:, sizes].min(axis=1)
    place, use = uses(costs, crossing)
    before, after = costs.source[crossing], costs.target[crossing]
    entering = np.unique(items)
    inside_links = work.links & inside[costs.target] & inside[costs.source]
    head = graph(costs, latency, work.links).nearest(np.unique(work.origin[entering]))
    item_head = graph(costs, latency, work.links, backwards=True).nearest(np.unique(before))
    reach = graph(costs, latency, inside_links).nearest(np.unique(after))
    starts = np.flatnonzero(np.r_[True, items[1:] != items[:-1]])
    item_tail = np.maximum.reduceat(reach[wanted_at], starts)
    longest = np.flatnonzero(reach[wanted_at] == np.repeat(item_tail, np.diff(np.r_[starts, len(items)])))
    farthest = wanted_at[longest[np.unique(items[longest], return_index=True)[1]]]
    tail = graph(costs, latency, inside_links, backwards=True).nearest(np.unique(farthest))
    full = _full(work, latency, inside_links, np.unique(after), wanted_at, len(entering))
    return Columns(
        entering,
        place,
        costs.use_resource[use],
        costs.use_ticks[use][:, sizes].min(axis=1),
        latency[crossing][place],
        head[before][place],
        tail[after][place],
        np.maximum(full[after], tail[after])[place],
        item_head[work.origin[entering]],
        item_tail,
    )


def _full(work: Work, latency: Ints, links: Mask, entries: Ints, wanted_at: Ints, items: int) -> Ints:
    """Shape (ranks,): at entries, the time to the farthest rank that every item wants; 0 elsewhere."""
    found = np.zeros(work.costs.ranks, dtype=np.int64)
    common = np.flatnonzero(np.bincount(wanted_at, minlength=work.costs.ranks) == items)
    if len(common) > 1 and len(entries) * int(links.sum()) <= _FULL_WORK:
        found[entries] = graph(work.costs, latency, links).from_ranks(entries)[:, common].max(axis=1)
    return found


def _best(work: Work, inside: Mask, columns: Columns, cover: list[int], backwards: bool) -> Found:
    best = _by_work(work, inside, columns, cover, backwards)
    for items, resources in _parts(work, inside, columns, cover):
        table = _Table(work, columns, resources, backwards)
        for head, tail, many in _subsets(columns.item_head[items], columns.item_tail[items]):
            machines = table.machines(head, tail)
            for twice in (False, True):
                ticks = least_time(machines, many, twice, best.ticks)
                if ticks > best.ticks:
                    best = Found(ticks, _certificate(work, inside, many, machines, twice, ticks))
    return best


def _subsets(heads: Ints, tails: Ints) -> Iterator[tuple[int, int, int]]:
    """(head, tail, number of items with at least both) for the thresholds that are tried."""
    for head in _thresholds(heads):
        for tail in _thresholds(tails[heads >= head]):
            yield head, tail, int(((heads >= head) & (tails >= tail)).sum())


def _thresholds(values: Ints) -> list[int]:
    distinct: list[int] = np.unique(values).tolist()
    return distinct[:: -(-len(distinct) // _THRESHOLDS)] if distinct else []


def _parts(work: Work, inside: Mask, columns: Columns, cover: list[int]) -> Iterator[tuple[Ints, list[int]]]:
    """(places of items, resources): all, and, in a sketch, those items that may take some of the resources only."""
    everything = np.arange(len(columns.items))
    yield everything, cover
    if work.allowed is None or len(cover) == 1:
        return
    costs = work.costs
    crossing = np.flatnonzero(work.links & inside[costs.target] & ~inside[costs.source])
    kept = np.isin(columns.resource, np.array(cover))
    may = work.allowed[columns.items][:, crossing]
    takes = np.zeros((len(everything), len(cover)), dtype=bool)
    for place, resource in zip(columns.place[kept], columns.resource[kept], strict=True):
        takes[:, cover.index(int(resource))] |= may[:, place]
    for mask in np.unique(takes, axis=0)[: _THRESHOLDS * 2]:
        if mask.any() and not mask.all():
            held = np.flatnonzero(~(takes & ~mask).any(axis=1))
            yield held, [resource for resource, chosen in zip(cover, mask, strict=True) if chosen]


class _Table:
    """The machines of a cover for any subset of the items, from columns prepared once."""

    def __init__(self, work: Work, columns: Columns, cover: Sequence[int], backwards: bool) -> None:
        chosen = np.flatnonzero(np.isin(columns.resource, np.array(cover)))
        chosen = chosen[np.argsort(columns.resource[chosen], kind="stable")]
        numbers, first = np.unique(columns.resource[chosen], return_index=True)

        def least(values: Ints) -> list[int]:
            return [int(each) for each in np.minimum.reduceat(values, first)]

        ticks, latency = columns.ticks[chosen], columns.latency[chosen]
        # Read backwards, a transfer takes its resources at its end: it starts later and has less to go.
        shift = latency - ticks if backwards else np.zeros_like(latency)
        self.names = [work.costs.resource_names[number] for number in numbers]
        self.ticks = least(ticks)
        self.shift, self.rest = least(shift), least(latency - shift)
        self.head = least(columns.head[chosen] + shift)
        self.finish = least(columns.tail[chosen] + latency - shift)
        self.full = least(columns.full[chosen] + latency - shift)

    def machines(self, head: int, tail: int) -> list[Machine]:
        """The machines for items whose heads and tails are at least these."""
        chosen = [
            Machine(
                name,
                self.ticks[k],
                max(self.head[k], head + self.shift[k]),
                max(self.finish[k], tail + self.rest[k]),
                max(self.full[k], tail + self.rest[k]),
                self.rest[k],
            )
            for k, name in enumerate(self.names)
            if self.head[k] < FAR // 2
        ]
        # One that leads to no counted destination still serves second entries of items.
        if all(machine.finish >= FAR // 2 for machine in chosen):
            raise TopologyError(
                f"items must cross {', '.join(self.names)}, and none of them is reachable", links=self.names
            )
        return chosen


def _by_work(work: Work, inside: Mask, columns: Columns, cover: list[int], backwards: bool) -> Found:
    """The fractional count: bytes over the machines' speeds; it adds up the work of items of different sizes."""
    table = _Table(work, columns, cover, backwards)
    machines = table.machines(int(columns.item_head.min()), int(columns.item_tail.min()))
    many = len(columns.items)
    sizes, counts = np.unique(work.size[columns.items], return_counts=True)
    ticks = 0
    if len(sizes) > 1 and len(machines) == len(cover) and all(machine.ticks for machine in machines):
        each = _ticks_by_size(work, inside, columns, cover, sizes)
        for weight in each:
            rates = tuple(max(Fraction(int(w), int(p)) for w, p in zip(weight, row, strict=True)) for row in each)
            spare = each.max(axis=1).tolist()
            offsets = tuple(m.head + m.finish - extra for m, extra in zip(machines, spare, strict=True))
            amount = Fraction(int((weight * counts).sum()))
            ticks = max(ticks, Load(rates, offsets, amount).least_time())
    return Found(ticks, _certificate(work, inside, many, machines, False, ticks))


def _ticks_by_size(work: Work, inside: Mask, columns: Columns, cover: list[int], sizes: Ints) -> npt.NDArray[np.int64]:
    """Shape (cover, sizes): the shortest time that a resource is taken, by size."""
    costs = work.costs
    crossing = np.flatnonzero(work.links & inside[costs.target] & ~inside[costs.source])
    _, use = uses(costs, crossing)
    rows = [costs.use_ticks[use[columns.resource == resource]][:, sizes].min(axis=0) for resource in sorted(cover)]
    return np.array(rows, dtype=np.int64)


def _certificate(
    work: Work, inside: Mask, items: int, machines: Sequence[Machine], twice: bool, ticks: int
) -> CrossingCertificate:
    group, rest = np.flatnonzero(inside).tolist(), np.flatnonzero(~inside).tolist()
    enters = len(group) <= len(rest)
    shown = tuple(group if enters else rest)
    return CrossingCertificate(
        shown, enters != work.demand.reduces, items, tuple(machines), twice, ticks, work.costs.tick
    )
