"""Load-aware routes: known optima, relays, and an explanation where there is no way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import TEN, microseconds, problem, random_topologies

from commlib.collectives import allgather, alltoall, broadcast, collective, custom, gather, scatter
from commlib.topology import Topology, fully_connected, ring, torus
from synth.engine import Budget
from synth.errors import SynthesisError
from synth.schedule import check, expand, makespan
from synth.spread import first_plan, spread_routes


@pytest.mark.parametrize(
    ("topology", "wanted", "optimum"),
    [
        (torus((4, 4), TEN), alltoall(16), 80),
        (torus((8, 8), TEN), alltoall(64), 640),
        (fully_connected(5, TEN), alltoall(5), 10),
        (ring(8, TEN), scatter(8), 40),
        (ring(8, TEN), gather(8), 40),
        (ring(7, TEN), allgather(7), 30),
        (ring(6, TEN), broadcast(6, 4), 40),
    ],
)
def test_the_heuristics_reach_known_optima(topology, wanted, optimum):
    posed = problem(topology, wanted)
    plan = first_plan(posed, Budget())
    check(expand(posed, plan))
    assert microseconds(posed, makespan(posed, plan)) == optimum


def test_an_item_for_two_ranks_shares_its_way():
    links = {(0, 1): TEN, (1, 2): TEN, (1, 3): TEN}
    wanted = custom("pair", [1, 0, 0, 0], [0, 0, 1, 1], {(2, 0): [(0, 0)], (3, 0): [(0, 0)]})
    posed = problem(Topology("y", 4, links), wanted, symmetric=False)
    assert spread_routes(posed) == {0: (0, 1, 2)}


def test_a_rank_that_cannot_be_reached_is_named():
    posed = problem(Topology("cut", 3, {(0, 1): TEN, (1, 0): TEN, (2, 0): TEN}), broadcast(3), symmetric=False)
    with pytest.raises(SynthesisError, match=r"starts on rank 0 \(item 0\) can reach rank 2") as error:
        first_plan(posed, Budget())
    assert error.value.fields["rank"] == 2


@settings(max_examples=80, deadline=None)
@given(
    random_topologies(),
    st.sampled_from(["allgather", "alltoall", "broadcast", "scatter", "gather", "sendrecv"]),
    st.integers(1, 2),
)
def test_every_plan_is_right(topology, name, chunks):
    posed = problem(topology, collective(name, topology.ranks, chunks))
    check(expand(posed, first_plan(posed, Budget())))
