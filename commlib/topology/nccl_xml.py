"""Reads NCCL's topology XML (as NCCL_TOPO_DUMP_FILE writes it; RCCL's too) as a node and its NICs.

GPUs are the ranks, in the order of their ``rank`` (without it ``dev``). A pair joined by NVLinks or xGMI links has a
link of as many lanes; GPUs at NVSwitches have a link to each other, which takes a port of each. Any other pair is
linked over PCIe: the link takes every PCIe hop of its path and the interconnect of the CPUs, each at its own rate.
A GPU's NIC is the nearest (same PCIe switch, then same CPU), of those the one with the fewest GPUs; NICs slower than
half the fastest are for management and left out. Rates and latencies are those of ``rates``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from commlib.errors import LimitError
from commlib.topology import rates
from commlib.topology.model import Link, Resource, Topology
from commlib.topology.node import Fabric, Node
from commlib.topology.xml_tree import Element

_NVSWITCH = "0x068000"
_MAX_GPUS = 256
_DEFAULT_SPEED = 10_000
"""Mbit/s of a NIC that states none, as NCCL assumes."""
_UNSET = -1


@dataclass(frozen=True)
class _Hop:
    """A <pci>: what it is called and the rate of the cable between it and its parent."""

    name: str
    rate: float


@dataclass(frozen=True)
class _Place:
    """Where a device is: its hops from itself up to the CPU, and the CPU's number."""

    element: Element
    hops: tuple[_Hop, ...]
    cpu: int


@dataclass(frozen=True)
class _System:
    """What a file says: its CPUs, GPUs in rank order, and NICs in the order of the file."""

    cpus: tuple[Element, ...]
    gpus: tuple[_Place, ...]
    nics: tuple[_Place, ...]


def node_from_nccl(root: Element, file: str) -> Node:
    """The node that a <system> describes.

    Raises:
        FormatError: no GPU, two of one rank or bus id, or a wrong attribute; with the line.
        LimitError: more than 256 GPUs.
    """
    system = _system(root, file)
    links: dict[tuple[int, int], Link] = {}
    resources: dict[str, Resource] = {}
    _add_nvlinks(system, links, resources)
    for source in range(len(system.gpus)):
        for destination in range(len(system.gpus)):
            if source != destination and (source, destination) not in links:
                links[source, destination] = _pcie_link(system, source, destination, resources)
    topology = Topology(Path(file).stem, len(system.gpus), links, dict(sorted(resources.items())))
    return Node(topology, _fabric(system))


def _system(root: Element, file: str) -> _System:
    cpus = tuple(child for child in root.children if child.tag == "cpu")
    places: dict[str, list[_Place]] = {"gpu": [], "net": []}
    for number, cpu in enumerate(cpus):
        _walk(cpu, (), number, places)
    gpus = places["gpu"]
    if not gpus:
        root.fail("there is no <gpu>")
    if len(gpus) > _MAX_GPUS:
        message = f"{file}:1: more than {_MAX_GPUS} GPUs in one machine"
        raise LimitError(message, file=file, line=1, limit="max_gpus")
    by_rank: dict[int, _Place] = {}
    for place in gpus:
        rank = _rank(place.element)
        if rank in by_rank:
            place.element.fail(f"rank {rank} is there twice", rank=rank)
        by_rank[rank] = place
    return _System(cpus, tuple(by_rank[rank] for rank in sorted(by_rank)), tuple(places["net"]))


def _rank(gpu: Element) -> int:
    rank = gpu.number("rank", _UNSET, 1 << 24, _UNSET)
    return gpu.number("dev", 0, 1 << 24) if rank == _UNSET else rank


def _walk(element: Element, hops: tuple[_Hop, ...], cpu: int, places: dict[str, list[_Place]]) -> None:
    """Collect GPUs and NICs below an element; elements of other kinds are passed over, as NCCL does."""
    for child in element.children:
        if child.tag == "pci":
            width = child.number("link_width", 0, 64, 0)
            rate = rates.pcie_rate(child.attributes.get("link_speed", ""), width)
            _walk(child, (_Hop(child.attribute("busid").lower(), rate), *hops), cpu, places)
        elif child.tag == "nic":
            _walk(child, hops, cpu, places)
        elif child.tag == "gpu" and not hops:
            child.fail("<gpu> is not inside a <pci>")
        elif child.tag in places:
            places[child.tag].append(_Place(child, hops, cpu))


