"""Pictures of topologies in text: a matrix of link kinds where it fits, a summary of the rest."""

from __future__ import annotations

import re
from collections import Counter

from commlib.topology.model import Link, Topology

_WIDEST = 32
"""Ranks of the largest matrix."""
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_MOST_LINES = 12
_NUMBER = re.compile(r"\b[0-9a-f:.]*[0-9][0-9a-f:.]*")
"""Decimal numbers, and the bus ids of PCI devices."""
Kind = tuple[float, float, bool]
"""What links of one kind have in common: alpha, beta, pipelined."""


def draw(topology: Topology) -> str:
    """A picture for people: ranks, nodes, a matrix of link kinds (rows send, columns receive), their costs, and what
    links share. Of a topology of more than 32 ranks the matrix shows its first node, if that is small. O(links).
    """
    kinds = _kinds(topology)
    letters = {kind: _LETTERS[min(place, len(_LETTERS) - 1)] for place, kind in enumerate(kinds)}
    parts = [_title(topology), _matrix(topology, letters), _legend(topology, kinds, letters), _shared(topology)]
    return "\n".join(line for part in parts for line in part) + "\n"


def _title(topology: Topology) -> list[str]:
    degrees = [len(topology.neighbours(rank)) for rank in range(topology.ranks)]
    low, high = min(degrees), max(degrees)
    degree = f"{low}" if low == high else f"{low} to {high}"
    nodes = f"{topology.nodes} nodes, " if topology.nodes > 1 else ""
    counts = f"{_plural(topology.ranks, 'rank')}, {nodes}{_plural(len(topology.links), 'link')}"
    return [f"{_printable(topology.name)}: {counts}, out-degree {degree}"]


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _kind(link: Link) -> Kind:
    return link.alpha, link.beta, link.pipelined


def _kinds(topology: Topology) -> dict[Kind, int]:
    """The kinds of link, fastest first for a chunk of the unit's size, and how many there are of each."""
    counts = Counter(map(_kind, topology.links.values()))
    size = topology.unit.chunk_bytes
    return {kind: counts[kind] for kind in sorted(counts, key=lambda kind: (kind[0] + size * kind[1], kind))}


def _matrix(topology: Topology, letters: dict[Kind, str]) -> list[str]:
    ranks = list(range(topology.ranks))
    if len(ranks) > _WIDEST:
        ranks = [rank for rank in ranks if topology.node_of[rank] == topology.node_of[0]]
        if len(ranks) > _WIDEST:
            return []
    width = len(str(ranks[-1]))
    lines = ["", " " * width + _row(topology, ranks, [str(rank).rjust(width) for rank in ranks])]
    for place, source in enumerate(ranks):
        if place and topology.node_of[source] != topology.node_of[ranks[place - 1]]:
            lines.append("-" * len(lines[1]))
        cells = [_cell(topology, source, target, letters).rjust(width) for target in ranks]
        lines.append(str(source).rjust(width) + _row(topology, ranks, cells))
    if len(ranks) < topology.ranks:
        lines.append(f"(node {topology.node_of[0]} of {topology.nodes})")
    return lines


def _cell(topology: Topology, source: int, target: int, letters: dict[Kind, str]) -> str:
    if source == target:
        return "\\"
    link = topology.links.get((source, target))
    return "." if link is None else letters[_kind(link)]


def _row(topology: Topology, ranks: list[int], cells: list[str]) -> str:
    """Cells with a bar where a node ends."""
    text = ""
    for place, cell in enumerate(cells):
        ends = place and topology.node_of[ranks[place]] != topology.node_of[ranks[place - 1]]
        text += (" | " if ends else " ") + cell
    return text


def _legend(topology: Topology, kinds: dict[Kind, int], letters: dict[Kind, str]) -> list[str]:
    size, unit = topology.unit.chunk_bytes, topology.unit
    lines = [f"times in {_printable(unit.name)} for {_bytes(size)}:"] if kinds else []
    for (alpha, beta, pipelined), count in list(kinds.items())[:_MOST_LINES]:
        price = f"alpha {alpha / unit.seconds:.4g} + {size * beta / unit.seconds:.4g}"
        rate = f"{1e-9 / beta:.4g} GB/s" if beta else "no limit of rate"
        kind = letters[alpha, beta, pipelined]
        lines.append(f"  {kind}  {price}  ({rate}{', pipelined' if pipelined else ''})  {_plural(count, 'link')}")
    if len(kinds) > _MOST_LINES:
        lines.append(f"  ... and {len(kinds) - _MOST_LINES} further kinds")
    return ["", *lines] if lines else []


def _bytes(size: float) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size / unit:g} {name}"
    return f"{size:g} bytes"


def _shared(topology: Topology) -> list[str]:
    """Shared resources, those whose names differ in numbers only on one line."""
    users = Counter(name for link in topology.links.values() for name in link.resources)
    groups: dict[str, list[int]] = {}
    for name in topology.resources:
        groups.setdefault(_NUMBER.sub("#", _printable(name)), []).append(users[name])
    lines = []
    for name, counts in list(groups.items())[:_MOST_LINES]:
        low, high = min(counts), max(counts)
        each = f"{high} links" if low == high else f"{low} to {high} links"
        lines.append(f"  {name}: {len(counts)}, taken by {each}{' each' if len(counts) > 1 else ''}")
    if len(groups) > _MOST_LINES:
        lines.append(f"  ... and {len(groups) - _MOST_LINES} further kinds")
    return ["", "shared, one transfer at a time:", *lines] if lines else []
