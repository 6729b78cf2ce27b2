"""Named machines: the links inside a node as its builders publish them, its NICs, and default costs.

Default costs are public figures, not measurements of your machine; give a ``Profile`` of yours where it matters.
``Machine.figures`` says where each machine's come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from commlib.errors import TopologyError
from commlib.topology.model import Link, Resource, Topology
from commlib.topology.node import Fabric, Internode, Node
from commlib.topology.profile import Cable, Cost, Profile, Remote

Pairs = Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class Machine:
    """One kind of node. ``cable_of[a, b]`` is the kind of link from local rank a to b, an index into a profile's
    cables; ``ports`` says that they go through one switch, so that each rank has one way out and one way in.

    ``nics[r]`` is the NIC of local rank r. ``profile`` has the default costs, ``figures`` their sources.
    """

    name: str
    title: str
    nics: tuple[int, ...]
    profile: Profile
    figures: str
    cable_of: Pairs = field(repr=False)
    ports: bool = False

    @property
    def ranks(self) -> int:
        """The number of ranks (GPUs) of one node."""
        return len(self.nics)

    @property
    def cables(self) -> int:
        """The number of kinds of link that a profile of this machine states."""
        return max(self.cable_of.values(), default=-1) + 1

    def topology(
        self,
        nodes: int = 1,
        profile: Profile | None = None,
        cost: Cost = "exact",
        internode: Internode = "rail",
    ) -> Topology:
        """``nodes`` such machines; see ``Node.cluster``. Ranks count node by node.

        Raises:
            TopologyError: a profile of another kind of machine, or no such cost or internode choice.
            LimitError: too many ranks or links.
        """
        return self.node(profile, cost).cluster(nodes, internode)

    def node(self, profile: Profile | None = None, cost: Cost = "exact") -> Node:
        """One node and its fabric, with the costs of a profile (default: the machine's own).

        Raises:
            TopologyError: the profile has another number of GPUs or of kinds of link, or has its own links.
        """
        chosen = profile or self.profile
        self._require_fit(chosen)
        links = {pair: self._link(chosen, cost, pair) for pair in sorted(self.cable_of)}
        ports = [name for rank in range(self.ranks) for name in _ports(rank, rank)] if self.ports else []
        one = Topology(self.name, self.ranks, links, {name: Resource() for name in ports}, unit=chosen.unit)
        return Node(one, chosen.fabric(self.nics, cost))

    def _link(self, profile: Profile, cost: Cost, pair: tuple[int, int]) -> Link:
        cable = profile.cables[self.cable_of[pair]]
        return profile.link(cable, cost, _ports(*pair) if self.ports else ())

    def _require_fit(self, profile: Profile) -> None:
        if profile.links is not None:
            raise TopologyError(
                f"profile {profile.name}: has links of its own, so it is a topology, not a profile of {self.name}",
                key="links",
            )
        if profile.gpus != self.ranks:
            raise TopologyError(
                f"profile {profile.name}: gpus_per_node is {profile.gpus}, but {self.name} has {self.ranks} GPUs",
                key="gpus_per_node",
            )
        if len(profile.cables) != self.cables:
            raise TopologyError(
                f"profile {profile.name}: node_betas_list has {len(profile.cables)} entries, but {self.name} has "
                f"{self.cables} kinds of link",
                key="node_betas_list",
            )


def _ports(source: int, destination: int) -> tuple[str, str]:
    return f"port {source} out", f"port {destination} in"


def internode_link(
    machine: Machine | Node | Fabric,
    source: int,
    destination: int,
    profile: Profile | None = None,
    cost: Cost = "exact",
) -> Link:
    """The link between two ranks of different nodes, with its costs and the NICs it takes.

    The resources that it names are those of ``Fabric.resources``; a topology made with any ``internode`` has them.

    Raises:
        TopologyError: both ranks are in one node, or the machine has no NICs.
    """
    made = machine.node(profile, cost) if isinstance(machine, Machine) else machine
    fabric = made.fabric if isinstance(made, Node) else made
    if fabric is None:
        raise TopologyError("nothing is known of the NICs, so there is no link between nodes")
    return fabric.link(source, destination)


def _matrix(text: str, kinds: str) -> Pairs:
    """Links by a symmetric matrix of lanes; ``kinds`` lists the lanes of each kind of link, fastest first."""
    rows = [line.split() for line in text.strip().splitlines()]
    return MappingProxyType(
        {(a, b): kinds.index(lanes) for a, row in enumerate(rows) for b, lanes in enumerate(row) if lanes in kinds}
    )


def _switch(ranks: int) -> Pairs:
    return MappingProxyType({(a, b): 0 for a in range(ranks) for b in range(ranks) if a != b})


def _profile(name: str, nics: tuple[int, ...], alpha: float, betas: list[float], remote: float) -> Profile:
    cables = tuple(Cable(beta, beta) for beta in betas)
    return Profile(name, len(nics), len(set(nics)), alpha, cables, Remote(2.6, remote, 2.6 + remote))


_HYBRID_CUBE_MESH = _matrix(
    """
    . 2 1 1 2 . . .
    2 . 1 2 . 1 . .
    1 1 . 2 . . 2 .
    1 2 2 . . . . 1
    2 . . . . 2 1 1
    . 1 . . 2 . 1 2
    . . 2 . 1 1 . 2
    . . . 1 1 2 2 .
    """,
    "21",
)
"""NVLinks of the 8 V100 of a DGX-1 and of Azure's NDv2, six lanes each; numbered as SCCL and TACCL do."""

_MI250X = _matrix(
    """
    . 4 1 . . . 2 .
    4 . . 1 . 2 . .
    1 . . 4 2 . . .
    . 1 4 . . . . 2
    . . 2 . . 4 1 .
    . 2 . . 4 . . 1
    2 . . . 1 . . 4
    . . . 2 . 1 4 .
    """,
    "421",
)
"""Infinity Fabric links between the 8 dies (GCDs) of a node of four MI250X, as in Frontier and LUMI."""

_V100_FIGURES = (
    "TACCL's public 1 MB profile of NDv2 (us per MiB): alpha 0.3, two NVLink lanes 23, one lane 46;"
    " between nodes alpha 2.6, beta 105 (InfiniBand EDR, 100 Gb/s)"
)


def _hybrid(name: str, title: str, nics: tuple[int, ...], figures: str) -> Machine:
    return Machine(name, title, nics, _profile(f"{name} 1MB", nics, 0.3, [23, 46], 105), figures, _HYBRID_CUBE_MESH)


def nvswitch(name: str, title: str, nics: tuple[int, ...], beta: float, remote: float, figures: str) -> Machine:
    """A machine whose GPUs are joined by one switch; ``beta`` and ``remote`` in us per MiB."""
    profile = _profile(f"{name} 1MB", nics, 0.3, [beta], remote)
    return Machine(name, title, nics, profile, figures, _switch(len(nics)), ports=True)


_H100_FIGURES = (
    "NVLink 4, 18 lanes: 450 GB/s each way, 2.33 us per MiB; alpha 0.3 as TACCL measured on V100; ConnectX-7, 400 Gb/s:"
    " alpha 2.6, beta 21 us per MiB. Nominal rates"
)


def hierarchy(ranks: int) -> Machine:
    """Nodes of ``ranks`` ranks on one switch, a NIC each, at the rates of DGX H100."""
    title = f"node of {ranks} ranks on a switch"
    return nvswitch(f"nodes x{ranks}", title, tuple(range(ranks)), 2.33, 21, _H100_FIGURES)


def _machines() -> list[Machine]:
    eight = tuple(range(8))
    in_pairs = (0, 0, 1, 1, 2, 2, 3, 3)
    return [
        _hybrid("ndv2", "Azure NDv2: 8 V100, hybrid cube mesh, 1 NIC", (0,) * 8, _V100_FIGURES),
        _hybrid("dgx1", "DGX-1: 8 V100, hybrid cube mesh, 4 NICs", in_pairs, _V100_FIGURES),
        nvswitch(
            "dgx2",
            "DGX-2: 16 V100 on NVSwitch, 8 NICs",
            tuple(rank // 2 for rank in range(16)),
            8,
            105,
            "TACCL's public 1 MB profile of DGX-2 (us per MiB): alpha 0.3, NVSwitch 8; between nodes alpha 2.6,"
            " beta 105 (InfiniBand EDR, 100 Gb/s)",
        ),
        nvswitch(
            "a100",
            "DGX A100: 8 A100 on NVSwitch, 8 NICs",
            eight,
            3.5,
            42,
            "NVLink 3, 12 lanes: 300 GB/s each way, 3.5 us per MiB; alpha 0.3 as TACCL measured on V100; ConnectX-6,"
            " 200 Gb/s: alpha 2.6, beta 42 us per MiB. Nominal rates",
        ),
        nvswitch("h100", "DGX H100: 8 H100 on NVSwitch, 8 NICs", eight, 2.33, 21, _H100_FIGURES),
        Machine(
            "mi250x",
            "MI250X node: 8 GCDs, Infinity Fabric, 4 NICs",
            in_pairs,
            _profile("mi250x 1MB", in_pairs, 0.3, [5.25, 10.5, 21], 42),
            "Infinity Fabric, 50 GB/s each way per link: 4 links in a module 5.25 us per MiB, 2 links 10.5, 1 link 21;"
            " alpha 0.3 assumed; Slingshot, 200 Gb/s: alpha 2.6, beta 42 us per MiB. Nominal rates."
            " Which dies are linked is as in RCCL's topology files of such nodes (topo_8p_90a.xml); of one kind each,"
            " 0-1, 0-6 and 0-2 are those that Pearson measured (arXiv 2302.14827), the others follow by symmetry",
            _MI250X,
        ),
    ]


MACHINES: Mapping[str, Machine] = MappingProxyType({made.name: made for made in _machines()})
"""The named machines."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {"dgxa100": "a100", "dgxh100": "h100", "mi250": "mi250x", "frontier": "mi250x"}
)
"""Other names of machines; names are compared without case, dashes, underscores and spaces."""
