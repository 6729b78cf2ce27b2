"""Regular topologies: rings, tori, fully connected ranks and nodes of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from commlib.topology.model import Link, Topology


def _symmetric(name: str, ranks: int, pairs: Iterable[tuple[int, int]], link: Link) -> Topology:
    links = {pair: link for a, b in pairs if a != b for pair in ((a, b), (b, a))}
    return Topology(name, ranks, links)


def fully_connected(ranks: int, link: Link = Link()) -> Topology:
    """Every rank linked to every other."""
    return _symmetric("fully_connected", ranks, ((a, b) for a in range(ranks) for b in range(a)), link)


def ring(ranks: int, link: Link = Link()) -> Topology:
    """Rank r linked to its two neighbours r - 1 and r + 1, cyclically."""
    return _symmetric("ring", ranks, ((r, (r + 1) % ranks) for r in range(ranks)), link)


def torus(shape: Sequence[int], link: Link = Link()) -> Topology:
    """A torus of any number of dimensions; ranks count in row-major order."""
    cells = list(product(*(range(size) for size in shape)))
    rank_of = {cell: rank for rank, cell in enumerate(cells)}
    pairs = (
        (rank_of[cell], rank_of[(*cell[:axis], (cell[axis] + 1) % shape[axis], *cell[axis + 1 :])])
        for cell in cells
        for axis in range(len(shape))
    )
    return _symmetric("torus " + "x".join(map(str, shape)), len(cells), pairs, link)


def nodes(count: int, local: int, inside: Link = Link(), between: Link = Link()) -> Topology:
    """``count`` nodes of ``local`` ranks: all linked inside a node, equal local ranks linked between nodes."""
    ranks = count * local
    links = {
        (a, b): inside if a // local == b // local else between
        for a in range(ranks)
        for b in range(ranks)
        if a != b and (a // local == b // local or a % local == b % local)
    }
    return Topology(f"{count} nodes x {local}", ranks, links)
