"""Covers: resources so chosen that every link into a group takes one of them.

Any cover gives a sound count; a good one has few and slow resources. The least total capacity is a weighted set cover,
so it is chosen by a simple rule here, or given by the arcs of a minimum cut (``cut``).
"""

from __future__ import annotations

import numpy as np

from commlib.topology.costs import Ints


def links_alone(resource: Ints, links: int) -> list[int]:
    """The cover of the links themselves; ``resource[j]`` is the resource of use j."""
    return [int(each) for each in np.unique(resource[resource < links])]


def by_position(place: Ints, resource: Ints) -> list[list[int]]:
    """A cover for each position in the links' lists of shared resources: all ways out, all ways in, and so on.

    A link whose list is shorter is covered by itself. Where every link leaves through a port and arrives through one,
    a rule that looks at one resource after the other may mix both kinds; each kind alone is half as many.
    """
    first = np.flatnonzero(np.r_[True, place[1:] != place[:-1]])
    count = np.diff(np.r_[first, len(place)])
    positions = range(1, int(count.max(initial=1)))
    return [sorted(set(resource[first + np.where(count > k, k, 0)].tolist())) for k in positions]


def cheapest(place: Ints, resource: Ints, ticks: Ints, links: int) -> list[int]:
    """A cover of small capacity: a shared resource is taken where it is slower than its uncovered links together.

    Use j is that of ``resource[j]`` by the link at ``place[j]`` for ``ticks[j]``; each link's first use is itself.
    Resources that save most per entry come first, equal ones by number; those that later ones make needless go.
    Complexity: O(uses x log uses).
    """
    rate = 1.0 / np.maximum(ticks, 0.5)
    own = np.zeros(int(place.max()) + 1)
    own[place[resource < links]] = rate[resource < links]
    shared = np.flatnonzero(resource >= links)
    order = shared[np.argsort(resource[shared], kind="stable")]
    names, first = np.unique(resource[order], return_index=True)
    if not len(names):
        return links_alone(resource, links)
    members = np.split(order, first[1:])
    price = [float(rate[uses].max()) for uses in members]
    by_value = sorted(range(len(names)), key=lambda k: (price[k] / len(members[k]), k))
    covered = np.zeros(len(own), dtype=bool)
    taken: list[int] = []
    for k in by_value:
        fresh = place[members[k]][~covered[place[members[k]]]]
        if own[fresh].sum() > price[k] * (1 + 1e-9) or (len(fresh) and own[fresh].sum() >= price[k]):
            covered[fresh] = True
            taken.append(k)
    needed = _needed(taken, [place[uses] for uses in members], covered)
    alone = resource[(resource < links) & ~covered[place]]
    return sorted(alone.tolist() + [int(names[k]) for k in needed])


def complete(cover: list[int], place: Ints, resource: Ints, links: int) -> list[int]:
    """A cover with the links added that it leaves out, and without what covers nothing."""
    hit = np.isin(resource, np.array(cover, dtype=np.int64))
    covered = np.zeros(int(place.max()) + 1, dtype=bool)
    covered[place[hit]] = True
    missing = resource[(resource < links) & ~covered[place]]
    return sorted({*resource[hit].tolist(), *missing.tolist()})


def _needed(taken: list[int], places: list[Ints], covered: Ints) -> list[int]:
    times = np.zeros(len(covered), dtype=np.int64)
    for k in taken:
        times[places[k]] += 1
    needed = []
    for k in reversed(taken):
        if (times[places[k]] > 1).all():
            times[places[k]] -= 1
        else:
            needed.append(k)
    return needed
