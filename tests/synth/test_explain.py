"""Infeasible sketches: which of their statements clash, and which rank cannot be reached from where."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

from commlib.collectives import allgather, alltoall, broadcast, reducescatter
from commlib.topology import Topology, named
from synth.errors import SynthesisError
from synth.explain import Explanation, explain, reach, smallest
from synth.pose import pose
from synth.sketch import Sketch, parse_sketch

CONN, SENDERS = "internode_sketch.internode_conn", "internode_sketch.gpus_to_sender_rev_map"


def sketch(nodes: int, conn: object, senders: object = None, **keys: object) -> Sketch:
    internode = {"strategy": "relay", "internode_conn": conn}
    if senders is not None:
        internode["gpus_to_sender_rev_map"] = senders
    return parse_sketch(json.dumps({"nnodes": nodes, "internode_sketch": internode, **keys}), "s.json")


def machine(nodes: int = 2) -> Topology:
    return named("a100", nodes=nodes, internode="all")


def explained(found: Sketch, make=allgather) -> Explanation | None:
    topology = machine(found.nodes)
    return explain(topology, found, make(topology.ranks))


def test_nothing_to_explain():
    assert explained(sketch(2, {"0": [1]})) is None
    assert explained(sketch(2, {"1": [0]}, {"1": list(range(8))})) is None


def test_a_gpu_without_a_sender():
    found = explained(sketch(2, {"1": [0], "3": [2]}, {"1": [0, 1, 4, 5], "3": [2, 3, 6]}))
    assert found.origin == 7
    assert found.rank == 8
    assert found.reached == tuple(range(8))
    assert found.statements == (SENDERS,)
    assert found.text == (
        "s.json: rank 8 cannot be reached from rank 7, only ranks 0, 1, 2, 3, 4, 5, 6, 7; these statements clash: "
        f"{SENDERS} (items of other GPUs have no sender)"
    )


def test_a_sender_that_is_linked_to_nobody():
    found = explained(sketch(2, {"1": [0]}, {"1": [0, 1, 2, 3], "4": [4, 5, 6, 7]}))
    assert (found.origin, found.rank) == (4, 8)
    assert found.statements == (CONN, f'{SENDERS}["4"]')
    assert "GPU 4" in found.text
    assert "no other GPU sends to other nodes" in found.text


def test_direct_maps_and_senders_on_a_split_node():
    """Items of GPU 1 leave through GPU 1, which no link leaves inside of the node: nothing brings them on there."""
    links = {pair: link for pair, link in machine().links.items() if not (pair[0] == 9 and pair[1] > 7)}
    topology = Topology("cut", 16, links, machine().resources, machine().node_of)
    senders = {str(gpu): [gpu] for gpu in range(8)}
    found = explain(topology, sketch(2, "direct-map", senders), allgather(16))
    assert found.origin == 1
    assert set(found.statements) < {"internode_sketch.strategy", CONN, f'{SENDERS}["1"]'}


def test_relays_that_may_not_travel_on():
    """Nodes in a line: the middle has links to both ends, and an item that crosses once never gets to the far one."""
    links = {pair: link for pair, link in machine(3).links.items() if abs(pair[0] // 8 - pair[1] // 8) < 2}
    topology = Topology("three in a line", 24, links, machine(3).resources, machine(3).node_of)
    levels = [{"group": 3, "strategy": "relay"}]
    text = {"nnodes": 3, "internode_sketch": {"strategy": "none"}, "hierarchy": levels}
    once = parse_sketch(json.dumps(text), "s.json")
    found = explain(topology, once, allgather(24))
    assert (found.origin, found.rank) == (0, 16)
    assert found.reached == tuple(range(16))
    assert found.statements == ("hierarchy[0].strategy",)
    levels[0]["strategy"] = "none"
    assert explain(topology, parse_sketch(json.dumps(text)), allgather(24)) is None


def test_collectives_differ_in_what_they_need():
    some = sketch(2, {"1": [0]}, {"1": [0, 1]})
    assert explained(some, broadcast) is None  # only GPU 0's items leave
    assert explained(some, allgather).origin == 2
    assert explained(some, alltoall).origin == 2
    backwards = explained(some, reducescatter)
    assert backwards.statements == (SENDERS,)
    assert "sums for rank 2 cannot come from rank 8" in backwards.text


def test_statements_are_minimal():
    """Leaving out any one of them gives the rank a way, and no smaller list of keys explains it."""
    bad = sketch(2, {"1": [0], "3": [2]}, {"1": [0, 1], "3": [2, 3], "6": [4, 5, 6, 7]})
    statements = explained(bad).statements
    assert statements == (CONN, f'{SENDERS}["6"]')
    for left_out in statements:
        text = {"1": [0], "3": [2], **({"6": [6]} if left_out == CONN else {})}
        senders = {"1": [0, 1], "3": [2, 3], "6": [4, 5, 6, 7]}
        if left_out != CONN:
            del senders["6"]
            senders["1"] = [0, 1, 4, 5, 6, 7]
        assert explained(sketch(2, text, senders)) is None


def test_deletion_against_all_subsets():
    """A contradiction is any of some sets; what is found is one of them and has no smaller one inside."""
    keys = list("abcdef")
    cores = [{"a", "c"}, {"b", "c", "d"}, {"e", "f"}]

    def fails(without: frozenset[str]) -> bool:
        return any(not core & without for core in cores)

    found = set(smallest(keys, fails))
    assert found in cores
    smaller = [set(some) for size in range(len(found)) for some in combinations(sorted(found), size)]
    assert not any(fails(frozenset(keys) - some) for some in smaller)


def test_posing_says_so():
    bad = sketch(2, {"1": [0]}, {"1": [0, 1, 2], "4": [3]}, symmetry_offsets=[[8, 16]])
    with pytest.raises(SynthesisError, match=r"s\.json: rank 8 cannot be reached from rank 3") as caught:
        pose(machine(), allgather(16), 1024, bad)
    assert caught.value.fields["rank"] == 8
    assert caught.value.fields["origin"] == 3
    assert caught.value.fields["statements"] == (CONN, f'{SENDERS}["4"]')


def test_reach():
    source, target = np.array([0, 1, 3]), np.array([1, 2, 0])
    assert reach(4, 0, source, target).tolist() == [True, True, True, False]
    assert reach(4, 3, source, target).all()
