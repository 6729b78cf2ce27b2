"""The whole pipeline: questions, results, their facts, and agreement of the engines; every algorithm is proved."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import MIB, TEN, random_topologies, random_topology

from commlib.collectives import Placement
from commlib.errors import SpecError
from commlib.topology import Link, Resource, Topology, fully_connected, named, ring, torus
from commlib.verify import verify
from synth import Budget, question, solve
from synth.engine import Ended
from synth.errors import SynthesisError

COPYING = ("allgather", "alltoall", "alltoallv", "broadcast", "scatter", "gather", "sendrecv", "alltonext")
REDUCING = ("reducescatter", "reduce", "allreduce")
MODES = ("auto", "greedy", "taccl", "exact", "bandwidth")


def proved(result):
    """Insist on the proof in every placement, and on times that make sense; returns the result."""
    report = verify(result.algorithm)
    assert report.proved >= result.algorithm.placements
    assert result.time >= result.bound * (1 - 1e-9)
    assert result.bound >= result.topology_bound * (1 - 1e-9) or result.ended is not Ended.PROOF
    assert result.proven == (result.ended is Ended.PROOF)
    assert result.gap == 0 if result.proven else result.gap >= 0
    return result


def test_a_question_without_a_size_has_one_chunk_of_the_profile_per_rank():
    ndv2 = named("ndv2")
    assert question(ndv2, "allgather").chunk_bytes == 1 << 20
    assert question(ndv2, "allgather", chunks=4).chunk_bytes == 1 << 18
    whole = question(ndv2, "allreduce", chunks=2)
    assert (whole.collective.chunks, whole.chunk_bytes) == (16, 1 << 19)


@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        ("allgather", 1 << 17),
        ("reducescatter", 1 << 17),
        ("allreduce", 1 << 17),
        ("alltoall", 1 << 17),
        ("broadcast", 1 << 20),
        ("reduce", 1 << 20),
        ("gather", 1 << 17),
        ("scatter", 1 << 17),
        ("sendrecv", 1 << 20),
    ],
)
def test_a_size_is_that_of_nccl_tests(name, chunk):
    assert question(ring(8), name, size=1 << 20).chunk_bytes == chunk


@pytest.mark.parametrize("size", [0, -1, float("nan"), float("inf")])
def test_a_size_is_positive(size):
    with pytest.raises(SpecError, match="a size is a positive number of bytes"):
        question(ring(4), "allgather", size=size)


@pytest.mark.parametrize(
    ("name", "cost", "chunks", "time"),
    [
        ("ndv2", "taccl", 1, 69),
        ("ndv2", "exact", 1, 69.9),
        ("ndv2", "taccl", 6, 322 / 6),
        ("dgx2", "taccl", 1, 120),
        ("dgx2", "exact", 1, 124.5),
    ],
)
def test_the_figures_of_one_node(name, cost, chunks, time):
    result = proved(solve(question(named(name, cost=cost), "allgather", chunks=chunks)))
    assert result.proven
    # A tick is a millionth of the shortest transfer or finer: a sixth of 23 us is rounded to one.
    assert result.time_profile == pytest.approx(time, rel=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [*COPYING, *REDUCING])
def test_every_collective_by_every_engine(name, mode):
    topology = random_topology(7, 5)
    result = proved(solve(question(topology, name), mode, Budget(seconds=10)))
    assert result.algorithm.collective.name == name
    wanted = set(Placement)
    assert result.algorithm.placements == wanted
    facts = result.as_json()
    for key in ("engine", "time", "bound", "bound_kind", "gap", "proven", "seconds", "ranks", "chunks", "steps"):
        assert key in facts


def test_a_mode_that_does_not_exist_is_named():
    with pytest.raises(SynthesisError, match="no engine is called 'magic'; there are auto, greedy"):
        solve(question(ring(3), "allgather"), "magic")


def test_a_rank_that_cannot_be_reached_is_named():
    cut = Topology("cut", 3, {(0, 1): TEN, (1, 0): TEN, (2, 0): TEN})
    with pytest.raises(SynthesisError, match="rank 2 cannot be reached"):
        solve(question(cut, "allgather"))


@pytest.mark.parametrize("mode", MODES)
def test_no_time_is_no_reason_for_no_schedule(mode):
    result = proved(solve(question(named("ndv2"), "alltoall", chunks=2), mode, Budget(seconds=0.0)))
    assert result.proven or result.ended in (Ended.TIME, Ended.HEURISTIC)


def test_the_same_question_has_the_same_answer():
    asked = question(torus((3, 3), TEN), "alltoall")
    first, second = (solve(asked, "exact", Budget(seconds=60, work=5.0)) for _ in range(2))
    assert first.ended is not Ended.TIME
    assert first.moves.text() == second.moves.text()


def test_allreduce_overlaps_its_two_halves_and_meets_its_bound():
    result = proved(solve(question(fully_connected(4, TEN), "allreduce")))
    assert result.proven
    assert result.time_profile == pytest.approx(20, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(random_topologies(3, 7), st.sampled_from([*COPYING, *REDUCING]), st.integers(1, 2))
def test_random_topologies(topology, name, chunks):
    proved(solve(question(topology, name, chunks=chunks), "auto", Budget(seconds=5)))


@settings(max_examples=10, deadline=None)
@given(random_topologies(3, 10), st.sampled_from(["allgather", "broadcast", "scatter", "alltoall"]))
def test_engines_agree_where_they_prove_an_optimum(topology, name):
    asked = question(topology, name)
    results = [proved(solve(asked, mode, Budget(seconds=5))) for mode in ("exact", "taccl", "bandwidth", "greedy")]
    optima = {round(result.time / 1e-12) for result in results if result.proven}
    assert len(optima) <= 1
    assert all(result.time >= optimum * 1e-12 * (1 - 1e-9) for result in results for optimum in optima)


def test_stages_say_where_the_time_went():
    for name in ("alltoall", "allreduce"):
        first, result = (solve(question(torus((4, 4, 2), TEN), name)) for _ in range(2))  # the first one imports
        assert first.stage_seconds.keys() == result.stage_seconds.keys()
        assert sum(result.stage_seconds.values()) >= 0.7 * result.seconds
        assert result.proof_seconds > 0


def test_a_composition_that_meets_the_bound_is_proven_although_its_mirror_did_not():
    shared = Link(1e-6, 3e-6 / MIB, ("bus",), pipelined=True)
    plain = Link(0.0, 2e-6 / MIB, ("bus",))
    posed = Topology("uneven", 3, {(0, 1): shared, (1, 0): plain, (1, 2): plain, (2, 0): shared}, {"bus": Resource()})
    for name in ("reducescatter", "reduce"):
        result = proved(solve(question(posed, name), "exact", Budget(seconds=10)))
        assert result.proven == (result.time <= result.bound)


def test_a_search_that_the_clock_cut_is_never_called_deterministic():
    assert Ended.HEURISTIC.after(Ended.TIME) is Ended.TIME
    assert Ended.TIME.after(Ended.HEURISTIC) is Ended.TIME
    assert Ended.WORK.after(Ended.HEURISTIC) is Ended.WORK
    assert Ended.HEURISTIC.after(Ended.PROOF) is Ended.HEURISTIC


def test_a_bound_that_the_clock_cut_is_marked(monkeypatch):
    monkeypatch.setattr("synth.pipeline.LpSolver", lambda *limits: lambda program: None)
    result = proved(solve(question(named("ndv2"), "alltoall"), "greedy"))
    assert result.ended is Ended.TIME
    assert "the clock cut the flow bound" in result.notes


def test_shared_ports_have_a_note():
    assert any("share a port or NIC" in note for note in solve(question(named("dgx2"), "broadcast"), "greedy").notes)
    assert not solve(question(named("ndv2"), "broadcast")).notes
