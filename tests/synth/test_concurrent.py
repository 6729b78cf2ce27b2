"""Concurrent flows: exact loads, whole paths that keep to them, sketches' links."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import TEN, microseconds, problem, random_topologies

from commlib.collectives import allgather, alltoall, gather, scatter
from commlib.topology import Topology, fully_connected, machine, ring, torus
from synth.concurrent import commodities, fractional_flow, path_routes, single
from synth.engine import Budget
from synth.problem import Rules

NDV2 = machine("ndv2").topology(cost="taccl")


def largest_load(posed, routes):
    """The ticks for which the busiest slot is taken."""
    loads = {}
    for item, route in routes.items():
        for link in route:
            for slot, ticks in posed.uses[posed.demand.items[item].size][link]:
                loads[slot] = loads.get(slot, 0) + ticks
    return max(loads.values())


def assert_paths(posed, routes):
    """Each representative's route leads from its origin to its destination, through no rank twice."""
    assert set(routes) == set(posed.representatives)
    for item, route in routes.items():
        passed = [posed.demand.items[item].origin]
        for link in route:
            assert posed.ends[link][0] == passed[-1]
            passed.append(posed.ends[link][1])
        assert passed[-1] == posed.demand.items[item].destinations[0]
        assert len(set(passed)) == len(passed)


@pytest.mark.parametrize(
    ("topology", "collective", "fractional", "whole"),
    [
        (ring(8, TEN), alltoall(8, 2), 160, 160),
        (ring(7, TEN), alltoall(7), 60, 60),
        (torus((4, 4), TEN), alltoall(16), 80, 80),
        (torus((8, 8), TEN), alltoall(64), 640, 640),
        (fully_connected(5, TEN), alltoall(5), 10, 10),
        (NDV2, alltoall(8), 122.666667, 138),
        (machine("dgx2").topology(cost="taccl"), alltoall(16), 120, 120),
        (ring(6, TEN), scatter(6, 2), 50, 50),
        (ring(6, TEN), gather(6, 2), 50, 50),
    ],
)
def test_loads_of_known_cases(topology, collective, fractional, whole):
    posed = problem(topology, collective)
    flow = fractional_flow(posed, Budget())
    assert microseconds(posed, round(flow.load, 5)) == pytest.approx(fractional, abs=1e-3)
    routes = path_routes(posed, Budget())
    assert_paths(posed, routes)
    assert microseconds(posed, largest_load(posed, routes)) == whole


def test_loads_wander_along_plateaus_to_an_even_one():
    posed = problem(torus((4, 4), TEN), alltoall(16, 4), symmetric=False)
    routes = path_routes(posed, Budget())
    assert_paths(posed, routes)
    assert microseconds(posed, largest_load(posed, routes)) == 320


@settings(max_examples=15, deadline=None)
@given(random_topologies(3, 6), st.integers(1, 2))
def test_paths_are_whole_and_loads_above_the_flow(topology, chunks):
    posed = problem(topology, alltoall(topology.ranks, chunks))
    assert single(posed, posed.representatives)
    flow, routes = fractional_flow(posed, Budget()), path_routes(posed, Budget())
    assert_paths(posed, routes)
    assert largest_load(posed, routes) >= flow.load * (1 - 1e-6)
    assert routes == path_routes(posed, Budget())


def test_paths_keep_to_the_links_that_a_sketch_leaves():
    posed = problem(ring(4, TEN), alltoall(4), symmetric=False)
    allowed = np.ones((len(posed.demand.items), posed.costs.links), dtype=np.bool_)
    backward = [link for link, (a, b) in enumerate(posed.ends) if (a - b) % 4 == 1]
    allowed[:6, backward] = False
    posed = replace(posed, rules=Rules(allowed=allowed))
    assert len(commodities(posed)) == 5
    routes = path_routes(posed, Budget())
    assert_paths(posed, routes)
    assert all(posed.may_use(item, link) for item, route in routes.items() for link in route)


def test_items_for_many_ranks_are_no_single_ones():
    posed = problem(ring(4, TEN), allgather(4))
    assert not single(posed, posed.representatives)


def test_a_rank_out_of_reach_has_no_flow():
    posed = problem(Topology("cut", 2, {(0, 1): TEN}), alltoall(2), symmetric=False)
    assert path_routes(posed, Budget()) is None