def _add_nvlinks(system: _System, links: dict[tuple[int, int], Link], resources: dict[str, Resource]) -> None:
    """Add direct links and those through NVSwitches."""
    rank_of: dict[str, int] = {}
    for rank, place in enumerate(system.gpus):
        if place.hops[0].name in rank_of:
            place.element.fail(f"busid {place.hops[0].name[:40]} is there twice", rank=rank)
        rank_of[place.hops[0].name] = rank
    switched: dict[int, float] = {}
    for rank, place in enumerate(system.gpus):
        direct: dict[int, float] = {}
        for cable in place.element.children:
            if cable.tag in ("nvlink", "xgmi"):
                rate = _lane_rate(cable) * cable.number("count", 1, 64, 1)
                peer = rank_of.get(cable.attributes.get("target", "").lower())
                if cable.attributes.get("tclass") == _NVSWITCH:
                    switched[rank] = switched.get(rank, 0.0) + rate
                elif peer is not None and peer != rank:
                    direct[peer] = direct.get(peer, 0.0) + rate
        links |= {(rank, peer): Link(rates.NVLINK_ALPHA, 1 / rate) for peer, rate in direct.items()}
    _add_switched(switched, links, resources)


def _lane_rate(cable: Element) -> float:
    return rates.XGMI_LANE if cable.tag == "xgmi" else rates.NVLINK_LANE


def _add_switched(
    switched: dict[int, float], links: dict[tuple[int, int], Link], resources: dict[str, Resource]
) -> None:
    """All pairs of GPUs at NVSwitches, at the rate of the slower."""
    if len(switched) < 2:
        return
    for rank, rate in switched.items():
        resources |= {f"port {rank} out": Resource(1 / rate), f"port {rank} in": Resource(1 / rate)}
    for source, out in switched.items():
        for destination, into in switched.items():
            if source != destination and (source, destination) not in links:
                ports = (f"port {source} out", f"port {destination} in")
                links[source, destination] = Link(rates.NVLINK_ALPHA, 1 / min(out, into), ports)


def _pcie_link(system: _System, source: int, destination: int, resources: dict[str, Resource]) -> Link:
    """The link over PCIe and CPUs; its resources are added."""
    here, there = system.gpus[source], system.gpus[destination]
    above = set(here.hops) & set(there.hops)
    taken = {f"pci {hop.name} up": hop.rate for hop in here.hops if hop not in above}
    taken |= {f"pci {hop.name} down": hop.rate for hop in there.hops if hop not in above}
    if here.cpu != there.cpu:
        taken[f"cpu {here.cpu} to {there.cpu}"] = min(_cpu_rate(system.cpus[cpu]) for cpu in (here.cpu, there.cpu))
    resources |= {name: Resource(1 / rate) for name, rate in taken.items()}
    return Link(rates.PCIE_ALPHA, 1 / min(taken.values()), tuple(taken))


def _cpu_rate(cpu: Element) -> float:
    model = cpu.number("modelid", 0, 1 << 16, 0)
    return rates.cpu_rate(cpu.attributes.get("arch", ""), cpu.attributes.get("vendor", ""), model)


def _fabric(system: _System) -> Fabric | None:
    """The NIC of each GPU, or None where there are no NICs."""
    stated = [place.element.number("speed", _UNSET, 10**8, _UNSET) for place in system.nics]
    speeds = [speed if speed > 0 else _DEFAULT_SPEED for speed in stated]
    usable = [number for number, speed in enumerate(speeds) if 2 * speed >= max(speeds)]
    if not usable:
        return None
    users, chosen = [0] * len(speeds), []
    for gpu in system.gpus:
        order = [(_distance(gpu, system.nics[number]), users[number], number) for number in usable]
        chosen.append(min(order)[2])
        users[chosen[-1]] += 1
    number_of = {nic: number for number, nic in enumerate(sorted(set(chosen)))}
    beta = tuple(8e-6 / speeds[nic] for nic in sorted(set(chosen)))
    return Fabric(tuple(number_of[nic] for nic in chosen), rates.NIC_ALPHA, beta)


def _distance(gpu: _Place, nic: _Place) -> int:
    """The number of PCIe hops between them; more over other CPUs."""
    if gpu.cpu != nic.cpu:
        return 1000 + len(gpu.hops) + len(nic.hops)
    shared = len(set(gpu.hops) & set(nic.hops))
    return (0 if shared else 100) + len(gpu.hops) + len(nic.hops) - 2 * shared
