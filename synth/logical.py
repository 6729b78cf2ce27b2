"""Logical topology: what a sketch leaves of a whole topology, and the rules that it adds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from commlib.demand import Demand
from commlib.topology import Link, Resource, Topology
from synth.crossing import Crossing, Nodes, allowed
from synth.problem import Rules
from synth.sketch import Sketch
from synth.symmetry import Ints, rotation


@dataclass(frozen=True, eq=False)
class Logical:
    """``topology`` is the one that the problem is posed on: reversed for a demand that reduces.

    ``generators`` are the sketch's symmetries with their keys, not yet checked against anything.
    """

    topology: Topology
    rules: Rules
    generators: tuple[tuple[str, Ints], ...]
    notes: tuple[str, ...]


def logical(
    topology: Topology, sketch: Sketch, demand: Demand, without: frozenset[str] = frozenset(), strict: bool = True
) -> Logical:
    """Apply a sketch to a whole topology.

    Links inside a node all stay; those of a switch share an out-port and an in-port per GPU, which are added where
    the topology has none. Links between nodes stay where the sketch's connections and hierarchy say so; a NIC is a
    resource of the topology that its links share one after the other, which has the effect of TACCL's beta times the
    number of links per NIC. For a demand that reduces, links that the sketch leaves are turned round, and senders
    stay senders: the sum of a GPU leaves other nodes through the GPU that is mapped to it.

    ``without`` are keys of statements that are not heeded (for explanations); without ``strict``, links that the
    topology lacks are no error. Complexity: O(items x links).

    Raises:
        SketchError: the sketch does not fit the topology: nodes, GPUs, or a link that is not there.
    """
    crossing = Crossing(sketch, topology, Nodes.of(topology, sketch), without)
    if strict:
        crossing.require_links()
    posed = _with_ports(selected(crossing), crossing)
    if demand.reduces:
        posed = posed.reversed()
    ends = np.array(sorted(posed.links), dtype=np.int64).reshape(-1, 2)
    rules = Rules(
        allowed=allowed(crossing, demand, ends[:, 0], ends[:, 1]),
        own_first=_own_first(crossing, ends, demand.reduces),
        switches=tuple(_switches(crossing)),
        spread=sketch.intranode.strategy if sketch.intranode.strategy in ("minmax", "maxmin") else "",
    )
    return Logical(posed, rules, tuple(_generators(sketch, topology, without)), tuple(_notes(sketch)))


def selected(crossing: Crossing) -> Topology:
    """The links that a sketch leaves of a topology. O(links log links)."""
    topology = crossing.topology
    pairs = sorted(topology.links)
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    level = crossing.level_of(ends[:, 0], ends[:, 1])
    links = {pair: topology.links[pair] for pair, kept in zip(pairs, level.tolist(), strict=True) if kept >= -1}
    return replace(topology, links=links)


def _switches(crossing: Crossing) -> list[tuple[frozenset[int], str]]:
    """The switches of every node that the sketch has a preference for."""
    found: dict[frozenset[int], str] = {}
    for switch, preference in zip(
        crossing.sketch.intranode.switches, crossing.sketch.intranode.preferences, strict=True
    ):
        for node in range(crossing.sketch.nodes):
            found.setdefault(frozenset(crossing.nodes.rank[node, list(switch)].tolist()), preference)
    return [(ranks, preference) for ranks, preference in found.items() if preference != "none"]


def _with_ports(topology: Topology, crossing: Crossing) -> Topology:
    """The same with a port out of and into each GPU of a switch, where its links share nothing yet."""
    links, resources = dict(topology.links), dict(topology.resources)
    for number, switch in enumerate(dict.fromkeys(frozenset(row) for row in crossing.sketch.intranode.switches)):
        for node in range(crossing.sketch.nodes):
            for gpu in sorted(switch):
                if gpu >= crossing.nodes.size:
                    message = f"there is no GPU {gpu}: a node of {topology.name} has {crossing.nodes.size}"
                    raise crossing.sketch.fail("intranode_sketch.switches", message, rank=gpu)
            ranks = crossing.nodes.rank[node, sorted(switch)].tolist()
            name = f"switch {number} of node {node}, {{}}-port of rank {{}}"
            for rank in ranks:
                _share(links, resources, name.format("out", rank), [(rank, peer) for peer in ranks if peer != rank])
            for rank in ranks:
                _share(links, resources, name.format("in", rank), [(peer, rank) for peer in ranks if peer != rank])
    return replace(topology, links=links, resources=resources)


def _share(
    links: dict[tuple[int, int], Link], resources: dict[str, Resource], name: str, pairs: list[tuple[int, int]]
) -> None:
    pairs = [pair for pair in pairs if pair in links]
    if len(pairs) < 2 or set.intersection(*(set(links[pair].resources) for pair in pairs)):
        return
    resources[name] = Resource()
    for pair in pairs:
        links[pair] = replace(links[pair], resources=(*links[pair].resources, name))


def _own_first(crossing: Crossing, ends: Ints, reduces: bool) -> frozenset[int]:
    internode, nodes = crossing.sketch.internode, crossing.nodes
    if internode is None or not internode.enforce_ordering:
        return frozenset()
    between = nodes.node[ends[:, 0]] != nodes.node[ends[:, 1]]
    if internode.senders is not None:
        between &= np.isin(nodes.local[ends[:, int(reduces)]], list(internode.senders))
    return frozenset(np.flatnonzero(between).tolist())


def _generators(sketch: Sketch, topology: Topology, without: frozenset[str]) -> list[tuple[str, Ints]]:
    found = []
    for place, (offset, group) in enumerate(sketch.symmetry):
        key = f"symmetry_offsets[{place}]"
        if topology.ranks % group:
            message = f"groups of {group} do not divide the {topology.ranks} ranks of {topology.name}"
            raise sketch.fail(key, message, ranks=topology.ranks)
        if key not in without:
            found.append((key, rotation(topology.ranks, offset, group)))
    return found


def _notes(sketch: Sketch) -> list[str]:
    notes = []
    if sketch.nodes == 1 and sketch.internode is not None:
        notes.append("internode_sketch is not used: there is one node")
    if len(set(map(frozenset, sketch.intranode.switches))) < len(sketch.intranode.switches):
        notes.append("a switch that is listed several times is one switch: costs are those of all its planes together")
    return notes
