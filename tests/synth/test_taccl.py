"""The taccl engine: the figures of its paper's machines, proofs, limits, and agreement with the exact engine."""

import sys
from dataclasses import replace

import pulp  # noqa: F401  (before a test hides HiGHS from it)
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import TEN, microseconds, problem, random_topologies
from taccl_cases import dgx2, mesh, ndv2, posed, ticks

from commlib.collectives import allgather, alltoall, broadcast, collective, scatter
from commlib.topology import Topology, ring, torus
from synth.engine import Budget, Ended
from synth.errors import SolverError, SynthesisError
from synth.exact import solve_exact
from synth.listing import list_schedule
from synth.own_first import keeps_own_first
from synth.problem import Problem, Rules
from synth.schedule import check, expand, makespan
from synth.spread import spread_routes
from synth.symmetry import Symmetry
from synth.taccl import solve_taccl


@pytest.mark.parametrize(
    ("topology", "wanted", "optimum"),
    [
        (ndv2(23, 46), allgather(8), 69),
        (ndv2(32, 34), allgather(8), 68),
        (ndv2(10, 17), allgather(8), 30),
        (ndv2(23, 46), alltoall(8), 138),
        (ndv2(nodes=2), allgather(16), 912),
        (dgx2(), allgather(16), 120),
        (mesh(2, 4), allgather(8), 40),
        (mesh(3, 3), allgather(9), 40),
        (ring(8, TEN), scatter(8), 40),
        (torus((4, 4), TEN), alltoall(16), 80),
    ],
)
def test_nothing_is_lost_between_routing_and_schedule(topology, wanted, optimum):
    task = posed(topology, wanted)
    outcome = solve_taccl(task, Budget(30), ticks(task, optimum))
    check(expand(task, outcome.plan))
    assert outcome.ended is Ended.PROOF
    assert microseconds(task, makespan(task, outcome.plan)) == optimum
    assert microseconds(task, outcome.bound) == optimum


def poor(task: Problem):
    """An incumbent that leaves the engine something to do."""
    return list_schedule(task, spread_routes(task, weight=0.0, rounds=1), tries=1)


def test_stages_are_timed_and_reported():
    heard = []
    task = posed(ndv2(), allgather(8))
    outcome = solve_taccl(task, Budget(30, report=heard.append), ticks(task, 69), poor(task))
    assert [stage.name for stage in outcome.stages] == ["incumbent", "routing", "ordering", "scheduling", "joint"]
    assert all(stage.seconds >= 0 for stage in outcome.stages)
    assert {progress.stage for progress in heard} >= {"routing", "ordering", "scheduling"}
    assert makespan(task, outcome.plan) == ticks(task, 69)


def test_a_bound_for_symmetric_schedules_is_a_note_unless_the_sketch_wants_symmetry():
    task = posed(ring(6, TEN), alltoall(6))
    assert not task.quotient_is_exact
    outcome = solve_taccl(task, Budget(30), 0, poor(task))
    assert any("symmetry that was found" in note for note in outcome.notes)
    bound = replace(task, rules=Rules(symmetric=True))
    proven = solve_taccl(bound, Budget(30), 0, poor(bound))
    assert proven.ended is Ended.PROOF
    # Rotations send all that goes half way round the same way; without them half of it may go either way.
    assert microseconds(task, proven.bound) == 60
    assert microseconds(task, outcome.bound) <= 50


def test_the_routing_proves_what_no_bound_was_given_for():
    one_way = Topology("one way", 4, {(rank, (rank + 1) % 4): TEN for rank in range(4)})
    task = problem(one_way, broadcast(4, 4), symmetric=False)
    outcome = solve_taccl(task, Budget(30), 0)
    assert outcome.ended is Ended.PROOF
    assert outcome.bound_kind == "routing"
    assert microseconds(task, outcome.bound) == 60


def test_no_time_at_all_still_gives_a_schedule():
    task = posed(torus((4, 4), TEN), alltoall(16), symmetric=False)
    outcome = solve_taccl(task, Budget(0.0), 1)
    check(expand(task, outcome.plan))
    assert outcome.ended is Ended.TIME
    assert outcome.bound < makespan(task, outcome.plan)


