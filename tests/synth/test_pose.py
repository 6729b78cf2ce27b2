"""Problems as engines get them: sketches applied, symmetries checked, reductions reversed, ends reachable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import synth
from commlib.collectives import allgather, allreduce, alltoall, alltoallv, broadcast, reducescatter, scatter
from commlib.errors import SpecError, TopologyError
from commlib.topology import Link, Topology, named, read_profile, ring
from synth.engine import Budget
from synth.errors import SketchError, SynthesisError
from synth.explain import unreached
from synth.pose import pose
from synth.schedule import check, expand, makespan
from synth.sketch import Sketch, parse_sketch, read_sketch
from synth.spread import first_plan

TACCL = Path(synth.__file__).resolve().parents[2] / "shared" / "data" / "taccl"


def sketch(nodes: int, **keys: object) -> Sketch:
    return parse_sketch(json.dumps({"nnodes": nodes, **keys}), "s.json")


NDV2_TWICE = {"internode_sketch": {"strategy": "relay", "internode_conn": {"0": [1]}}, "symmetry_offsets": [[8, 16]]}


def test_without_a_sketch_the_whole_topology_is_the_problem():
    posed = pose(ring(6), allgather(6), 1024)
    assert posed.problem is posed.whole
    assert posed.problem.symmetry.order == 6
    assert posed.problem.representatives == (0,)
    assert not posed.problem.quotient_is_exact
    assert pose(ring(6), allgather(6), 1024, symmetric=False).problem.symmetry.order == 1


def test_a_sketch_binds_and_the_whole_topology_is_kept_for_bounds():
    posed = pose(named("ndv2", nodes=2), allgather(16), 1 << 20, sketch(2, **NDV2_TWICE))
    assert posed.problem.costs.links == 66
    assert posed.whole.costs.links == 64 + 128
    assert posed.problem.symmetry.order == 2
    assert posed.problem.quotient_is_exact
    assert len(posed.problem.representatives) == 8
    assert posed.whole.rules.allowed is None
    assert pose(named("ndv2", nodes=2), allgather(16), 1 << 20, sketch(2, **NDV2_TWICE), symmetric=False).notes == ()


def test_a_sketch_without_symmetries_gets_those_that_are_found():
    keys = {**NDV2_TWICE, "symmetry_offsets": []}
    problem = pose(named("ndv2", nodes=2), allgather(16), 1 << 20, sketch(2, **keys)).problem
    assert problem.symmetry.order == 2
    assert not problem.rules.symmetric


def test_reductions_are_posed_backwards():
    one_way = Topology("one way", 3, {(0, 1): Link(1e-6), (1, 2): Link(2e-6), (2, 0): Link(3e-6)})
    problem = pose(one_way, reducescatter(3), 1024).problem
    assert problem.ends == ((0, 2), (1, 0), (2, 1))
    assert problem.demand.reduces
    assert problem.distances(0) == [0, 5, 3]


def test_alltoallv_keeps_its_sizes():
    sizes = [[float(3 * a + b) for b in range(3)] for a in range(3)]
    problem = pose(ring(3, Link(0, 1e-9)), alltoallv(3), 1, bytes_of=sizes).problem
    assert len(problem.costs.sizes) == 9
    assert problem.symmetry.order == 1


def test_symmetries_that_the_collective_lacks_are_left_out_with_a_note():
    for make in (broadcast, scatter):
        posed = pose(named("ndv2", nodes=2), make(16), 1 << 20, sketch(2, **NDV2_TWICE))
        assert posed.problem.symmetry.order == 1
        assert not posed.problem.rules.symmetric
        assert posed.notes == (f"symmetry_offsets[0] is not used: {make.__name__} does not have this symmetry",)


def test_symmetries_that_leave_a_nic_in_place_are_left_out_with_a_note():
    keys = {
        "internode_sketch": {"strategy": "relay", "internode_conn": "fully-connected"},
        "symmetry_offsets": [[4, 8], [8, 16]],
    }
    posed = pose(named("ndv2", nodes=2), allgather(16), 1 << 20, sketch(2, **keys))
    assert posed.problem.symmetry.order == 2
    assert posed.notes == ("symmetry_offsets[0] is not used: it leaves a rank or a shared resource where it is",)


def test_a_symmetry_that_the_machine_lacks_names_the_link():
    with pytest.raises(SketchError, match=r"symmetry_offsets\[0\]: link 0 -> 1 would become 1 -> 2, and costs differ"):
        pose(named("ndv2"), allgather(8), 1 << 20, sketch(1, symmetry_offsets=[[1, 8]]))
    with pytest.raises(SketchError, match=r"link 2 -> 3 would become 3 -> 0, and there is no such link") as caught:
        pose(named("line:4"), allgather(4), 1 << 20, sketch(1, symmetry_offsets=[[1, 4]]))
    assert caught.value.fields["statements"] == ("symmetry_offsets[0]",)


def test_a_symmetry_that_clashes_with_connections_names_both():
    keys = {
        "internode_sketch": {"strategy": "relay", "internode_conn": {"1": [0], "3": [2]}},
        "symmetry_offsets": [[2, 8]],
    }
    with pytest.raises(SketchError, match=r"link 3 -> 10 would become 5 -> 12, and there is no such link") as caught:
        pose(named("a100", nodes=2, internode="all"), allgather(16), 1 << 20, sketch(2, **keys))
    assert caught.value.fields["link"] == (3, 10)
    assert caught.value.fields["statements"] == ("symmetry_offsets[0]", 'internode_sketch.internode_conn["3"]')


def test_a_symmetry_that_clashes_with_senders_names_them():
    conn = {str(gpu): [gpu] for gpu in range(8)}
    senders = {**{str(gpu): [gpu] for gpu in range(2, 8)}, "0": [0, 1]}
    keys = {
        "internode_sketch": {"strategy": "relay", "internode_conn": conn, "gpus_to_sender_rev_map": senders},
        "symmetry_offsets": [[1, 8]],
    }
    with pytest.raises(SketchError, match=r"items of rank 0 may take link .*, and their images may not") as caught:
        pose(named("a100", nodes=2), allgather(16), 1 << 20, sketch(2, **keys))
    assert any("gpus_to_sender_rev_map" in key for key in caught.value.fields["statements"])


def test_a_topology_that_is_not_connected():
    split = Topology("split", 4, {(0, 1): Link(), (1, 0): Link(), (2, 3): Link(), (3, 2): Link()})
    with pytest.raises(SynthesisError, match="split: rank 2 cannot be reached from rank 0, only ranks 0, 1") as caught:
        pose(split, allgather(4), 1024)
    assert caught.value.fields["rank"] == 2
    assert caught.value.fields["statements"] == ()
    with pytest.raises(SynthesisError, match="split: sums for rank 0 cannot come from rank 2, only from ranks 0, 1"):
        pose(split, reducescatter(4), 1024)


def test_what_cannot_be_posed():
    with pytest.raises(TopologyError, match="ring has 4 ranks and allgather 5"):
        pose(ring(4), allgather(5), 1024)
    with pytest.raises(SpecError, match="compose it"):
        pose(ring(4), allreduce(4), 1024)


@pytest.mark.skipif(not TACCL.is_dir(), reason="TACCL's sketches are not at hand")
@pytest.mark.parametrize(
    ("name", "make", "order", "representatives"),
    [
        ("sk-ndv2-n1-cUp6", allgather, 4, 12),
        ("sk1-ndv2-n1", allgather, 4, 2),
        ("sk1-dgx2-n1", allgather, 8, 2),
        ("sk1-dgx2-n2", allgather, 16, 4),
        ("sk1-dgx2-n2", alltoall, 16, 124),
        ("sk1-dgx2-n2", reducescatter, 16, 4),
        ("sk1-ndv2-n2", allgather, 2, 8),
        ("sk1-ndv2-n2", alltoall, 2, 120),
        ("sk1-ndv2-n4", allgather, 4, 8),
        ("sk1-ndv2-n4", reducescatter, 4, 8),
    ],
)
def test_taccls_sketches_on_their_machines(name, make, order, representatives):
    found = read_sketch(TACCL / "sketches" / f"{name}.json")
    machine = "dgx2" if "dgx2" in name else "ndv2"
    profile = read_profile(TACCL / "topologies" / f"topo-{machine}-1MB.json")
    topology = named(machine, nodes=found.nodes, profile=profile, cost="taccl", internode="all")
    problem = pose(topology, make(topology.ranks).refine(found.chunkup), 1 << 20, found).problem
    assert problem.symmetry.order == order
    assert len(problem.representatives) == representatives
    assert unreached(problem) is None
    allowed = problem.rules.allowed
    for image in problem.symmetry.images[1:] if allowed is not None else ():
        items, links = problem.actions.items(image), problem.actions.links(image)
        assert np.array_equal(allowed[items][:, links], allowed)


@pytest.mark.parametrize("make", [allgather, alltoall, reducescatter, broadcast], ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "keys",
    [
        {**NDV2_TWICE, "nnodes": 2},
        {
            "nnodes": 2,
            "internode_sketch": {
                "strategy": "relay",
                "internode_conn": {"1": [0], "5": [4]},
                "gpus_to_sender_rev_map": {"1": [0, 1, 2, 3], "5": [4, 5, 6, 7]},
                "enforce_ordering": True,
            },
            "symmetry_offsets": [[8, 16]],
        },
        {
            "nnodes": 4,
            "hierarchy": [
                {"group": 2, "strategy": "relay", "internode_conn": {"0": [1]}},
                {"group": 4, "strategy": "ring", "internode_conn": {"2": [3]}},
            ],
        },
    ],
    ids=["relay", "senders", "hierarchy"],
)
def test_schedules_of_sketched_problems_stand_when_unfolded(make, keys):
    """The quotient is sound: what is planned for representatives is a schedule of the whole, on the sketch's links."""
    found = parse_sketch(json.dumps(keys))
    problem = pose(named("ndv2", nodes=found.nodes), make(8 * found.nodes), 1 << 20, found).problem
    plan = first_plan(problem, Budget(seconds=5))
    schedule = expand(problem, plan)
    check(schedule)
    assert schedule.ticks == makespan(problem, plan)
