"""Named machines and shapes: counts, costs, published figures, several nodes, and what is refused."""

from __future__ import annotations

from itertools import combinations

import pytest

from commlib.errors import LimitError, TopologyError
from commlib.topology import (
    MACHINES,
    SHAPES,
    Link,
    Topology,
    cost_table,
    internode_link,
    machine,
    named,
    named_node,
    shape,
)

MIB = 1 << 20


def in_units(link: Link, topology: Topology) -> tuple[float, float]:
    """(latency, busy) for one chunk in the profile's unit."""
    unit = topology.unit
    return tuple(
        round(time / unit.seconds, 9) for time in (link.latency(unit.chunk_bytes), link.busy(unit.chunk_bytes))
    )


@pytest.mark.parametrize(
    ("text", "nodes", "ranks", "links", "resources", "machines"),
    [
        ("ring:8", 1, 8, 16, 0, 1),
        ("line:8", 1, 8, 14, 0, 1),
        ("mesh:2x4", 1, 8, 20, 0, 1),
        ("mesh:3x3", 1, 9, 24, 0, 1),
        ("torus:8x8x8", 1, 512, 3072, 0, 1),
        ("torus(4x4)", 1, 16, 64, 0, 1),
        ("Torus: 2 x 3", 1, 6, 18, 0, 1),
        ("hypercube:4", 1, 16, 64, 0, 1),
        ("hypercube:0", 1, 1, 0, 0, 1),
        ("star:5", 1, 5, 8, 0, 1),
        ("fully-connected:6", 1, 6, 30, 0, 1),
        ("fat_tree:2", 1, 2, 2, 12, 1),
        ("fat_tree:4", 1, 16, 240, 96, 1),
        ("dragonfly:2x1x1", 1, 6, 30, 24, 1),
        ("dragonfly:4x2x2", 1, 72, 5112, 324, 1),
        ("ring:4", 3, 12, 48, 24, 3),
        ("ndv2", 1, 8, 32, 0, 1),
        ("NDv2", 2, 16, 192, 4, 2),
        ("dgx-1", 2, 16, 96, 16, 2),
        ("dgx2", 1, 16, 240, 32, 1),
        ("dgx2", 2, 32, 544, 96, 2),
        ("DGX A100", 2, 16, 128, 64, 2),
        ("h100", 2, 16, 128, 64, 2),
        ("mi250x", 1, 8, 24, 0, 1),
        ("mi250x", 2, 16, 80, 16, 2),
        ("nodes:16x8", 1, 128, 2816, 512, 16),
    ],
)
def test_counts(text, nodes, ranks, links, resources, machines):
    made = named(text, nodes)
    assert (made.ranks, len(made.links), len(made.resources), made.nodes) == (ranks, links, resources, machines)
    assert all((b, a) in made.links for a, b in made.links)


def test_every_shape_has_an_example_and_costs_ten():
    for made in SHAPES.values():
        example = named(made.example)
        assert {in_units(link, example) for link in example.links.values()} == {(10, 10)}


def test_fat_tree_routes():
    links = shape("fat_tree:4").links
    assert links[0, 1].resources == ("host 0 out", "host 1 in")
    assert links[0, 3].resources == ("host 0 out", "edge 0 up 1", "edge 1 down 1", "host 3 in")
    assert links[0, 14].resources == (
        "host 0 out", "edge 0 up 0", "pod 0 switch 0 up 1", "pod 3 switch 0 down 1", "edge 7 down 0", "host 14 in",
    )  # fmt: skip


def test_fat_tree_carries_a_shift_without_conflict():
    """D-mod-k: a shift permutation takes no cable twice (Zahavi et al.)."""
    links = shape("fat_tree:4").links
    for shift in range(1, 16):
        taken = [name for rank in range(16) for name in links[rank, (rank + shift) % 16].resources]
        assert len(taken) == len(set(taken))