def test_the_same_twice():
    task = posed(ndv2(nodes=2), allgather(16))
    first, second = (solve_taccl(task, Budget(30), ticks(task, 912), poor(task)).plan for _ in range(2))
    assert first == second


def test_a_work_limit_gives_the_same_twice():
    task = posed(ring(5, TEN), alltoall(5), symmetric=False)
    first, second = (solve_taccl(task, Budget(60, work=0.01), 0, poor(task)) for _ in range(2))
    assert first.plan == second.plan
    assert first.ended is second.ended is not Ended.TIME
    check(expand(task, first.plan))


def test_what_is_too_large_for_a_program_keeps_its_routes(monkeypatch):
    monkeypatch.setattr("synth.routing.MOST_BINARIES", 10)
    task = posed(ndv2(), allgather(8))
    outcome = solve_taccl(task, Budget(30), ticks(task, 69), poor(task))
    assert any("too many transfers" in note for note in outcome.notes)
    check(expand(task, outcome.plan))


def test_without_a_joint_solver_other_routes_are_tried(monkeypatch):
    def missing(*_):
        raise SolverError("OR-Tools is not there")

    monkeypatch.setattr("synth.taccl.solve_exact", missing)
    task = posed(ndv2(), allgather(8))
    outcome = solve_taccl(task, Budget(30), ticks(task, 69), poor(task))
    assert outcome.stages[-1].name in ("joint", "other routes")
    assert any("no joint schedule was sought" in note for note in outcome.notes)
    assert microseconds(task, makespan(task, outcome.plan)) == 69


def test_cbc_does_it_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "highspy", None)
    task = posed(ndv2(10, 17), allgather(8))
    outcome = solve_taccl(task, Budget(30), ticks(task, 30), poor(task))
    assert microseconds(task, makespan(task, outcome.plan)) == 30


@pytest.mark.parametrize(("wish", "links"), [("uc-min", 8), ("uc-max", 56)])
def test_a_schedule_of_the_same_time_is_preferred_as_the_sketch_says(wish, links):
    task = replace(posed(dgx2(8, 8), allgather(8)), rules=Rules(switches=((frozenset(range(8)), wish),)))
    outcome = solve_taccl(task, Budget(60), ticks(task, 56))
    assert microseconds(task, makespan(task, outcome.plan)) == 56
    assert len(set(expand(task, outcome.plan).link.tolist())) == links


def test_own_items_first_is_kept():
    task = posed(ndv2(), allgather(8, 2))
    links = frozenset(range(task.costs.links))
    task = replace(task, rules=Rules(own_first=links))
    outcome = solve_taccl(task, Budget(5), 0)
    check(expand(task, outcome.plan))
    assert keeps_own_first(task, outcome.plan)


def test_what_cannot_be_reached_is_said():
    task = problem(Topology("cut", 3, {(0, 1): TEN, (1, 0): TEN, (2, 0): TEN}), broadcast(3), symmetric=False)
    with pytest.raises(SynthesisError, match="rank 2"):
        solve_taccl(task, Budget(5), 0)


@settings(max_examples=15, deadline=None)
@given(
    random_topologies(2, 5),
    st.sampled_from(["allgather", "alltoall", "broadcast", "scatter", "gather"]),
    st.integers(1, 2),
)
def test_it_agrees_with_the_exact_engine(topology, name, chunks):
    task = problem(topology, collective(name, topology.ranks, chunks))
    task = Problem(task.topology, task.demand, task.costs, Symmetry.trivial(topology.ranks))
    ours, exact = solve_taccl(task, Budget(10), 0), solve_exact(task, Budget(10), 0)
    check(expand(task, ours.plan))
    assert ours.bound <= makespan(task, ours.plan)
    if ours.ended is exact.ended is Ended.PROOF:
        assert makespan(task, ours.plan) == makespan(task, exact.plan)
