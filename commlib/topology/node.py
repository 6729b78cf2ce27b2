"""A node and its fabric: one machine's links, and how machines of that kind are joined through their NICs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from commlib.errors import TopologyError
from commlib.topology.limits import check_size
from commlib.topology.model import Link, Resource, Topology

Internode = Literal["rail", "all", "none"]
"""Which ranks of different nodes are linked: those whose NICs have one number, all, or none (yet)."""
_INTERNODE = ("rail", "all", "none")


@dataclass(frozen=True)
class Fabric:
    """What joins equal nodes: the NIC of each local rank, and the cost of a message between nodes.

    ``nics[r]`` is the number of the NIC that local rank r sends and receives through. A message takes ``alpha``
    seconds of latency and ``beta[n]`` seconds per byte of NIC n, or that of the other end's NIC if that is slower.
    Links between nodes are pipelined; each takes the sender's NIC outwards and the receiver's NIC inwards.
    """

    nics: tuple[int, ...]
    alpha: float
    beta: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.nics or not all(0 <= nic < len(self.beta) for nic in self.nics):
            raise TopologyError(f"NICs are numbered 0 to {len(self.beta) - 1}, not {list(self.nics)}")

    def link(self, source: int, destination: int) -> Link:
        """The link from rank ``source`` to rank ``destination`` of another node; ranks count node by node.

        Raises:
            TopologyError: both ranks are in one node.
        """
        (node, here), (peer, there) = (divmod(rank, len(self.nics)) for rank in (source, destination))
        if node == peer:
            raise TopologyError(
                f"link {source} -> {destination} is inside node {node}, not between nodes",
                source=source,
                destination=destination,
            )
        out, into = self.nics[here], self.nics[there]
        beta = max(self.beta[out], self.beta[into])
        return Link(self.alpha, beta, (nic_name(node, out, "out"), nic_name(peer, into, "in")), pipelined=True)

    def resources(self, nodes: int) -> dict[str, Resource]:
        """The NICs of ``nodes`` nodes: of each its way out and its way in, taken for as long as the link is busy."""
        numbers = sorted(set(self.nics))
        return {
            nic_name(node, nic, way): Resource() for node in range(nodes) for nic in numbers for way in ("out", "in")
        }

    def partners(self, internode: Internode) -> list[tuple[int, int]]:
        """The pairs of local ranks (sender, receiver) that are linked between any two nodes."""
        if internode not in _INTERNODE:
            raise TopologyError(f"internode is one of {', '.join(_INTERNODE)}, not {internode!r}")
        local = range(len(self.nics))
        if internode == "none":
            return []
        return [(a, b) for a, b in product(local, local) if internode == "all" or self.nics[a] == self.nics[b]]


def nic_name(node: int, nic: int, way: str) -> str:
    """The name of the resource that is one direction (``out`` or ``in``) of a node's NIC."""
    return f"node {node} nic {nic} {way}"


@dataclass(frozen=True)
class Node:
    """One node's topology and its fabric; None where nothing is known of NICs."""

    topology: Topology
    fabric: Fabric | None = None

    def cluster(self, nodes: int = 1, internode: Internode = "rail") -> Topology:
        """``nodes`` such nodes, joined; one node is its topology as it is. Rank = node x local ranks + local rank.

        Resources of node n are named ``node n ...``. O(links).

        Raises:
            TopologyError: fewer than one node, or several and the node has no NICs.
            LimitError: too many ranks or links.
        """
        if nodes == 1:
            return self.topology
        if nodes < 1:
            raise TopologyError(f"{self.topology.name}: there is at least one node, not {nodes}")
        if self.fabric is None:
            raise TopologyError(
                f"{self.topology.name}: nothing is known of its NICs, so {nodes} nodes cannot be joined; "
                "describe all nodes and their links in one file",
                nodes=nodes,
            )
        return _joined(self.topology, self.fabric, nodes, internode)


def _joined(one: Topology, fabric: Fabric, nodes: int, internode: Internode) -> Topology:
    local, partners = one.ranks, fabric.partners(internode)
    name = f"{one.name} x{nodes}"
    check_size(name, nodes * local, nodes * len(one.links) + nodes * (nodes - 1) * len(partners))
    links, resources = {}, fabric.resources(nodes)
    for node in range(nodes):
        resources |= {f"node {node} {key}": resource for key, resource in one.resources.items()}
        for (a, b), link in one.links.items():
            own = tuple(f"node {node} {key}" for key in link.resources)
            links[node * local + a, node * local + b] = replace(link, resources=own) if own else link
    for node, peer in product(range(nodes), repeat=2):
        if node != peer:
            ends = ((node * local + a, peer * local + b) for a, b in partners)
            links |= {(source, target): fabric.link(source, target) for source, target in ends}
    node_of = tuple(rank // local for rank in range(nodes * local))
    return Topology(name, nodes * local, links, resources, node_of, one.unit)
