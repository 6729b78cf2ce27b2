"""The parts of the bounds against other computations of the same: flows, cuts, distances, chunk sizes."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from bound_cases import random_topology

from commlib.bounds import allreduce_bounds, bounds, fluid_bounds
from commlib.bounds.cover import cheapest, complete
from commlib.bounds.distances import FAR, graph, path
from commlib.bounds.maxflow import Network
from commlib.bounds.work import uses
from commlib.collectives import allgather, collective
from commlib.demand import chunk_bytes, demand
from commlib.errors import SpecError
from commlib.topology import Link, Topology
from commlib.topology.costs import cost_table


@pytest.mark.parametrize("seed", range(30))
def test_maximum_flow_agrees_with_networkx(seed):
    chance = random.Random(seed)
    nodes = chance.randint(2, 12)
    theirs, ours = nx.DiGraph(), Network(nodes)
    theirs.add_nodes_from(range(nodes))
    for a, b in itertools.permutations(range(nodes), 2):
        if chance.random() < 0.4:
            capacity = chance.choice([1, 3, 10, 1 << 70])
            theirs.add_edge(a, b, capacity=capacity)
            ours.arc(a, b, capacity)
    value = nx.maximum_flow_value(theirs, 0, nodes - 1)
    assert ours.max_flow(0, nodes - 1) == value
    near = ours.reachable(0)
    assert near[0]
    assert not near[-1]
    assert sum(data["capacity"] for a, b, data in theirs.edges(data=True) if near[a] and not near[b]) == value


@pytest.mark.parametrize("seed", range(25))
def test_the_cut_of_an_allgather_is_the_best_of_all_subsets(seed):
    chance = random.Random(seed)
    ranks = chance.randint(2, 7)
    pairs = {(k, (k + 1) % ranks) for k in range(ranks)}
    pairs |= {pair for pair in itertools.permutations(range(ranks), 2) if chance.random() < 0.4}
    beta = {pair: chance.choice([1, 2, 3, 7, 20]) for pair in sorted(pairs)}
    topology = Topology("any", ranks, {pair: Link(0, float(cost)) for pair, cost in beta.items()})
    best = Fraction(0)
    for count in range(1, ranks):
        for near in itertools.combinations(range(ranks), count):
            out = sum(Fraction(1, cost) for (a, b), cost in beta.items() if a in near and b not in near)
            best = max(best, count / out)
    cut = next(each for each in fluid_bounds(topology, allgather(ranks), ranks) if each.kind == "cut")
    assert cut.seconds == pytest.approx(float(best), rel=1e-7)
    assert cut.seconds <= float(best)


@pytest.mark.parametrize("seed", range(20))
def test_distances_agree_with_networkx(seed):
    topology = random_topology(random.Random(seed), 6)
    costs = cost_table(topology, [1.0])
    theirs = nx.DiGraph()
    theirs.add_nodes_from(range(6))
    kept = np.array([random.Random(seed + e).random() < 0.8 for e in range(costs.links)])
    for e in np.flatnonzero(kept).tolist():
        theirs.add_edge(int(costs.source[e]), int(costs.target[e]), weight=int(costs.latency[e, 0]))
    rows = graph(costs, costs.latency[:, 0], kept).from_ranks(np.arange(6))
    back = graph(costs, costs.latency[:, 0], kept, backwards=True).from_ranks(np.arange(6))
    for source in range(6):
        known = nx.single_source_dijkstra_path_length(theirs, source)
        assert rows[source].tolist() == [known.get(rank, FAR) for rank in range(6)]
        for target in set(known) - {source}:
            way = path(costs, 0, kept, rows[source], source, target)
            assert nx.path_weight(theirs, way, "weight") == known[target]
    assert np.array_equal(back, rows.T)


@pytest.mark.parametrize("seed", range(20))
def test_covers_cover_every_link(seed):
    chance = random.Random(seed)
    costs = cost_table(random_topology(chance, 6), [1.0])
    crossing = np.flatnonzero(costs.target < 3)
    place, use = uses(costs, crossing)
    resource = costs.use_resource[use]
    some = [int(each) for each in np.unique(resource) if chance.random() < 0.3]
    for cover in (
        cheapest(place, resource, costs.use_ticks[use, 0], costs.links),
        complete(some, place, resource, costs.links),
    ):
        assert set(place[np.isin(resource, cover)].tolist()) == set(range(len(crossing)))
        assert len(set(cover)) == len(cover)


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        ("allgather", 4),
        ("reducescatter", 4),
        ("alltoall", 4),
        ("gather", 4),
        ("scatter", 4),
        ("allreduce", 1),
        ("broadcast", 1),
        ("reduce", 1),
        ("sendrecv", 1),
        ("alltonext", 1),
    ],
)
def test_chunk_bytes_counts_as_nccl_tests_does(name, shards):
    assert chunk_bytes(collective(name, 4, 2), 800.0) == 800 / shards / 2


def test_a_size_is_a_number_of_bytes():
    with pytest.raises(SpecError, match="0 bytes or more"):
        chunk_bytes(allgather(4), -1.0)
    with pytest.raises(SpecError, match="0 bytes or more"):
        chunk_bytes(allgather(4), float("nan"))


@pytest.mark.parametrize("name", ["allgather", "allreduce", "reduce"])
def test_one_rank_has_no_path(name):
    costs = cost_table(Topology("alone", 1, {}), [1.0])
    wanted = collective(name, 1)
    best = (allreduce_bounds(costs, wanted) if name == "allreduce" else bounds(costs, demand(wanted, 1.0)))[0]
    assert best.ticks == 0
    assert best.certificate.text() == "nothing must move from one rank to another"
