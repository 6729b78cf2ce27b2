"""Topologies: links, neighbours, and what is refused."""

from __future__ import annotations

import math

import pytest

from commlib.errors import TopologyError
from commlib.topology import Link, Topology, fully_connected, nodes, ring, torus


@pytest.mark.parametrize(
    ("topology", "ranks", "links", "neighbours_of_0"),
    [
        (fully_connected(4), 4, 12, [1, 2, 3]),
        (ring(5), 5, 10, [1, 4]),
        (ring(2), 2, 2, [1]),
        (ring(1), 1, 0, []),
        (torus((3, 4)), 12, 48, [1, 3, 4, 8]),
        (torus((2, 2)), 4, 8, [1, 2]),
        (nodes(2, 4), 8, 32, [1, 2, 3, 4]),
    ],
)
def test_named_machines(topology, ranks, links, neighbours_of_0):
    assert (topology.ranks, len(topology.links)) == (ranks, links)
    assert topology.neighbours(0) == neighbours_of_0
    assert all(topology.has_link(0, peer) for peer in neighbours_of_0)


def test_costs_go_with_their_links():
    machine = nodes(2, 2, inside=Link(1e-6, 1e-9), between=Link(5e-6, 4e-9))
    assert machine.links[0, 1] == Link(1e-6, 1e-9)
    assert machine.links[0, 2] == Link(5e-6, 4e-9)
    assert not machine.has_link(0, 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Topology("t", 2, {(0, 2): Link()}), r"t: link 0 -> 2 does not join two of its 2 ranks"),
        (lambda: Topology("t", 2, {(1, 1): Link()}), r"link 1 -> 1 does not join"),
        (lambda: ring(0), "at least one rank"),
        (lambda: torus((0, 3)), "at least one rank"),
        (lambda: Link(-1.0), "0 or more"),
        (lambda: Link(0.0, math.nan), "0 or more"),
        (lambda: Link(math.inf), "0 or more"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(TopologyError, match=message):
        build()


def test_links_cannot_be_changed():
    with pytest.raises(TypeError):
        ring(3).links[0, 2] = Link()
