"""What a search notes for people is in microseconds, and says what it means; a result is priced at any size."""

import pytest
from synth_cases import MIB, TEN, problem

from commlib.collectives import allgather, alltoall, alltoallv, collective
from commlib.errors import SpecError
from commlib.topology import Link, Topology, fully_connected, ring
from synth.bandwidth import solve_bandwidth
from synth.engine import Budget
from synth.exact import solve_exact
from synth.pipeline import Question, solve

UNEVEN = Topology("uneven", 3, {(0, 1): TEN, (1, 2): TEN, (2, 0): TEN, (1, 0): Link(0.0, 3 * TEN.beta)})


def test_symmetric_and_other_schedules():
    """On a ring of six an alltoall's opposite ranks are served half this way, half that way; symmetry forbids that."""
    posed = problem(ring(6, TEN), alltoall(6))
    assert (posed.symmetry.order > 1, posed.costs.tick) == (True, 10e-6)
    outcome = solve_exact(posed, Budget(seconds=60), 5)
    assert outcome.notes == (
        "no symmetric schedule ends before 60 us",
        "a schedule without the symmetry takes 50 us, not 60 us",
    )


@pytest.mark.parametrize(
    ("topology", "name", "note"),
    [
        (ring(4, TEN), "allgather", "3 chunks must leave ranks 1-3, which keeps links there busy for 15 us"),
        (fully_connected(3, TEN), "broadcast", "1 chunk must leave rank 0, which keeps links there busy for 5 us"),
        (UNEVEN, "allgather", "2 chunks must leave ranks 0, 2, which keeps links there busy for 20 us"),
    ],
)
def test_the_tightest_cut(topology, name, note):
    posed = problem(topology, collective(name, topology.ranks), symmetric=False)
    notes = solve_bandwidth(posed, Budget(), 0).notes
    whole = ", or 20 us when no chunk is divided" if "15 us" in note else ""
    whole = whole or (", or 10 us when no chunk is divided" if "5 us" in note else "")
    assert notes == (note + whole,)


def test_a_cut_of_sums():
    posed = problem(UNEVEN.reversed(), collective("reducescatter", 3), symmetric=False)
    assert "must reach rank" in solve_bandwidth(posed, Budget(), 0).notes[0]


def test_without_a_cut_there_is_no_note():
    posed = problem(ring(3, Link(1e-6, 0.0, (), True)), allgather(3))
    assert solve_bandwidth(posed, Budget(), 0).notes == ()


def test_a_result_for_no_bytes_is_priced_at_other_sizes():
    found = solve(Question(ring(3, Link(1e-6, TEN.beta)), allgather(3), 0.0), "greedy", Budget(seconds=5))
    assert (found.time, found.seconds_at(MIB), found.seconds_at(0.0)) == (1e-6, 11e-6, 1e-6)
    grown = solve(Question(ring(3, Link(1e-6, TEN.beta)), allgather(3), MIB), "greedy", Budget(seconds=5))
    assert (grown.seconds_at(2 * MIB), grown.seconds_at(0.0)) == (21e-6, 1e-6)


def test_chunks_of_sizes_of_their_own_do_not_grow_from_nothing():
    sizes = [[0, 1, 2], [3, 0, 1], [1, 1, 0]]
    found = solve(Question(ring(3, TEN), alltoallv(3), 0.0, None, sizes), "greedy", Budget(seconds=5))
    with pytest.raises(SpecError, match="sizes of their own"):
        found.seconds_at(MIB)
    empty = solve(Question(ring(3, TEN), alltoallv(3), 0.0, None, [[0] * 3] * 3), "greedy", Budget(seconds=5))
    assert empty.seconds_at(MIB) == 10e-6
