"""Problems for the tests of synth: small topologies with known optima, and random ones."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from commlib.collectives import Collective
from commlib.demand import demand
from commlib.topology import Link, Resource, Topology, cost_table
from synth.problem import Problem
from synth.symmetry import Actions, Symmetry, likely

MIB = float(1 << 20)
TEN = Link(0.0, 10e-6 / MIB)
"""A link that carries a chunk of 1 MiB in 10 us."""


def problem(topology: Topology, collective: Collective, *, symmetric: bool = True, chunk: float = MIB) -> Problem:
    """The problem of a collective on a whole topology, with the symmetry that is easily found."""
    wanted = demand(collective, chunk)
    costs = cost_table(topology, wanted.sizes)
    group = Symmetry.trivial(topology.ranks)
    if symmetric:
        group, _ = Actions(costs, wanted).group(likely(topology.ranks))
    return Problem(topology, wanted, costs, group)


def random_topology(seed: int, ranks: int) -> Topology:
    """A strongly connected digraph with links of different cost, pipelined ones, and shared ports.

    Some take no time for their bytes, so that some transfers hold a pipelined link, or the bus, for no time at all.
    """
    chance = random.Random(seed)
    ports = {f"port {r}": Resource() for r in range(ranks)} | {"bus": Resource(chance.choice([0, 2, 2]) * 1e-6 / MIB)}
    order = chance.sample(range(ranks), ranks)
    pairs = {(order[k], order[(k + 1) % ranks]) for k in range(ranks) if ranks > 1}
    pairs |= {(a, b) for a in range(ranks) for b in range(ranks) if a != b and chance.random() < 0.4}

    def link(source: int) -> Link:
        shared = [name for name in (f"port {source}", "bus") if chance.random() < 0.3]
        alpha, beta = chance.choice([0, 1, 3]) * 1e-6, chance.randint(0, 9) * 1e-6 / MIB
        return Link(alpha, beta, tuple(shared), chance.random() < 0.3)

    return Topology(f"random {seed}", ranks, {pair: link(pair[0]) for pair in sorted(pairs)}, ports)


def random_topologies(low: int = 2, high: int = 6) -> st.SearchStrategy[Topology]:
    """Random strongly connected topologies of ``low`` to ``high`` ranks."""
    return st.builds(random_topology, st.integers(0, 10**6), st.integers(low, high))


def microseconds(problem: Problem, ticks: float) -> float:
    """Ticks as microseconds, rounded to a picosecond."""
    return round(problem.costs.seconds(ticks) * 1e6, 6)