def test_dragonfly_routes_are_minimal():
    links = shape("dragonfly:2x1x1").links
    assert links[0, 1].resources == ("host 0 out", "group 0 router 0 to 1", "host 1 in")
    assert links[0, 2].resources == ("host 0 out", "group 0 to group 1", "group 1 router 1 to 0", "host 2 in")
    assert links[3, 0].resources == ("host 3 out", "group 1 to group 0", "host 0 in")
    for (a, b), link in shape("dragonfly:4x2x2").links.items():
        cables = [name for name in link.resources if "to group" in name]
        assert cables == ([] if a // 8 == b // 8 else [f"group {a // 8} to group {b // 8}"])
        assert len(link.resources) <= 5


@pytest.mark.parametrize("name", ["ndv2", "dgx1"])
def test_hybrid_cube_mesh(name):
    """Six lanes per GPU; the cut bound 53.67 and the distance 69 that the field knows."""
    made = named(name, cost="taccl")
    busy = {pair: in_units(link, made)[1] for pair, link in made.links.items()}
    assert sorted(busy.values()) == [23] * 16 + [46] * 16
    assert all(sorted(busy[r, p] for p in made.neighbours(r)) == [23, 23, 46, 46] for r in range(8))
    bound = max(
        len(inside) / sum(1 / busy[a, b] for a, b in busy if a in inside and b not in inside)
        for size in range(1, 8)
        for inside in map(set, combinations(range(8), size))
    )
    assert bound == pytest.approx(7 / (2 / 23 + 2 / 46)) == pytest.approx(53.67, abs=0.01)
    assert max(distances(made, busy, 1)) == 69
    assert [max(distances(made, busy, rank)) for rank in range(8)] == [69] * 8


def distances(made: Topology, cost: dict[tuple[int, int], float], root: int) -> list[float]:
    """Bellman-Ford."""
    found = [float("inf")] * made.ranks
    found[root] = 0
    for _ in range(made.ranks):
        for (a, b), value in cost.items():
            found[b] = min(found[b], found[a] + value)
    return found


def test_default_costs():
    ndv2, dgx2 = named("ndv2", 2), named("dgx2", 2)
    assert in_units(ndv2.links[0, 1], ndv2) == (23.3, 23.3)
    assert in_units(ndv2.links[0, 2], ndv2) == (46.3, 46.3)
    assert in_units(ndv2.links[7, 8], ndv2) == (107.6, 105)
    assert in_units(dgx2.links[0, 1], dgx2) == (8.3, 8.3)
    assert in_units(dgx2.links[0, 17], dgx2) == (107.6, 105)
    taccl = named("dgx2", 2, cost="taccl")
    assert in_units(taccl.links[0, 1], taccl) == (8, 8)
    assert in_units(taccl.links[0, 17], taccl) == (108, 105)


def test_whole_ticks_are_exact():
    table = cost_table(named("ndv2"), [MIB])
    assert sorted({table.seconds(int(t)) for t in table.busy[:, 0]}) == [pytest.approx(23.3e-6), pytest.approx(46.3e-6)]
    assert sorted({int(t) for t in table.busy[:, 0]}) == [233, 463]


def test_ports_of_a_switch():
    made = named("dgx2", 2)
    assert made.links[3, 5].resources == ("node 0 port 3 out", "node 0 port 5 in")
    assert named("dgx2").links[3, 5].resources == ("port 3 out", "port 5 in")
    assert made.links[19, 21].resources == ("node 1 port 3 out", "node 1 port 5 in")


def test_links_between_nodes():
    dgx2 = named("dgx2", 2)
    assert [peer for peer in dgx2.neighbours(3) if peer >= 16] == [18, 19]
    assert dgx2.links[3, 18].resources == ("node 0 nic 1 out", "node 1 nic 1 in")
    h100 = named("h100", 3)
    assert [peer for peer in h100.neighbours(1) if peer >= 8] == [9, 17]
    whole = named("h100", 2, internode="all")
    assert [peer for peer in whole.neighbours(1) if peer >= 8] == list(range(8, 16))
    none = named("h100", 2, internode="none")
    assert not any(a // 8 != b // 8 for a, b in none.links)
    assert none.resources == whole.resources


def test_internode_link_is_the_one_of_the_topology():
    for made in MACHINES.values():
        whole = made.topology(2, internode="all")
        size = made.ranks
        for ends in ((0, size), (size - 1, size + 1), (size, 2)):
            assert internode_link(made, *ends) == whole.links[ends]
            assert internode_link(made.node(), *ends) == internode_link(made.node().fabric, *ends)
    with pytest.raises(TopologyError, match="link 0 -> 1 is inside node 0"):
        internode_link(machine("ndv2"), 0, 1)


def test_mi250x_links():
    made = named("mi250x")
    rates = {pair: round(1e-9 / link.beta) for pair, link in made.links.items()}
    assert (rates[0, 1], rates[0, 6], rates[0, 2]) == (200, 100, 50)
    assert all(sum(rates[r, p] for p in made.neighbours(r)) == 350 for r in range(8))


def test_every_machine_states_its_figures():
    for name, made in MACHINES.items():
        assert made.name == name == machine(name.upper()).name
        assert "us per MiB" in made.figures
        assert made.profile.gpus == made.ranks
        assert made.profile.nics == len(set(made.nics))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: named("ndv3"), TopologyError, "near: ndv2"),
        (lambda: named("toros:8"), TopologyError, "near: torus:8x8x8"),
        (lambda: named("nonsense"), TopologyError, "there are ndv2, dgx1"),
        (lambda: machine("ring"), TopologyError, "no known topology"),
        (lambda: shape("ndv2"), TopologyError, "no known topology"),
        (lambda: named(""), TopologyError, "no known topology"),
        (lambda: named("torus"), TopologyError, "written torus:AxB"),
        (lambda: named("ring:4x4"), TopologyError, "written ring:RANKS"),
        (lambda: named("ring:x"), TopologyError, "not numbers joined by x"),
        (lambda: named("ring:0"), TopologyError, "at least one rank"),
        (lambda: named("fat_tree:5"), TopologyError, "even"),
        (lambda: named("dragonfly:0x1x1"), TopologyError, "at least 1"),
        (lambda: named("nodes:0x8"), TopologyError, "COUNTxRANKS"),
        (lambda: named("nodes:2x8", 2), TopologyError, "says itself"),
        (lambda: named("ndv2:3"), TopologyError, "takes no numbers"),
        (lambda: named("ndv2", 0), TopologyError, "at least one node"),
        (lambda: named("ndv2", 2, internode="some"), TopologyError, "internode is one of"),
        (lambda: named("ndv2", cost="cheap"), TopologyError, "cost is one of exact, taccl"),
        (lambda: named("ring:4", profile=machine("ndv2").profile), TopologyError, "this is a shape"),
        (lambda: named("ndv2", profile=machine("dgx2").profile), TopologyError, "gpus_per_node is 16"),
        (lambda: named("ndv2", profile=machine("h100").profile), TopologyError, "2 kinds of link"),
        (lambda: named("torus:99999x99999"), LimitError, "more than 4096 ranks"),
        (lambda: named("fat_tree:32"), LimitError, "more than 4096 ranks"),
        (lambda: named("fully_connected:2000"), LimitError, "links"),
        (lambda: named("ndv2", 10_000), LimitError, "ranks"),
        (lambda: named("hypercube:30"), TopologyError, "0 to 16 dimensions"),
        (lambda: named("mesh:" + "x".join("1" * 20)), TopologyError, "at most 12 dimensions"),
    ],
)
def test_refusals_of_names(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_a_shape_of_several_nodes_has_a_nic_per_rank():
    node = named_node("ring:4")
    assert node.fabric.nics == (0, 1, 2, 3)
    assert node.cluster(2).links[1, 5].resources == ("node 0 nic 1 out", "node 1 nic 1 in")
