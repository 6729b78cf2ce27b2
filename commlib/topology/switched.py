"""Switched networks: fat tree and dragonfly. Hosts are the ranks, the cables between switches are shared resources.

Every pair of ranks has a link, which takes each cable of one fixed route for as long as it is busy (the message
streams through: the switches cut through). The route depends on source and destination only, so that a schedule is
free of conflicts on the cables if no resource is taken twice at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from commlib.errors import TopologyError
from commlib.topology.limits import check_size
from commlib.topology.model import Link, Resource, Topology
from commlib.topology.shapes import DEFAULT_LINK

Route = tuple[str, ...]


def fat_tree(k: int, link: Link = DEFAULT_LINK) -> Topology:
    """The k-ary fat tree (Al-Fares et al., SIGCOMM 2008): k**3/4 hosts in k pods of k/2 edge and k/2 upper switches.

    Routes are D-mod-k: the destination's number chooses the way up (upper switch destination mod k/2, core
    switch (destination div k/2) mod k/2), so that all traffic to a host comes down one path. Every cable has the
    speed of a host's. k is even.
    """
    if k < 2 or k % 2:
        raise TopologyError(f"fat_tree {k}: k is even and at least 2")
    half, ranks = k // 2, k**3 // 4
    check_size(f"fat_tree {k}", ranks, ranks * (ranks - 1))

    def route(source: int, destination: int) -> Route:
        edge, target = source // half, destination // half
        pod, target_pod = edge // half, target // half
        if edge == target:
            return ()
        up = destination % half
        ends = (f"edge {edge} up {up}", f"edge {target} down {up}")
        if pod == target_pod:
            return ends
        core = destination // half % half
        return (ends[0], f"pod {pod} switch {up} up {core}", f"pod {target_pod} switch {up} down {core}", ends[1])

    return _switched(f"fat_tree {k}", ranks, route, link)


def dragonfly(routers: int, hosts: int, cables: int, link: Link = DEFAULT_LINK) -> Topology:
    """A dragonfly (Kim et al., ISCA 2008): groups of ``routers`` routers, each with ``hosts`` ranks and ``cables``
    global cables; routers x cables + 1 groups, one global cable each way between any two.

    Routes are minimal: a local hop to the router that holds the cable to the other group, the cable, a local hop.
    Cable j of group g leads to group g + j + 1 and is at router j div ``cables``.
    """
    name = f"dragonfly {routers}x{hosts}x{cables}"
    if min(routers, hosts, cables) < 1:
        raise TopologyError(f"{name}: routers, hosts and cables are at least 1")
    groups = routers * cables + 1
    ranks = groups * routers * hosts
    check_size(name, ranks, ranks * (ranks - 1))

    def local(group: int, a: int, b: int) -> Route:
        return () if a == b else (f"group {group} router {a} to {b}",)

    def route(source: int, destination: int) -> Route:
        (group, router), (target, last) = (divmod(rank // hosts, routers) for rank in (source, destination))
        if group == target:
            return local(group, router, last)
        leaves = ((target - group) % groups - 1) // cables
        enters = ((group - target) % groups - 1) // cables
        cable = (f"group {group} to group {target}",)
        return local(group, router, leaves) + cable + local(target, enters, last)

    return _switched(name, ranks, route, link)


def _switched(name: str, ranks: int, route: Callable[[int, int], Route], link: Link) -> Topology:
    """All pairs linked, each link taking its ends' host cables and its route."""
    taken: dict[Route, Link] = {}
    links = {}
    for a, b in product(range(ranks), repeat=2):
        if a != b:
            resources = (f"host {a} out", *route(a, b), f"host {b} in")
            links[a, b] = taken.setdefault(resources, Link(link.alpha, link.beta, resources, link.pipelined))
    names = sorted({name for resources in taken for name in resources})
    return Topology(name, ranks, links, {name: Resource() for name in names})
