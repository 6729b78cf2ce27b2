"""Files of every form: what they mean, round trips, and errors that name file, line, key, rank or link."""

from __future__ import annotations

import json

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import NAMES
from topology_files import FILES, GRAPHML, NCCL, NCCL_SWITCH, NODE_LINK, OURS, SMI

from commlib.errors import FormatError, LimitError, TopologyError
from commlib.files.json_fields import parse_json
from commlib.topology import (
    Link,
    Resource,
    Topology,
    Unit,
    load_topology,
    machine,
    named,
    node_of,
    topology_of,
    topology_to_json,
    write_topology,
)
from commlib.topology.edges import graph_from_graphml, graph_from_node_link
from commlib.topology.json_form import topology_from_json
from commlib.topology.xml_tree import parse_tree

COSTS = st.floats(0, 1e-3, allow_subnormal=False) | st.sampled_from([0.0, 23e-6 / (1 << 20), 1 / 3])


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Any small topology: shared resources, pipelined links, nodes and a unit."""
    ranks = draw(st.integers(1, 6))
    resources = draw(st.dictionaries(NAMES, st.builds(Resource, st.none() | COSTS), max_size=3))
    taken = st.lists(st.sampled_from(sorted(resources)), unique=True).map(tuple) if resources else st.just(())
    link = st.builds(Link, COSTS, COSTS, taken, st.booleans())
    pairs = [(a, b) for a in range(ranks) for b in range(ranks) if a != b]
    links = draw(st.dictionaries(st.sampled_from(pairs), link, max_size=12)) if pairs else {}
    node_of_rank = draw(st.lists(st.integers(0, 3), min_size=ranks, max_size=ranks))
    positive = st.floats(1e-12, 1e9)
    unit = draw(st.builds(Unit, NAMES, positive, positive))
    return Topology(draw(NAMES), ranks, links, resources, tuple(node_of_rank), unit)


def put(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    return path


@given(topologies())
@settings(max_examples=80, deadline=None)
def test_our_json_loses_nothing(topology):
    text = topology_to_json(topology)
    again = topology_from_json(parse_json(text, "t"), "t")
    assert again == topology
    assert list(again.resources) == list(topology.resources)
    assert topology_to_json(again) == text


@pytest.mark.parametrize("text", ["ndv2", "dgx2", "fat_tree:4", "nodes:4x8", "torus:3x3"])
def test_machines_survive_a_file(tmp_path, text):
    made = named(text)
    write_topology(made, tmp_path / "t.json")
    assert load_topology(tmp_path / "t.json") == made == topology_of(str(tmp_path / "t.json"))


@given(topologies(), st.booleans())
@settings(max_examples=50, deadline=None)
def test_graphs_as_networkx_writes_them(topology, old_key):
    graph = nx.DiGraph(name="g")
    for rank in range(topology.ranks):
        graph.add_node(rank, node=topology.node_of[rank])
    for (a, b), link in topology.links.items():
        graph.add_edge(a, b, alpha=link.alpha, beta=link.beta)
    links = {pair: Link(link.alpha, link.beta) for pair, link in topology.links.items()}
    plain = Topology("g", topology.ranks, links, node_of=topology.node_of)
    node_link = json.loads(json.dumps(nx.node_link_data(graph, edges="links" if old_key else "edges")))
    assert graph_from_node_link(node_link, "t").topology() == plain
    graphml = "\n".join(nx.generate_graphml(graph))
    assert graph_from_graphml(parse_tree(graphml.encode(), "t"), "t").topology() == plain


def test_undirected_graphs_go_both_ways(tmp_path):
    made = load_topology(put(tmp_path, "t.json", NODE_LINK))
    assert (made.name, made.ranks, made.node_of) == ("triangle", 3, (0, 0, 1))
    assert made.links[0, 1] == made.links[1, 0] == Link(1e-6, 1e-11)
    assert made.links[2, 0] == made.links[0, 2] == Link(0, 2e-10)


def test_graphml_ranks_are_the_numbers_of_the_nodes(tmp_path):
    made = load_topology(put(tmp_path, "my_graph.graphml", GRAPHML))
    assert made.name == "my_graph"
    assert dict(made.links) == {(0, 1): Link(1e-6, 1e-11), (1, 2): Link(0, 2e-11), (2, 0): Link(0, 3e-11)}


def test_nccl_links(tmp_path):
    made = load_topology(put(tmp_path, "dgx.xml", NCCL))
    assert (made.name, made.ranks, len(made.links)) == ("dgx", 4, 12)
    assert made.links[0, 1] == made.links[1, 0] == Link(0.3e-6, 1 / 50e9)
    assert made.links[1, 2] == made.links[2, 1] == Link(0.3e-6, 1 / 25e9)
    assert made.links[2, 3] == Link(1e-6, 1 / 12e9, ("pci 0000:02:00.0 up", "pci 0000:03:00.0 down"))
    assert made.links[0, 3] == Link(
        1e-6,
        1 / 6e9,
        ("pci 0000:00:00.0 up", "pci 0000:a0:00.0 up", "pci 0000:03:00.0 down", "pci 0000:a1:00.0 down", "cpu 0 to 1"),
    )
    assert made.resources["cpu 0 to 1"] == Resource(1 / 6e9)
    assert made.resources["pci 0000:03:00.0 down"] == Resource(1 / 12e9)


def test_nccl_nics_join_nodes(tmp_path):
    made = load_topology(put(tmp_path, "dgx.xml", NCCL), nodes=2)
    assert made.links[0, 5] == Link(2.6e-6, 8e-6 / 100000, ("node 0 nic 0 out", "node 1 nic 0 in"), pipelined=True)
    assert made.links[7, 2].resources == ("node 1 nic 1 out", "node 0 nic 1 in")
    assert not made.has_link(0, 6)


def test_nvswitch_takes_ports(tmp_path):
    made = load_topology(put(tmp_path, "t.xml", NCCL_SWITCH))
    assert made.links[1, 2] == Link(0.3e-6, 1 / 300e9, ("port 1 out", "port 2 in"))
    assert made.links[0, 1] == Link(0.3e-6, 1 / 150e9, ("port 0 out", "port 1 in"))
    assert made.resources["port 0 out"] == Resource(1 / 150e9)
    with pytest.raises(TopologyError, match="nothing is known of its NICs"):
        load_topology(tmp_path / "t.xml", 2)


def test_xgmi_is_understood(tmp_path):
    text = NCCL.replace("nvlink", "xgmi").replace('tclass="0x030200"', 'tclass="0x038000"')
    assert load_topology(put(tmp_path, "t.xml", text)).links[0, 1].beta == 1 / 100e9


def test_nvidia_smi(tmp_path):
    made = load_topology(put(tmp_path, "t.txt", SMI))
    assert (made.ranks, len(made.links)) == (4, 12)
    assert made.links[0, 1] == Link(0.3e-6, 1 / 50e9)
    assert made.links[2, 1] == Link(0.3e-6, 1 / 25e9)
    assert made.links[2, 3] == Link(1e-6, 1 / 18e9, ("pci 2 up", "pci 3 down"))
    assert made.links[0, 3] == Link(1e-6, 1 / 10e9, ("pci 0 up", "pci 3 down", "numa 0 to 1"))
    two = load_topology(tmp_path / "t.txt", 2)
    assert two.links[1, 4].resources == ("node 0 nic 0 out", "node 1 nic 0 in")
    assert two.links[3, 6].resources == ("node 0 nic 1 out", "node 1 nic 1 in")


def test_nvidia_smi_of_an_nvswitch(tmp_path):
    names = [f"GPU{n}" for n in range(8)]
    rows = [[name, *("X" if name == other else "NV18" for other in names)] for name in names]
    text = "\n".join(" ".join(row) for row in [["", *names, "CPU Affinity"], *rows])
    made = load_topology(put(tmp_path, "t.txt", text))
    assert made.links[2, 5] == Link(0.3e-6, 1 / 450e9, ("port 2 out", "port 5 in"))
    pair = "\tGPU0\tGPU1\nGPU0\tX\tNV18\nGPU1\tNV18\tX\n"
    assert load_topology(put(tmp_path, "t.txt", pair)).links[0, 1].resources == ()


def changed(text: str, *path: object, **values: object) -> str:
    whole = json.loads(text)
    inner = whole
    for key in path:
        inner = inner[key]
    inner.update(values)
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "neither JSON"),
        ("[1]", "neither JSON"),
        ("{}", "its keys are neither"),
        ("{", "not JSON"),
        ("<html/>", "neither NCCL's <system> nor <graphml>"),
        ("<system>", "not well-formed"),
        ("<system/>", "there is no <gpu>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><system>&b;</system>', "DOCTYPE or entity"),
        (changed(OURS, version=2), "version: is 2"),
        (changed(OURS, ranks=1), "does not join two of its 1 ranks|has 4 entries"),
        (changed(OURS, node_of=[0]), "node_of: has 1 entries for 4 ranks"),
        (changed(OURS, extra=1), "key 'extra' is unknown"),
        (changed(OURS, resources={}), "link 0 -> 2 takes resource 'nic 0 out', which is not defined"),
        (changed(OURS, resources={"nic 0 out": -1}), "resources.nic 0 out: must be a finite"),
        (changed(OURS, "kinds", "ib", alpha=-1), "kinds.ib.alpha: must be a finite"),
        (changed(OURS, "kinds", "ib", pipelined=1), "kinds.ib.pipelined: must be true or false"),
        (changed(OURS, "unit", seconds=0), "positive seconds"),
        (changed(OURS, links=[[0, 1]]), r"links: row 0 must be \[source"),
        (changed(OURS, links=[[0, 1, "none"]]), "row 0: kind 'none' is not among kinds"),
        (changed(OURS, links=[[0, 1, "ib"], [0, 1, "ib"]]), "row 1: link 0 -> 1 is there twice"),
        (changed(OURS, links=[[0, 0, "ib"]]), "link 0 -> 0 does not join"),
        (changed(OURS, links=[[0, True, "ib"]]), "row 0 must be"),
        (changed(NODE_LINK, nodes=[{"id": "a"}]), r"links\[0\]: there is no node 'b'"),
        (changed(NODE_LINK, nodes=[{"id": "a"}, {"id": "a"}]), r"nodes\[1\].id: node 'a' is there twice"),
        (changed(NODE_LINK, nodes=[]), "at least one rank|there is no node"),
        (changed(NODE_LINK, "links", 1, beta=None), r"links\[1\]: attribute beta is missing"),
        (changed(NODE_LINK, "links", 1, beta="x"), r"links\[1\]: beta must be a finite"),
        (changed(NODE_LINK, "links", 1, source="b", target="a"), r"links\[1\]: link 1 -> 0 is there twice"),
        (changed(NODE_LINK, "nodes", 1, rank=5), "attribute rank of the nodes must be 0 to 2"),
        (changed(NODE_LINK, "nodes", 1, node=-1), "attribute node must be an integer"),
        (changed(NODE_LINK, "links", 0, source=["a"]), "there is no node"),
        (GRAPHML.replace('id="d1" for', 'id="d7" for'), "data key 'd1' is not declared"),
        (GRAPHML.replace('attr.type="double"/>', 'attr.type="double"><default>5</default></key>'), "has a default"),
        (GRAPHML.replace("1e-11", "nan"), "beta must be a finite"),
        (GRAPHML.replace('target="2"', 'target="9"'), "there is no node '9'"),
        (GRAPHML.replace("<node id", "<edge id"), "attribute source of <edge> is missing"),
        (NCCL.replace('rank="3"', 'rank="0"'), "rank 0 is there twice"),
        (NCCL.replace("0000:03:00.0", "0000:02:00.0"), "busid 0000:02:00.0 is there twice"),
        (NCCL.replace('count="2"', 'count="two"'), "count='two' is not an integer"),
        (NCCL.replace('count="2"', 'count="999"'), "count='999' is not an integer from 1 to 64"),
        (NCCL.replace('link_width="16"', 'link_width="-16"', 1), "link_width='-16'"),
        (NCCL.replace('speed="100000"', 'speed="fast"', 1), "speed='fast'"),
        (SMI.replace("GPU1\tNV2", "GPU1\tNV1"), "GPU0 to GPU1 is NV2, but GPU1 to GPU0 is NV1"),
        (SMI.replace("GPU1\tNV2", "GPU1\tXYZ"), "GPU1: to GPU0: 'XYZ' is not X"),
        (SMI.replace("GPU1\tNV2", "GPU1\tX"), "X is a device to itself"),
        (SMI.replace("GPU3\tSYS", "GPU2\tSYS"), "GPU2: is there twice"),
        (SMI.replace("GPU3\tSYS", "gone\tSYS"), "the row of GPU3 is missing"),
        (SMI.split("GPU1\tNV2")[0] + "GPU1\tNV2", "has 1 paths for 6 devices"),
    ],
)
def test_refusals_of_files(tmp_path, content, message):
    path = put(tmp_path, "t.any", content)
    with pytest.raises(FormatError, match=message) as caught:
        load_topology(path)
    assert str(path) in str(caught.value)
    assert caught.value.fields["file"] == str(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(OURS, ranks=10**6), "more than 4096 ranks"),
        ("<a>" * 30 + "</a>" * 30, "max_depth = 24"),
        (f"<system a='{'x' * 9000}'/>", "max_attribute_length"),
        ("\t".join(f"GPU{n}" for n in range(300)), "more than 256 devices"),
        ("<system>" + "<cpu/>" * (1 << 19) + "</system>", "max_elements"),
        (" " * (16 << 20) + "{}", "larger than the limit"),
    ],
)
def test_limits(tmp_path, content, message):
    with pytest.raises(LimitError, match=message):
        load_topology(put(tmp_path, "t.any", content))


def test_a_text_is_a_name_or_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        put(tmp_path, name, content)
        assert topology_of(name) == load_topology(name)
    assert topology_of("ring:4") == named("ring:4")
    assert node_of("ndv2").cluster(2) == named("ndv2", 2)
    with pytest.raises(FormatError, match="cannot be read"):
        topology_of("missing.json")
    with pytest.raises(TopologyError, match="a file has its own"):
        topology_of("ours.json", profile=machine("ndv2").profile)
