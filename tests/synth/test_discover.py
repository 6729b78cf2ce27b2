"""Symmetries that nobody stated: the orders of the groups that are found on machines and shapes."""

from __future__ import annotations

import time
from random import Random

import numpy as np
import pytest

from commlib.collectives import allgather, alltoall, broadcast, gather, reducescatter
from commlib.demand import demand
from commlib.topology import Topology, cost_table, named
from synth.discover import discover
from synth.symmetry import Actions, Symmetry

ORDERS = {
    "ndv2": 4,  # its whole automorphism group
    "dgx2": 16,
    "mi250x": 8,
    "ring:9": 9,
    "line:8": 2,
    "line:7": 1,
    "star:5": 1,
    "mesh:2x4": 4,
    "mesh:3x3": 1,  # the middle stays where it is
    "mesh:4x4": 4,
    "torus:3x5": 15,
    "hypercube:5": 32,
    "fully_connected:6": 6,
    "fat_tree:4": 16,
    "dragonfly:2x1x1": 2,
}


def search(topology: Topology, make=allgather) -> tuple[Actions, Symmetry]:
    wanted = demand(make(topology.ranks), 1 << 20)
    actions = Actions(cost_table(topology, wanted.sizes), wanted)
    return actions, discover(actions)


def renamed(topology: Topology, seed: int) -> Topology:
    """The same with its ranks in another order."""
    place = list(range(topology.ranks))
    Random(seed).shuffle(place)
    links = {(place[a], place[b]): link for (a, b), link in topology.links.items()}
    return Topology(topology.name, topology.ranks, links, topology.resources)


@pytest.mark.parametrize(("text", "order"), ORDERS.items())
def test_orders(text, order):
    actions, found = search(named(text))
    assert found.order == order
    for image in found.images[1:]:
        assert actions.keeps(image)
        assert actions.is_free(image)


@pytest.mark.parametrize(
    ("text", "order"),
    [("ndv2", 4), ("mi250x", 8), ("ring:9", 9), ("mesh:2x4", 4), ("hypercube:4", 16), ("torus:3x4", 12), ("line:8", 2)],
)
def test_ranks_in_any_order(text, order):
    """No likely permutation helps here: automorphisms are found in the graph."""
    for seed in range(3):
        assert search(renamed(named(text), seed))[1].order == order


@pytest.mark.parametrize(("nodes", "order"), [(2, 2), (4, 4), (8, 8)])
def test_nodes_of_one_nic_can_only_change_places(nodes, order):
    assert search(named("ndv2", nodes=nodes))[1].order == order


def test_the_collective_counts():
    ring = named("ring:6")
    assert search(ring, alltoall)[1].order == 6
    assert search(ring, reducescatter)[1].order == 6
    assert search(ring, broadcast)[1].order == 1
    assert search(ring, gather)[1].order == 1


def test_searches_are_deterministic():
    topology = renamed(named("hypercube:4"), 1)
    first, second = (search(topology)[1].images for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("text", "order", "limit"), [("torus:8x8x8", 512, 3.0), ("torus:24x24", 576, 5.0), ("nodes:32x8", 256, 3.0)]
)
def test_large_ones_are_quick(text, order, limit):
    topology = named(text)
    wanted = demand(allgather(topology.ranks), 1 << 20)
    actions = Actions(cost_table(topology, wanted.sizes), wanted)
    began = time.process_time()
    assert discover(actions).order == order
    assert time.process_time() - began < limit
