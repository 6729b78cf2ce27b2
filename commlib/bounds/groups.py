"""Groups of ranks whose crossings are counted: single ranks, nodes, and the ranks behind a shared resource."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from commlib.bounds.bound import Bound, bound
from commlib.bounds.entering import crossing_bound
from commlib.bounds.work import Work
from commlib.errors import SpecError

Group = tuple[int, ...]


def ingress_bounds(work: Work, groups: Sequence[Sequence[int]] = ()) -> list[Bound]:
    """The counting bound into and out of every single rank and every group, where items must cross.

    Groups are the given ones and, for each shared resource, the ranks that its links lead to or come from, the fewer
    of the two (those behind a NIC or a port). Kinds: ``ingress``, ``egress``, or ``head-tail`` where one resource
    carries all of a group's items.

    Complexity: that of ``entering.crossing_bound`` for each.

    Raises:
        SpecError: a group with a rank that does not exist.
        TopologyError: items must cross, and no link does.
    """
    found = []
    for group in candidates(work, groups):
        rest = tuple(rank for rank in range(work.costs.ranks) if rank not in set(group))
        for side, kind in ((group, "ingress"), (rest, "egress")):
            best = crossing_bound(work, side)
            if best is not None:
                alone = len(best.certificate.machines) == 1 and len(group) > 1
                found.append(bound("head-tail" if alone else kind, best.ticks, work.costs, best.certificate))
    return found


def candidates(work: Work, groups: Sequence[Sequence[int]] = ()) -> list[Group]:
    """Single ranks, then the given groups, then those behind resources; each once, with a rank worth looking at.

    Of a group and its complement the smaller one stands for both, as both directions are counted.
    """
    ranks = set(work.ranks)
    chosen: dict[Group, None] = {(rank,): None for rank in work.ranks}
    for group in (*groups, *_behind_resources(work)):
        whole = tuple(sorted({int(rank) for rank in group}))
        if whole and not 0 <= whole[0] <= whole[-1] < work.costs.ranks:
            raise SpecError(f"group {list(whole)} has ranks beyond the {work.costs.ranks} there are")
        if 2 * len(whole) > work.costs.ranks:
            whole = tuple(sorted(set(range(work.costs.ranks)).difference(whole)))
        if 0 < len(whole) < work.costs.ranks and ranks.intersection(whole):
            chosen[whole] = None
    return list(chosen)


def _behind_resources(work: Work) -> list[Group]:
    costs = work.costs
    link = np.repeat(np.arange(costs.links), np.diff(costs.use_start))
    chosen = (costs.use_resource >= costs.links) & work.links[link]
    resource, link = costs.use_resource[chosen], link[chosen]
    order = np.argsort(resource, kind="stable")
    cuts = np.flatnonzero(np.diff(resource[order])) + 1
    found = []
    for members in np.split(link[order], cuts) if len(order) else ():
        before, after = np.unique(costs.source[members]).tolist(), np.unique(costs.target[members]).tolist()
        found += [tuple(after)] * (len(after) <= len(before)) + [tuple(before)] * (len(before) <= len(after))
    return found
