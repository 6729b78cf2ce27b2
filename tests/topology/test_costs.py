"""Cost tables: whole ticks, exact where costs are decimal or parts of them, and columns that fit together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commlib.errors import TopologyError
from commlib.topology import Link, Resource, Topology, cost_table, named, ring

MIB = 1 << 20


@pytest.mark.parametrize(
    ("cost", "parts", "tick", "latencies"),
    [
        ("taccl", 1, 23e-6, [1, 2]),
        ("exact", 1, 1e-7, [233, 463]),
        ("taccl", 6, 23e-6 / 6, [1, 2]),
        ("exact", 6, 0.1e-6 / 3, [124, 239]),
    ],
)
def test_profiles_cut_into_chunks_are_exact(cost, parts, tick, latencies):
    costs = cost_table(named("ndv2", cost=cost), [MIB / parts])
    assert costs.tick == pytest.approx(tick, rel=1e-11)
    assert np.unique(costs.latency).tolist() == latencies


@given(st.lists(st.floats(1e-9, 1e-3), min_size=1, max_size=6), st.floats(1, 1e8))
def test_any_times_are_near_their_ticks(betas, size):
    ranks = len(betas) + 1
    topology = Topology("line", ranks, {(k, k + 1): Link(1e-7, beta / MIB) for k, beta in enumerate(betas)})
    costs = cost_table(topology, [size])
    times = np.array([topology.links[pair].latency(size) for pair in sorted(topology.links)])
    assert np.abs(costs.latency[:, 0] * costs.tick - times).max() <= 1e-6 * times.max()
    assert costs.latency.max() < 1 << 41


def test_columns_of_a_pipelined_link_with_resources():
    link = Link(3e-6, 5e-6 / MIB, ("nic", "bus"), pipelined=True)
    topology = Topology("two", 2, {(0, 1): link}, {"bus": Resource(1e-6 / MIB), "nic": Resource()})
    costs = cost_table(topology, [MIB, 2 * MIB])
    assert (costs.tick, costs.links, costs.latency.tolist(), costs.busy.tolist()) == (1e-6, 1, [[8, 13]], [[5, 10]])
    assert costs.resource_names == ("link 0 -> 1", "bus", "nic")
    assert costs.use_resource.tolist() == [0, 2, 1]
    assert costs.use_ticks.tolist() == [[5, 10], [5, 10], [1, 2]]
    assert costs.seconds(13) == pytest.approx(13e-6)


def test_links_that_cost_nothing():
    costs = cost_table(ring(3, Link()), [0.0, 8.0])
    assert not costs.latency.any()


@pytest.mark.parametrize("sizes", [[], [-1], [float("nan")], [float("inf")]])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(TopologyError, match="message sizes are 0 bytes or more"):
        cost_table(ring(3), sizes)
