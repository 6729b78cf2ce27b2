"""Machines with TACCL's integer costs, for tests of the taccl engine: known optima."""

from __future__ import annotations

from synth_cases import MIB

from commlib.collectives import Collective
from commlib.demand import demand
from commlib.topology import Link, Resource, Topology, cost_table
from synth.discover import discover
from synth.problem import Problem
from synth.symmetry import Actions, Symmetry

TWO_LANES = ((0, 3), (0, 4), (1, 2), (1, 5), (2, 3), (4, 7), (5, 6), (6, 7))
ONE_LANE = ((0, 1), (0, 2), (1, 3), (2, 6), (3, 7), (4, 5), (4, 6), (5, 7))


def us(value: float) -> float:
    """Seconds per byte of a link that carries a chunk of 1 MiB in so many microseconds."""
    return value * 1e-6 / MIB


def ndv2(fast: float = 23, slow: float = 46, nodes: int = 1) -> Topology:
    """NDv2 nodes (hybrid cube mesh), all ranks of different nodes joined through one NIC per node."""
    links = {}
    for k in range(8 * nodes):
        base = k // 8 * 8
        for pairs, cost in ((TWO_LANES, fast), (ONE_LANE, slow)):
            for a, b in pairs:
                if k - base in (a, b):
                    links[k, base + (b if k - base == a else a)] = Link(0.0, us(cost))
        for other in range(8 * nodes):
            if other // 8 != k // 8:
                links[k, other] = Link(3e-6, us(105), (f"out {k // 8}", f"in {other // 8}"), pipelined=True)
    nics = {f"{way} {node}": Resource() for way in ("in", "out") for node in range(nodes if nodes > 1 else 0)}
    return Topology("ndv2", 8 * nodes, links, nics, tuple(rank // 8 for rank in range(8 * nodes)))


def dgx2(cost: float = 8, ranks: int = 16) -> Topology:
    """Ranks on one switch, a port out and a port in for each."""
    ports = {f"{way} {rank}": Resource() for way in ("in", "out") for rank in range(ranks)}
    pairs = [(a, b) for a in range(ranks) for b in range(ranks) if a != b]
    links = {(a, b): Link(0.0, us(cost), (f"out {a}", f"in {b}")) for a, b in pairs}
    return Topology("dgx2", ranks, links, ports)


def mesh(rows: int, columns: int, cost: float = 10) -> Topology:
    """A mesh of equal links."""
    links = {}
    for r in range(rows):
        for c in range(columns):
            for y, x in ((r, c + 1), (r + 1, c)):
                if y < rows and x < columns:
                    a, b = r * columns + c, y * columns + x
                    links[a, b] = links[b, a] = Link(0.0, us(cost))
    return Topology("mesh", rows * columns, links)


def posed(topology: Topology, collective: Collective, symmetric: bool = True) -> Problem:
    """A problem with the symmetry that is discovered, chunks of 1 MiB."""
    wanted = demand(collective, MIB)
    costs = cost_table(topology, wanted.sizes)
    group = discover(Actions(costs, wanted)) if symmetric else Symmetry.trivial(topology.ranks)
    return Problem(topology, wanted, costs, group)


def ticks(problem: Problem, microseconds: float) -> int:
    """Microseconds as ticks."""
    return round(microseconds * 1e-6 / problem.costs.tick)
