"""Reads the text of ``nvidia-smi topo -m`` as a node and its NICs.

GPUs are the ranks. NV# is a link of # NVLink lanes; where a GPU has more lanes to its peers together than any GPU has,
they go through an NVSwitch, and each link takes a port of either GPU. Another pair is linked over PCIe: the link takes
each GPU's PCIe port, and for SYS the interconnect of the NUMA nodes. A GPU's NIC is the nearest, of those the one with
the fewest GPUs. The text has no rates; those of ``rates`` are taken: 25 GB/s per lane, PCIe 4 x16, NICs of 200 Gb/s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from commlib.errors import FormatError, LimitError
from commlib.topology import rates
from commlib.topology.model import Link, Resource, Topology
from commlib.topology.node import Fabric, Node

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NVLINK = re.compile(r"NV([1-9][0-9]?)", re.ASCII)
_GPU = re.compile(r"GPU[0-9]+", re.ASCII)
_MAX_DEVICES = 256
_MOST_LANES = 18
"""NVLink lanes of one GPU, at most: H100 has 18."""
_NEAREST = list(rates.PATH_RATES)


@dataclass(frozen=True)
class _Table:
    """The matrix of a text: paths[row][column] between devices, and the NUMA node of each row where it is known."""

    file: str
    line: int
    devices: list[str]
    paths: dict[str, dict[str, str]]
    numa: dict[str, str]

    def fail(self, message: str) -> NoReturn:
        """Raise the FormatError for this table."""
        raise FormatError(f"{self.file}:{self.line}: {message}", file=self.file, line=self.line)

    def between(self, gpus: list[str], source: int, destination: int) -> str:
        """The path between two GPUs, the same both ways."""
        here, there = gpus[source], gpus[destination]
        path = self.paths[here][there]
        if self.paths[there][here] != path:
            self.fail(f"{here} to {there} is {path}, but {there} to {here} is {self.paths[there][here]}")
        return path


def is_nvidia_smi(text: str) -> bool:
    """Whether a text looks like that of ``nvidia-smi topo -m``: its first lines name a GPU column."""
    return any(_GPU.match(_ANSI.sub("", line).strip()) for line in text.splitlines()[:50])


def node_from_nvidia_smi(text: str, file: str) -> Node:
    """The node that the text describes.

    Raises:
        FormatError: no table, a row of another length, an unknown word, or a path that differs by direction.
        LimitError: more than 256 devices.
    """
    table = _table(text, file)
    gpus = [name for name in table.devices if _GPU.fullmatch(name)]
    paths = {(a, b): table.between(gpus, a, b) for a in range(len(gpus)) for b in range(len(gpus)) if a != b}
    lanes = {pair: int(path[2:]) for pair, path in paths.items() if path.startswith("NV")}
    total = [sum(count for (source, _), count in lanes.items() if source == rank) for rank in range(len(gpus))]
    switched = max(total, default=0) > _MOST_LANES
    resources: dict[str, Resource] = {}
    links = {}
    for pair, path in paths.items():
        if pair in lanes:
            ports = (f"port {pair[0]} out", f"port {pair[1]} in") if switched else ()
            resources |= {port: Resource() for port in ports}
            links[pair] = Link(rates.NVLINK_ALPHA, 1 / (lanes[pair] * rates.NVLINK_LANE), ports)
        else:
            links[pair] = _pcie_link(pair, path, [table.numa.get(gpu, "") for gpu in gpus], resources)
    topology = Topology(Path(file).stem, len(gpus), links, dict(sorted(resources.items())))
    return Node(topology, _fabric(table, gpus))


def _pcie_link(pair: tuple[int, int], path: str, numa: list[str], resources: dict[str, Resource]) -> Link:
    rate, port = rates.PATH_RATES[path], rates.PATH_RATES["PIX"]
    taken = {f"pci {pair[0]} up": Resource(1 / port), f"pci {pair[1]} down": Resource(1 / port)}
    if path in ("SYS", "SOC"):
        here, there = (numa[rank] for rank in pair)
        known = here and there and here != there
        taken[f"numa {here} to {there}" if known else "cpu interconnect"] = Resource(1 / rate)
    resources |= taken
    return Link(rates.PCIE_ALPHA, 1 / rate, tuple(taken))


def _fabric(table: _Table, gpus: list[str]) -> Fabric | None:
    nics = [name for name in table.devices if name not in gpus]
    if not nics:
        return None
    users, chosen = [0] * len(nics), []
    for gpu in gpus:
        order = [(_NEAREST.index(table.paths[gpu][nic]), users[n], n) for n, nic in enumerate(nics)]
        chosen.append(min(order)[2])
        users[chosen[-1]] += 1
    number_of = {nic: number for number, nic in enumerate(sorted(set(chosen)))}
    return Fabric(tuple(number_of[nic] for nic in chosen), rates.NIC_ALPHA, (1 / rates.NIC_RATE,) * len(number_of))


def _table(text: str, file: str) -> _Table:
    lines = [_ANSI.sub("", line) for line in text.splitlines()]
    start = next((n for n, line in enumerate(lines) if _GPU.match(line.strip())), None)
    if start is None:
        raise FormatError(f"{file}:1: no row of columns GPU0, GPU1, ...", file=file, line=1)
    header = re.split(r"\bCPU\b|\bNUMA\b", lines[start])[0].split()
    table = _Table(file, start + 1, header, {}, {})
    if len(header) > _MAX_DEVICES:
        raise LimitError(f"{file}:{start + 1}: more than {_MAX_DEVICES} devices", file=file, limit="max_devices")
    if len(set(header)) != len(header):
        table.fail("a device is there twice")
    column = _numa_column(lines[start])
    for number, line in enumerate(lines[start + 1 :], start + 2):
        if line.split()[:1] and line.split()[0] in header:
            _add_row(table, line, number, column)
    missing = [name for name in header if name not in table.paths and _GPU.fullmatch(name)]
    if missing:
        table.fail(f"the row of {missing[0][:40]} is missing")
    return table


def _numa_column(header: str) -> int | None:
    cells = [cell.strip() for cell in header.split("\t")]
    return cells.index("NUMA Affinity") if "NUMA Affinity" in cells else None


def _add_row(table: _Table, line: str, number: int, column: int | None) -> None:
    """Add the row of a device; ``column`` is the tab-separated cell of its NUMA node."""
    name, *words = line.split()
    paths = words[: len(table.devices)]

    def fail(message: str) -> NoReturn:
        raise FormatError(f"{table.file}:{number}: {name[:40]}: {message}", file=table.file, line=number)

    if name in table.paths:
        fail("is there twice")
    if len(paths) != len(table.devices):
        fail(f"has {len(paths)} paths for {len(table.devices)} devices")
    for peer, path in zip(table.devices, paths, strict=True):
        if (path == "X") != (peer == name):
            fail(f"to {peer[:40]}: {path[:40]!r} (X is a device to itself, and only that)")
        between_gpus = _GPU.fullmatch(name) and _GPU.fullmatch(peer) and _NVLINK.fullmatch(path)
        if path != "X" and path not in rates.PATH_RATES and not between_gpus:
            fail(f"to {peer[:40]}: {path[:40]!r} is not X, NV# or one of {', '.join(rates.PATH_RATES)}")
    table.paths[name] = dict(zip(table.devices, paths, strict=True))
    cells = [cell.strip() for cell in line.split("\t")]
    if column is not None and column < len(cells) and re.fullmatch(r"[0-9]{1,4}", cells[column], re.ASCII):
        table.numa[name] = cells[column]
