"""The bandwidth engine: known times, bounds that hold, and always a right schedule."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import MIB, TEN, microseconds, problem, random_topologies

from commlib.collectives import allgather, alltoall, broadcast, gather, reducescatter, scatter
from commlib.topology import Topology, fully_connected, machine, ring, torus
from synth.bandwidth import best_chunks, solve_bandwidth
from synth.engine import Budget, Ended
from synth.errors import SynthesisError
from synth.greedy import greedy
from synth.problem import Rules
from synth.schedule import check, expand, makespan

NDV2 = machine("ndv2")
DGX2 = machine("dgx2")


def solved(posed, seconds=60.0, bound=0):
    """(time in us, outcome) of a checked solution."""
    outcome = solve_bandwidth(posed, Budget(seconds), bound)
    check(expand(posed, outcome.plan))
    assert outcome.bound <= makespan(posed, outcome.plan)
    return microseconds(posed, makespan(posed, outcome.plan)), outcome


@pytest.mark.parametrize(
    ("topology", "collective", "time"),
    [
        (NDV2.topology(cost="taccl"), allgather(8, 6), 322),
        (NDV2.topology(cost="taccl"), allgather(8, 12), 644),
        (NDV2.topology(cost="taccl"), allgather(8, 24), 1288),
        (NDV2.topology(cost="taccl"), reducescatter(8, 6), 322),
        (DGX2.topology(cost="taccl"), allgather(16), 120),
        (torus((4, 4), TEN), allgather(16), 40),
        (torus((4, 4), TEN), allgather(16, 4), 150),
        (torus((4, 4, 4), TEN), allgather(64), 110),
        (ring(8, TEN), allgather(8, 2), 70),
    ],
)
def test_times_that_meet_the_cut(topology, collective, time):
    posed = problem(topology, collective)
    found, outcome = solved(posed)
    assert found == time
    assert (outcome.ended, outcome.bound_kind) == (Ended.PROOF, "cut")
    assert microseconds(posed, outcome.bound) == time


@pytest.mark.parametrize(
    ("topology", "collective", "chunk", "time"),
    [
        (NDV2.topology(2, cost="taccl"), allgather(16), MIB, 912),
        (NDV2.topology(2, cost="taccl"), allgather(16, 4), MIB / 4, 860.25),
        (fully_connected(6, TEN), broadcast(6, 5), MIB, 20),
        (ring(8, TEN), alltoall(8, 2), MIB, 160),
        (torus((4, 4), TEN), alltoall(16), MIB, 80),
        (DGX2.topology(cost="taccl"), alltoall(16), MIB, 120),
        (ring(6, TEN), scatter(6, 2), MIB, 50),
        (ring(6, TEN), gather(6, 2), MIB, 50),
    ],
)
def test_times_of_known_cases(topology, collective, chunk, time):
    posed = problem(topology, collective, chunk=chunk)
    assert solved(posed, bound=round(time * 1e-6 / posed.costs.tick))[0] == time


@settings(max_examples=25, deadline=None)
@given(random_topologies(2, 6), st.integers(1, 3), st.sampled_from([allgather, alltoall, broadcast, scatter, gather]))
def test_random_problems(topology, chunks, collective):
    posed = problem(topology, collective(topology.ranks, chunks))
    _, outcome = solved(posed)
    plan = greedy(posed, Budget(), tries=2)
    if plan is not None:
        assert outcome.bound <= makespan(posed, plan)
    assert solve_bandwidth(posed, Budget(), 0).plan == outcome.plan


def test_the_time_per_chunk_nears_the_cut():
    posed = [problem(NDV2.topology(cost="taccl"), broadcast(8, chunks)) for chunks in (4, 16, 64)]
    each = [solved(one)[0] / chunks for one, chunks in zip(posed, (4, 16, 64), strict=True)]
    assert each[0] > each[1] > each[2]
    assert each[2] < 1.25 * 23 / 3


def test_a_busy_time_beyond_the_arrival_proves_nothing():
    posed = problem(Topology("pair", 2, {(0, 1): TEN, (1, 0): TEN}), allgather(2))
    costs = replace(posed.costs, use_ticks=posed.costs.use_ticks * 2)
    outcome = solve_bandwidth(replace(posed, costs=costs), Budget(), 0)
    assert (outcome.bound, outcome.bound_kind, outcome.ended) == (0, "given", Ended.HEURISTIC)


def test_a_better_incumbent_is_kept():
    posed = problem(NDV2.topology(cost="taccl"), broadcast(8, 3))
    first = solve_bandwidth(posed, Budget(), 0)
    again = solve_bandwidth(posed, Budget(0.0), 0, first.plan)
    assert again.plan == first.plan
    assert again.ended is Ended.TIME


def test_no_time_is_no_reason_for_no_answer():
    posed = problem(torus((3, 3), TEN), allgather(9, 2))
    outcome = solve_bandwidth(posed, Budget(0.0), 0)
    check(expand(posed, outcome.plan))


def test_routes_keep_to_the_links_that_a_sketch_leaves():
    posed = problem(ring(5, TEN), allgather(5), symmetric=False)
    allowed = np.ones((5, posed.costs.links), dtype=np.bool_)
    allowed[0, [link for link, (a, b) in enumerate(posed.ends) if (a - b) % 5 == 1]] = False
    found, _ = solved(replace(posed, rules=Rules(allowed=allowed)))
    assert found >= 40


@pytest.mark.parametrize(
    ("topology", "collective", "chunks"),
    [
        (NDV2.topology(cost="taccl"), allgather, 6),
        (ring(8, TEN), allgather, 2),
        (torus((4, 4), TEN), allgather, 4),
        (torus((4, 4, 4), TEN), allgather, 2),
        (DGX2.topology(cost="taccl"), allgather, 1),
        (ring(8, TEN), alltoall, 2),
        (ring(7, TEN), alltoall, 1),
    ],
)
def test_how_many_chunks_load_evenly(topology, collective, chunks):
    assert best_chunks(problem(topology, collective(topology.ranks))) == chunks


@pytest.mark.parametrize("collective", [allgather, alltoall])
def test_a_rank_out_of_reach_is_named(collective):
    links = {(0, 1): TEN, (1, 0): TEN, (2, 0): TEN}
    posed = problem(Topology("cut", 3, links), collective(3), symmetric=False)
    with pytest.raises(SynthesisError, match=r"ranks \[0, 1\]|can reach rank 2"):
        solve_bandwidth(posed, Budget(), 0)
