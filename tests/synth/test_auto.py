"""Ranges of sizes: every size has an algorithm within a few per cent of the best candidate; crossovers are real."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import random_topologies

from commlib.demand import chunk_bytes
from commlib.errors import SpecError
from commlib.topology import named
from synth import Budget, question, solve
from synth.auto import NEAR, promising_chunks, solve_range


def ask_of(topology, name):
    return lambda size, chunks: question(topology, name, size=size, chunks=chunks)


def test_small_sizes_want_few_chunks_and_large_ones_many():
    topology = named("ring:8")
    ask = ask_of(topology, "broadcast")
    ranges = solve_range(ask, 1 << 10, 1 << 28, "greedy", Budget(seconds=20), (1, 8))
    assert [part.result.collective.chunks for part in ranges][-1] == 8
    check_ranges(ranges, ask, (1, 8), 1 << 10, 1 << 28)


def check_ranges(ranges, ask, chunks, low, high):
    assert (ranges[0].low, ranges[-1].high) == (low, high)
    for part, following in pairwise(ranges):
        assert following.low == int(part.high) + 1
        assert part.result is not following.result
    for part in ranges:
        for size, said in zip((part.low, part.high), part.times, strict=True):
            assert said == part.result.seconds_at(chunk_bytes(part.result.collective, size))
    for size in (low, high):
        part = ranges[0] if size == low else ranges[-1]
        said = part.times[0] if size == low else part.times[1]
        assert said <= NEAR * min(solve(ask(size, k), "greedy", Budget(seconds=5)).time for k in chunks) * (1 + 1e-6)


def test_the_number_of_chunks_that_loads_links_evenly_is_tried():
    ndv2 = named("ndv2", cost="taccl")
    for name in ("allgather", "allreduce", "reducescatter"):
        assert promising_chunks(question(ndv2, name, size=1 << 30)) == (1, 2, 4, 6, 8)
    ranges = solve_range(ask_of(ndv2, "allgather"), 1 << 30, 1 << 30, "greedy", Budget(seconds=10))
    assert [part.result.collective.chunks for part in ranges] == [6]


def test_one_size_has_one_range():
    ranges = solve_range(ask_of(named("ndv2"), "allgather"), 1 << 20, 1 << 20, "greedy", Budget(seconds=20))
    assert len(ranges) == 1
    assert ranges[0].low == ranges[0].high == 1 << 20


def test_an_allreduce_takes_a_tree_where_latency_counts():
    slow_start = named("h100")
    ranges = solve_range(ask_of(slow_start, "allreduce"), 8, 1 << 30, "greedy", Budget(seconds=20), (1,))
    assert [part.result.engine for part in ranges] == ["trees", "greedy"]


@pytest.mark.parametrize(("low", "high"), [(0, 10), (100, 10), (1, float("inf"))])
def test_empty_ranges_are_refused(low, high):
    with pytest.raises(SpecError, match="a range of sizes goes from at least 1 byte up"):
        solve_range(ask_of(named("ring:4"), "allgather"), low, high)


@settings(max_examples=4, deadline=None)
@given(random_topologies(2, 5), st.sampled_from(["allgather", "broadcast", "allreduce"]))
def test_random_ranges_are_covered(topology, name):
    ask = ask_of(topology, name)
    ranges = solve_range(ask, 64, 1 << 24, "greedy", Budget(seconds=20), (1, 3))
    check_ranges(ranges, ask, (1, 3), 64, 1 << 24)
