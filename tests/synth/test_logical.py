"""What a sketch leaves of a topology: links, ports, and which items may take which link."""

from __future__ import annotations

import json

import numpy as np
import pytest

from commlib.collectives import allgather, alltoall, reducescatter
from commlib.demand import demand
from commlib.topology import Link, Resource, Topology, named, ring
from synth.errors import SketchError
from synth.logical import Logical, logical
from synth.sketch import Sketch, parse_sketch

LOCAL = 4


def cluster(nodes: int, local: int = LOCAL) -> Topology:
    """Nodes of fully connected ranks, all linked to all of other nodes through one NIC per node."""
    ranks = range(nodes * local)
    links = {}
    for a in ranks:
        for b in ranks:
            if a // local == b // local:
                links[a, b] = Link(1e-6, 1e-9)
            else:
                links[a, b] = Link(2e-6, 4e-9, (f"out {a // local}", f"in {b // local}"), True)
    links = {pair: link for pair, link in links.items() if pair[0] != pair[1]}
    nics = {f"{way} {node}": Resource() for way in ("out", "in") for node in range(nodes)}
    return Topology("cluster", len(ranks), links, nics, tuple(rank // local for rank in ranks))


def sketch(nodes: int, **keys: object) -> Sketch:
    return parse_sketch(json.dumps({"nnodes": nodes, **keys}), "s.json")


def relay(conn: object, **keys: object) -> dict[str, object]:
    return {"strategy": "relay", "internode_conn": conn, **keys}


def between(found: Logical, local: int = LOCAL) -> list[tuple[int, int]]:
    return [(a, b) for a, b in sorted(found.topology.links) if a // local != b // local]


def crossings(found: Logical, item: int, local: int = LOCAL) -> list[tuple[int, int]]:
    """The links between nodes that an item may take."""
    links = sorted(found.topology.links)
    return [(a, b) for e, (a, b) in enumerate(links) if a // local != b // local and found.rules.allowed[item, e]]


def apply(nodes: int, make=allgather, **keys: object) -> Logical:
    topology = cluster(nodes)
    return logical(topology, sketch(nodes, **keys), demand(make(topology.ranks), 1024))


def test_connections_hold_for_every_ordered_pair_of_nodes():
    found = apply(3, internode_sketch=relay({"0": [1]}))
    assert between(found) == [(0, 5), (0, 9), (4, 1), (4, 9), (8, 1), (8, 5)]
    assert sum(a // LOCAL == b // LOCAL for a, b in found.topology.links) == 3 * 12


def test_words_for_connections():
    direct = apply(2, internode_sketch=relay("direct-map"))
    assert between(direct) == [(0, 4), (1, 5), (2, 6), (3, 7), (4, 0), (5, 1), (6, 2), (7, 3)]
    assert len(between(apply(2, internode_sketch=relay("fully-connected")))) == 32


def test_without_a_word_about_nodes_all_links_stay_and_all_items_may_take_them():
    found = apply(2)
    assert len(between(found)) == 32
    assert found.rules.allowed is None


def test_relayed_items_cross_once_and_only_where_somebody_wants_them():
    found = apply(3, internode_sketch=relay({"0": [1]}))
    assert crossings(found, 2) == [(0, 5), (0, 9)]
    assert crossings(found, 9) == [(8, 1), (8, 5)]
    found = apply(3, alltoall, internode_sketch=relay({"0": [1]}))
    by_ends = {(item.origin, *item.destinations): k for k, item in enumerate(demand(alltoall(12), 1).items)}
    assert crossings(found, by_ends[2, 10]) == [(0, 9)]
    assert crossings(found, by_ends[2, 3]) == []


def test_senders_are_heeded():
    senders = {"1": [0, 1], "3": [2, 3]}
    found = apply(2, internode_sketch=relay({"1": [0], "3": [2]}, gpus_to_sender_rev_map=senders))
    assert [crossings(found, rank) for rank in range(4)] == [[(1, 4)], [(1, 4)], [(3, 6)], [(3, 6)]]
    assert crossings(found, 6) == [(7, 2)]


def test_a_gpu_with_two_senders_may_use_both():
    senders = {"1": [0, 1, 2, 3], "3": [0]}
    found = apply(2, internode_sketch=relay({"1": [0], "3": [2]}, gpus_to_sender_rev_map=senders))
    assert crossings(found, 0) == [(1, 4), (3, 6)]
    assert crossings(found, 3) == [(1, 4)]


def test_own_items_first_on_the_senders_links():
    sending = relay({"1": [0], "3": [2]}, gpus_to_sender_rev_map={"1": [0, 1, 2, 3]}, enforce_ordering=True)
    found = apply(2, internode_sketch=sending)
    links = sorted(found.topology.links)
    assert sorted(links[e] for e in found.rules.own_first) == [(1, 4), (5, 0)]
    assert apply(2, internode_sketch=relay({"1": [0]})).rules.own_first == frozenset()


def test_what_reduces_runs_over_the_same_links_turned_round():
    """A sum for rank 0 leaves node 1 through the sender that is mapped to GPU 0, over a link that the sketch lists."""
    sending = relay({"1": [0], "3": [2]}, gpus_to_sender_rev_map={"1": [0, 1], "3": [2, 3]}, enforce_ordering=True)
    found = apply(2, reducescatter, internode_sketch=sending)
    assert between(found) == [(0, 5), (2, 7), (4, 1), (6, 3)]
    assert [crossings(found, rank) for rank in (0, 1, 2, 7)] == [[(0, 5)], [(0, 5)], [(2, 7)], [(6, 3)]]
    links = sorted(found.topology.links)
    assert sorted(links[e] for e in found.rules.own_first) == [(0, 5), (2, 7), (4, 1), (6, 3)]


def test_rings_of_nodes_pass_items_on_but_never_home():
    found = apply(4, internode_sketch=relay({"0": [1]}), hierarchy=[{"group": 4, "strategy": "ring"}])
    assert between(found) == [(0, 5), (0, 13), (4, 1), (4, 9), (8, 5), (8, 13), (12, 1), (12, 9)]
    assert crossings(found, 2) == [(0, 5), (0, 13), (4, 9), (8, 5), (8, 13), (12, 9)]


def test_recursive_doubling_links_nodes_that_differ_in_a_bit():
    found = apply(4, hierarchy=[{"group": 4, "strategy": "recursive-doubling", "internode_conn": "direct-map"}])
    assert {(a // LOCAL, b // LOCAL) for a, b in between(found)} == {
        (a, b) for a in range(4) for b in range(4) if bin(a ^ b).count("1") == 1
    }


def test_levels_have_their_own_connections():
    levels = [
        {"group": 2, "strategy": "direct", "internode_conn": {"0": [1]}},
        {"group": 4, "strategy": "relay", "internode_conn": {"2": [3]}},
    ]
    found = apply(4, hierarchy=levels)
    inner = [(0, 5), (4, 1), (8, 13), (12, 9)]
    outer = [(2, 11), (6, 15), (10, 3), (14, 7)]
    assert between(found) == sorted(inner + outer)
    # From node 0 to node 3 by way of node 1 or of node 2; the inner hop of the other half starts where the first did.
    assert crossings(found, 0) == [(0, 5), (2, 11), (6, 15), (8, 13)]


def test_direct_levels_know_no_senders():
    sending = {"strategy": "none", "gpus_to_sender_rev_map": {"1": [0, 1, 2, 3]}}
    levels = [{"group": 2, "strategy": "direct", "internode_conn": "direct-map"}]
    assert len(crossings(apply(2, internode_sketch=sending, hierarchy=levels), 0)) == 4
    levels[0]["strategy"] = "relay"
    assert crossings(apply(2, internode_sketch=sending, hierarchy=levels), 0) == [(1, 5)]


def test_a_connection_that_the_topology_lacks_is_an_error_that_names_it():
    topology = cluster(3)
    links = {pair: link for pair, link in topology.links.items() if pair != (1, 9)}
    broken = Topology("cluster", 12, links, topology.resources, topology.node_of)
    direct = sketch(3, internode_sketch=relay("direct-map"))
    with pytest.raises(SketchError, match=r"s\.json: .*conn: cluster has no link 1 -> 9 \(GPU 1 of node 0") as caught:
        logical(broken, direct, demand(allgather(12), 1))
    assert caught.value.fields["link"] == (1, 9)
    with pytest.raises(SketchError, match=r'internode_conn\["0"\]: .* has no link 0 -> 9'):
        logical(named("a100", nodes=2), sketch(2, internode_sketch=relay({"0": [1]})), demand(allgather(16), 1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"internode_sketch": relay({"4": [0]})}, r'internode_conn\["4"\]: there is no GPU 4: a node of cluster has 4'),
        ({"internode_sketch": relay({"0": [7]})}, r'internode_conn\["0"\]: there is no GPU 7'),
        (
            {"internode_sketch": relay({"0": [0]}, gpus_to_sender_rev_map={"0": [5]})},
            r'gpus_to_sender_rev_map\["0"\]: there is no GPU 5',
        ),
        ({"symmetry_offsets": [[1, 3]]}, r"symmetry_offsets\[0\]: groups of 3 do not divide the 8 ranks"),
        (
            {"intranode_sketch": {"strategy": "switch", "switches": [[0, 9]], "switch_hyperedge_strategy": ["none"]}},
            "switches: there is no GPU 9",
        ),
    ],
)
def test_gpus_that_do_not_exist(keys, message):
    with pytest.raises(SketchError, match=message):
        apply(2, **keys)


def test_the_number_of_nodes_must_fit():
    with pytest.raises(SketchError, match=r"the sketch is for 2 node\(s\), and ring has 1"):
        logical(ring(4), sketch(2), demand(allgather(4), 1))
    uneven = Topology("uneven", 3, {}, {}, (0, 0, 1))
    with pytest.raises(SketchError, match="node 1 of uneven has 1 ranks and node 0 has 2"):
        logical(uneven, sketch(2), demand(allgather(3), 1))


def switched(*rows: list[int]) -> dict[str, object]:
    return {"strategy": "switch", "switches": list(rows), "switch_hyperedge_strategy": ["uc-min"] * len(rows)}


def test_switches_get_ports_where_there_are_none():
    found = apply(2, intranode_sketch=switched([0, 1, 2]))
    links = found.topology.links
    assert links[0, 1].resources == ("switch 0 of node 0, out-port of rank 0", "switch 0 of node 0, in-port of rank 1")
    assert links[6, 5].resources == ("switch 0 of node 1, out-port of rank 6", "switch 0 of node 1, in-port of rank 5")
    assert links[0, 3].resources == ()  # outside of the switch: it stays as it is
    assert found.rules.switches == ((frozenset({0, 1, 2}), "uc-min"), (frozenset({4, 5, 6}), "uc-min"))


def test_switches_of_a_machine_have_their_ports():
    machine = named("dgx2")
    every = switched(list(range(16)))
    found = logical(machine, sketch(1, intranode_sketch=every), demand(allgather(16), 1))
    assert found.topology.resources.keys() == machine.resources.keys()


def test_a_switch_that_is_listed_twice_is_one():
    found = apply(1, intranode_sketch=switched([0, 1, 2, 3], [3, 2, 1, 0]))
    assert len(found.topology.resources) == 2 + 8
    assert len(found.rules.switches) == 1
    assert any("one switch" in note for note in found.notes)


def test_preferences_for_busy_and_idle_links():
    assert apply(1, intranode_sketch={"strategy": "minmax"}).rules.spread == "minmax"
    assert apply(1, intranode_sketch={"strategy": "none"}).rules.spread == ""


def test_one_node_needs_no_words_about_others():
    found = apply(1, internode_sketch=relay({"0": [1]}))
    assert found.notes == ("internode_sketch is not used: there is one node",)
    assert found.rules.allowed is None


def test_ranks_of_a_node_need_not_be_neighbours():
    links = {(a, b): Link(1e-6, 1e-9) for a in range(4) for b in range(4) if a != b}
    topology = Topology("interleaved", 4, links, {}, (0, 1, 0, 1))
    found = logical(topology, sketch(2, internode_sketch=relay({"0": [1]})), demand(allgather(4), 1))
    assert sorted(found.topology.links) == [(0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (3, 1)]
    assert np.flatnonzero(~found.rules.allowed[0]).tolist() == [2]
