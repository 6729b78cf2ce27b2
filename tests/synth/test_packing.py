"""Cuts and tree packings: exact values, Edmonds' theorem on random graphs, switches, symmetry."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import MIB, TEN, microseconds, problem, random_topologies

from commlib.collectives import allgather, broadcast
from commlib.topology import Link, Resource, Topology, fully_connected, machine, ring, torus
from synth.errors import SynthesisError
from synth.network import network
from synth.packing import pack_trees, supply_of
from synth.throughput import least_time, tightest_cut, whole_capacity

NDV2 = machine("ndv2").topology(cost="taccl")
DGX2 = machine("dgx2").topology(cost="taccl")


def switch(ranks, fast=1):
    """Ranks on a switch, each with one way out and one way in; ``fast`` links of other cost do not go through it."""
    ports = {f"{way} {rank}": Resource() for way in ("out", "in") for rank in range(ranks)}
    links = {(a, b): Link(0.0, TEN.beta, (f"out {a}", f"in {b}")) for a in range(ranks) for b in range(ranks) if a != b}
    for rank in range(fast):
        links[rank, (rank + 1) % ranks] = Link(0.0, 0.5 * TEN.beta)
    return Topology(f"switch of {ranks}", ranks, links, ports)


def bare(topology):
    """The same links, sharing nothing."""
    links = {pair: replace(link, resources=()) for pair, link in topology.links.items()}
    return Topology(topology.name, topology.ranks, links)


def brute_cut(posed):
    """The largest (items that must leave) x 1 / (rate of the links out) over all sets of ranks."""
    ranks, busy, supply = posed.costs.ranks, posed.costs.busy[:, 0].tolist(), supply_of(posed)
    worst = Fraction(0)
    for size in range(1, ranks):
        for inside in itertools.combinations(range(ranks), size):
            ticks = [t for (a, b), t in zip(posed.ends, busy, strict=True) if a in inside and b not in inside]
            if all(ticks):  # else a link out takes any number at once
                rate = sum(Fraction(1, t) for t in ticks)
                worst = max(worst, int(supply[list(inside)].sum()) / rate)
    return worst


def loads_of(posed, routes):
    """The ticks for which every resource is taken by all items, images included, by resource number."""
    loads = np.zeros(len(posed.costs.resource_names), dtype=np.int64)
    for route in routes.values():
        for image in posed.symmetry.images:
            for link in posed.actions.links(image)[list(route)]:
                uses = slice(posed.costs.use_start[link], posed.costs.use_start[link + 1])
                loads[posed.costs.use_resource[uses]] += posed.costs.use_ticks[uses, 0]
    return loads


def assert_spanning(posed, routes):
    """Every representative has a tree that reaches each rank once, from ranks that it reached before."""
    assert set(routes) == set(posed.representatives)
    for item, route in routes.items():
        reached = [posed.demand.items[item].origin]
        for link in route:
            source, target = posed.ends[link]
            assert source in reached
            assert target not in reached
            reached.append(target)
        assert len(reached) == posed.costs.ranks


@pytest.mark.parametrize(
    ("topology", "chunks", "time"),
    [
        (ring(8, TEN), 2, 70),
        (torus((4, 4), TEN), 4, 150),
        (torus((4, 4, 4), TEN), 2, 210),
        (fully_connected(5, TEN), 1, 10),
        (NDV2, 6, 322),
        (NDV2, 12, 644),
        (DGX2, 1, 120),
        (switch(6, fast=0), 1, 50),
    ],
)
@pytest.mark.parametrize("symmetric", [False, True])
def test_trees_take_no_longer_than_the_tightest_cut(topology, chunks, time, symmetric):
    if topology.ranks > 16 and not symmetric:
        pytest.skip("takes seconds")
    posed = problem(topology, allgather(topology.ranks, chunks), symmetric=symmetric)
    flow = network(posed)
    cut = tightest_cut(flow, supply_of(posed))
    assert microseconds(posed, cut.ticks.numerator / cut.ticks.denominator) == time
    assert cut.ticks.denominator == 1
    routes = pack_trees(flow, int(cut.ticks))
    assert_spanning(posed, routes)
    assert loads_of(posed, routes).max() <= cut.ticks


def test_one_ndv2_takes_53_and_two_thirds():
    posed = problem(NDV2, allgather(8))
    cut = tightest_cut(network(posed), supply_of(posed))
    assert cut.ticks * Fraction(round(posed.costs.tick * 1e12), 10**6) == Fraction(161, 3)
    assert (cut.items, len(cut.ranks)) == (7, 7)
    assert microseconds(posed, least_time(network(posed), supply_of(posed), 1)) == 69


@settings(max_examples=60, deadline=None)
@given(random_topologies(3, 7), st.integers(1, 4), st.booleans())
def test_edmonds_theorem_on_random_graphs(topology, chunks, one_root):
    collective = broadcast(topology.ranks, chunks) if one_root else allgather(topology.ranks, chunks)
    posed = problem(bare(topology), collective, symmetric=False)
    flow, supply = network(posed), supply_of(posed)
    cut = tightest_cut(flow, supply)
    assert cut.ticks == brute_cut(posed)
    time = least_time(flow, supply, 1)
    assert time == least_time(flow, supply, math.ceil(cut.ticks))
    routes = pack_trees(flow, time)
    assert_spanning(posed, routes)
    assert loads_of(posed, routes).max() <= time
    assert pack_trees(flow, time - 1) is None


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(1, 3), st.integers(0, 2))
def test_switches_lose_nothing(ranks, chunks, fast):
    posed = problem(switch(ranks, min(fast, ranks - 1)), allgather(ranks, chunks), symmetric=False)
    flow = network(posed)
    time = least_time(flow, supply_of(posed), 1)
    routes = next(filter(None, (pack_trees(flow, time + extra) for extra in range(3))))
    assert_spanning(posed, routes)
    assert loads_of(posed, routes).max() <= time + 2


@settings(max_examples=40, deadline=None)
@given(random_topologies(3, 6), st.integers(1, 2), st.sampled_from([1.0, 1.2, 2.0]))
def test_packings_with_shared_ports_keep_to_their_time(topology, chunks, slack):
    posed = problem(topology, allgather(topology.ranks, chunks))
    flow = network(posed)
    time = int(slack * least_time(flow, supply_of(posed), 1))
    routes = pack_trees(flow, time)
    if routes is not None:
        assert_spanning(posed, routes)
        assert loads_of(posed, routes).max() <= time


def test_more_time_makes_shorter_trees():
    posed = problem(ring(6, TEN), broadcast(6, 2), symmetric=False)
    long, short = (pack_trees(network(posed), ticks, spread=0.0) for ticks in (1, 6))
    assert sum(posed.ends[link] == (0, 1) for link in (*long[0], *long[1])) == 1
    assert {posed.ends[link] for link in short[0]} == {(0, 1), (0, 5), (1, 2), (5, 4), (2, 3)}


def test_links_of_a_switch_are_limited_by_its_ports():
    posed = problem(switch(3, fast=0), allgather(3), symmetric=False)
    flow = network(posed)
    assert flow.nodes == 3 + 2 * 6
    assert sorted(whole_capacity(flow, 3 * int(posed.costs.busy.max())).tolist())[:3] == [3, 3, 3]


@pytest.mark.parametrize("below", [1, 2, 3, 100, 1000, 10**5, 10**6, 10**7])
def test_the_least_time_is_found_from_anywhere_below(below):
    # A hundred-and-first part has no exact ticks, so they are short, and the least time is a large number of them.
    posed = problem(NDV2, allgather(8, 12), chunk=MIB / 101)
    least = least_time(network(posed), supply_of(posed), 1)
    assert least > 10**7
    assert microseconds(posed, least) == pytest.approx(12 * 161 / 3 / 101, rel=1e-6)
    assert least_time(network(posed), supply_of(posed), least - below) == least


@pytest.mark.parametrize("topology", [switch(5, fast=0), DGX2, machine("ndv2").topology(2, cost="taccl")])
def test_the_reverse_of_a_symmetric_topology_takes_the_same_time(topology):
    there, back = (problem(one, allgather(topology.ranks)) for one in (topology, topology.reversed()))
    cuts = [tightest_cut(network(posed), supply_of(posed)).ticks for posed in (there, back)]
    assert cuts[0] == cuts[1]


def test_ranks_that_nobody_reaches_are_named():
    posed = problem(Topology("cut", 3, {(0, 1): TEN, (1, 0): TEN, (2, 0): TEN}), allgather(3), symmetric=False)
    with pytest.raises(SynthesisError, match=r"cut: no link leaves ranks \[0, 1\]"):
        tightest_cut(network(posed), supply_of(posed))


def test_costs_without_a_small_common_multiple_are_cut_to_nine_digits():
    links = {(a, (a + s) % 7): Link(0.0, (1 + (a * 7919 % 101) / 99991) * 1e-6 / MIB) for a in range(7) for s in (1, 3)}
    posed = problem(Topology("odd", 7, links), allgather(7), symmetric=False)
    found = tightest_cut(network(posed), supply_of(posed)).ticks
    assert found <= brute_cut(posed) <= found * (1 + Fraction(1, 10**9))
