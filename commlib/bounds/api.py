"""All bounds of a demand, best first."""

from __future__ import annotations

from collections.abc import Sequence

from commlib.bounds.bound import Bound, best_of_each
from commlib.bounds.cut import MinCut, cut_bounds, dinic
from commlib.bounds.distance import distance_bound
from commlib.bounds.distances import Mask
from commlib.bounds.flow import LinearSolver, flow_bound
from commlib.bounds.groups import ingress_bounds
from commlib.bounds.growth import growth_bound
from commlib.bounds.work import Work
from commlib.demand import Demand
from commlib.topology.costs import CostTable

_FLOW_WORK = 1 << 26
"""Ranks x links beyond which the flow bound is left out."""


def bounds(
    costs: CostTable,
    demand: Demand,
    *,
    allowed: Mask | None = None,
    representatives: Sequence[int] | None = None,
    solver: LinearSolver | None = None,
    groups: Sequence[Sequence[int]] = (),
    min_cut: MinCut = dinic,
) -> list[Bound]:
    """Lower bounds of every schedule of a demand, the best of each kind, the best kind first; never empty.

    For a demand that reduces, ``costs`` is the table of the reversed topology. ``allowed`` (items x links) says which
    links a sketch leaves to each item. ``representatives`` are item numbers, one per orbit of a symmetry group of
    costs, demand and sketch; only they (and their ranks) are looked at. ``groups`` are rank sets worth counting, such
    as nodes.

    Raises:
        TopologyError: an item cannot reach a destination.
        SpecError: arguments that do not fit each other.
    """
    work = Work(costs, demand, allowed, None if representatives is None else tuple(representatives))
    found = [distance_bound(costs, demand, allowed, representatives)]
    found += ingress_bounds(work, groups) + cut_bounds(work, min_cut)
    growth = growth_bound(work)
    found += [growth] if growth is not None else []
    if work.one_each and work.costs.ranks * work.costs.links <= _FLOW_WORK:
        flow = flow_bound(work, solver, max(each.ticks for each in found))
        found += [flow] if flow is not None else []
    return best_of_each(found)
