"""Regular topologies: rings, lines, meshes, tori, hypercubes, stars, fully connected ranks and nodes of ranks.

Links of a shape cost ``DEFAULT_LINK`` unless another is given: 10 us for 1 MiB, some 105 GB/s, with no latency.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product

from commlib.errors import TopologyError
from commlib.topology.limits import check_size
from commlib.topology.model import Link, Topology

DEFAULT_LINK = Link(alpha=0.0, beta=10e-6 / (1 << 20))
"""10 us for 1 MiB and no latency: what a link of a shape costs where nobody says otherwise."""


def _symmetric(name: str, ranks: int, pairs: Iterable[tuple[int, int]], link: Link) -> Topology:
    links = {pair: link for a, b in pairs if a != b for pair in ((a, b), (b, a))}
    return Topology(name, ranks, links)


def fully_connected(ranks: int, link: Link = DEFAULT_LINK) -> Topology:
    """Every rank linked to every other: ranks x (ranks - 1) links."""
    check_size(f"fully_connected {ranks}", ranks, ranks * (ranks - 1))
    return _symmetric("fully_connected", ranks, ((a, b) for a in range(ranks) for b in range(a)), link)


def ring(ranks: int, link: Link = DEFAULT_LINK) -> Topology:
    """Rank r linked to its two neighbours r - 1 and r + 1, cyclically."""
    check_size(f"ring {ranks}", ranks)
    return _symmetric("ring", ranks, ((r, (r + 1) % ranks) for r in range(ranks)), link)


def line(ranks: int, link: Link = DEFAULT_LINK) -> Topology:
    """Rank r linked to r - 1 and r + 1 where they exist."""
    check_size(f"line {ranks}", ranks)
    return _symmetric("line", ranks, ((r, r + 1) for r in range(ranks - 1)), link)


def star(ranks: int, link: Link = DEFAULT_LINK) -> Topology:
    """Rank 0 is the hub: linked to each of the others, which are linked to it only."""
    check_size(f"star {ranks}", ranks)
    return _symmetric("star", ranks, ((0, r) for r in range(1, ranks)), link)


def hypercube(dimensions: int, link: Link = DEFAULT_LINK) -> Topology:
    """2**dimensions ranks; those whose numbers differ in one bit are linked."""
    if not 0 <= dimensions <= 16:
        raise TopologyError(f"a hypercube has 0 to 16 dimensions, not {dimensions}")
    ranks = 1 << dimensions
    check_size(f"hypercube {dimensions}", ranks)
    pairs = ((rank, rank ^ (1 << bit)) for rank in range(ranks) for bit in range(dimensions))
    return _symmetric(f"hypercube {dimensions}", ranks, pairs, link)


def torus(shape: Sequence[int], link: Link = DEFAULT_LINK) -> Topology:
    """A torus of any number of dimensions; ranks count in row-major order."""
    return _grid("torus", shape, link, wraps=True)


def mesh(shape: Sequence[int], link: Link = DEFAULT_LINK) -> Topology:
    """A grid of any number of dimensions without wrap-around; ranks count in row-major order."""
    return _grid("mesh", shape, link, wraps=False)


def _grid(kind: str, shape: Sequence[int], link: Link, wraps: bool) -> Topology:
    name = f"{kind} " + "x".join(map(str, shape))
    if any(size < 0 for size in shape):
        raise TopologyError(f"{name}: sizes are not negative")
    if len(shape) > 12:
        raise TopologyError(f"{name}: a {kind} has at most 12 dimensions, not {len(shape)}")
    check_size(name, math.prod(shape))
    cells = list(product(*(range(size) for size in shape)))
    rank_of = {cell: rank for rank, cell in enumerate(cells)}
    pairs = (
        (rank_of[cell], rank_of[(*cell[:axis], (cell[axis] + 1) % shape[axis], *cell[axis + 1 :])])
        for cell in cells
        for axis in range(len(shape))
        if wraps or cell[axis] + 1 < shape[axis]
    )
    return _symmetric(name, len(cells), pairs, link)


def nodes(count: int, local: int, inside: Link = DEFAULT_LINK, between: Link = DEFAULT_LINK) -> Topology:
    """``count`` nodes of ``local`` ranks: all linked inside a node, equal local ranks linked between nodes."""
    name, ranks = f"{count} nodes x {local}", count * local
    check_size(name, ranks, ranks * (local + count - 2))
    links = {(a, b): inside for a in range(ranks) for b in _block(a // local * local, local) if a != b}
    links |= {(a, b): between for a in range(ranks) for b in range(a % local, ranks, local) if a != b}
    return Topology(name, ranks, links, node_of=tuple(rank // local for rank in range(ranks)))


def _block(start: int, length: int) -> range:
    return range(start, start + length)
