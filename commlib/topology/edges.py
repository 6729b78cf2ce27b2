"""Graphs in the field's exchange formats: networkx node-link JSON and GraphML, both without networkx.

An edge has ``beta`` (seconds per byte) and may have ``alpha`` (seconds, default 0); an undirected edge is a link each
way. A vertex may have ``node`` (the machine it is in) and ``rank``. Without ranks, vertices named 0 to n - 1 are those
ranks, and others count in the order of the file. Further attributes mean nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from commlib.errors import CommlibError, FormatError
from commlib.files.json_fields import Fields, Json
from commlib.topology.limits import check_size
from commlib.topology.model import Link, Topology
from commlib.topology.numbers import is_cost
from commlib.topology.xml_tree import Element

_MEANT = ("alpha", "beta", "node", "rank")


@dataclass(frozen=True)
class Edge:
    """An edge as the file has it: names of its ends, its attributes, and where it stands."""

    source: Json
    target: Json
    attributes: Mapping[str, Json]
    where: str


@dataclass(frozen=True)
class Graph:
    """A graph as a file has it: vertices with their attributes, in order, and edges."""

    file: str
    name: str
    directed: bool
    vertices: dict[Json, Mapping[str, Json]]
    edges: list[Edge]

    def fail(self, message: str) -> NoReturn:
        """Raise the FormatError for this graph."""
        raise FormatError(f"{self.file}: {message}", file=self.file)

    def topology(self) -> Topology:
        """The topology of the graph. O(edges).

        Raises:
            FormatError: an edge without costs, between unknown vertices, or there twice; ranks that do not count.
            LimitError: too many vertices or edges.
        """
        count = len(self.vertices)
        check_size(self.file, count, len(self.edges) * (1 if self.directed else 2))
        rank_of, links = self._ranks(), {}
        for edge in self.edges:
            ends = (self._end(rank_of, edge, edge.source), self._end(rank_of, edge, edge.target))
            for pair in (ends,) if self.directed else (ends, ends[::-1]):
                if pair in links:
                    self.fail(f"{edge.where}: link {pair[0]} -> {pair[1]} is there twice")
                links[pair] = Link(self._cost(edge, "alpha", 0.0), self._cost(edge, "beta", None))
        try:
            return Topology(self.name, count, links, node_of=self._nodes(rank_of))
        except CommlibError as error:
            raise FormatError(f"{self.file}: {error.message}", **{**error.fields, "file": self.file}) from error

    def _end(self, rank_of: dict[Json, int], edge: Edge, name: Json) -> int:
        if type(name) not in (str, int) or name not in rank_of:
            self.fail(f"{edge.where}: there is no node {str(name)[:40]!r}")
        return rank_of[name]

    def _cost(self, edge: Edge, key: str, default: float | None) -> float:
        value = edge.attributes.get(key, default)
        if value is None:
            self.fail(f"{edge.where}: attribute {key} is missing (seconds per byte)")
        number = _number(value)
        if not is_cost(number):
            self.fail(f"{edge.where}: {key} must be a finite number of 0 or more, not {str(value)[:40]!r}")
        return float(number)

    def _ranks(self) -> dict[Json, int]:
        names = list(self.vertices)
        given = [attributes["rank"] for attributes in self.vertices.values() if "rank" in attributes]
        if given:
            numbers = [_whole(value) for value in given]
            if sorted(number for number in numbers if number is not None) != list(range(len(names))):
                self.fail(f"attribute rank of the nodes must be 0 to {len(names) - 1}, each once, or not be there")
            return {name: number for name, number in zip(names, numbers, strict=True) if number is not None}
        own = [_whole(name) for name in names]
        if sorted(number for number in own if number is not None) == list(range(len(names))):
            return {name: number for name, number in zip(names, own, strict=True) if number is not None}
        return {name: number for number, name in enumerate(names)}

    def _nodes(self, rank_of: dict[Json, int]) -> tuple[int, ...]:
        nodes = [0] * len(rank_of)
        for name, attributes in self.vertices.items():
            number = _whole(attributes.get("node", 0))
            if number is None:
                self.fail(f"node {str(name)[:40]!r}: attribute node must be an integer from 0 on")
            nodes[rank_of[name]] = number
        return tuple(nodes)


def _number(value: Json) -> Json:
    if not isinstance(value, str) or len(value) > 60:
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _whole(value: Json) -> int | None:
    """A JSON integer, or a string of decimal digits, below 2**31."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 11:
        value = int(value)
    return value if type(value) is int and 0 <= value < 1 << 31 else None


def graph_from_node_link(value: Json, file: str) -> Graph:
    """The graph in networkx's node-link JSON: nodes with ids, links (or edges) with source and target.

    Raises:
        FormatError: not node-link JSON, a node that is there twice, or a multigraph; with file and key.
    """
    fields = Fields.of(value, file, "graph")
    key = "links" if "links" in fields.values else "edges"
    fields.check_keys({"nodes", key}, {"directed", "multigraph", "graph"})
    if "multigraph" in fields.values and fields.boolean("multigraph") and _has_parallel(fields, key):
        fields.fail("two links between the same nodes; add their rates into one", key="multigraph")
    vertices: dict[Json, Mapping[str, Json]] = {}
    for number, entry in enumerate(fields.array("nodes")):
        node = Fields.of(entry, file, f"nodes[{number}]")
        name = node.values.get("id")
        if type(name) is not int and not isinstance(name, str):
            node.fail("must be an integer or a string", key="id")
        if name in vertices:
            node.fail(f"node {str(name)[:40]!r} is there twice", key="id")
        vertices[name] = node.values
    directed = fields.boolean("directed") if "directed" in fields.values else False
    edges = [_edge(entry, file, f"{key}[{number}]") for number, entry in enumerate(fields.array(key))]
    return Graph(file, _title(fields), directed, vertices, edges)


def _has_parallel(fields: Fields, key: str) -> bool:
    return any(isinstance(entry, dict) and entry.get("key", 0) not in (0, "0") for entry in fields.array(key))


def _edge(entry: Json, file: str, where: str) -> Edge:
    fields = Fields.of(entry, file, where)
    for end in ("source", "target"):
        if end not in fields.values:
            fields.fail(f"key {end!r} is missing", key=end)
    return Edge(fields.values["source"], fields.values["target"], fields.values, where)


def _title(fields: Fields) -> str:
    graph = fields.values.get("graph", {})
    name = graph.get("name") if isinstance(graph, dict) else None
    return name if isinstance(name, str) and name.isprintable() and name else Path(fields.file).stem


def graph_from_graphml(root: Element, file: str) -> Graph:
    """The graph in a GraphML document.

    Raises:
        FormatError: no or several graphs, an unknown data key, a nested graph, or an edge without ends; with line.
    """
    keys = {key.attribute("id"): key.attribute("attr.name") for key in root.children if key.tag == "key"}
    for key in root.children:
        if key.tag == "key" and keys[key.attribute("id")] in _MEANT and key.children:
            key.fail(f"{key.attribute('attr.name')} has a default; write the value at each element")
    graphs = [child for child in root.children if child.tag == "graph"]
    if len(graphs) != 1:
        root.fail(f"there is one <graph>, not {len(graphs)}")
    graph, edges = graphs[0], []
    vertices: dict[Json, Mapping[str, Json]] = {}
    default = graph.choice("edgedefault", ("directed", "undirected"))
    for child in graph.children:
        if child.tag == "node":
            name = child.attribute("id")
            if name in vertices:
                child.fail(f"node {name[:40]!r} is there twice")
            vertices[name] = _data(child, keys)
        elif child.tag == "edge":
            if (
                child.attributes.get("directed", str(default == "directed").lower())
                != str(default == "directed").lower()
            ):
                child.fail("directed and undirected edges in one graph; write each direction as an edge of its own")
            edges.append(Edge(child.attribute("source"), child.attribute("target"), _data(child, keys), child.where))
        elif child.tag not in ("data", "desc"):
            child.fail(f"element <{child.tag[:40]}> in a <graph> is not understood")
    return Graph(file, _data(graph, keys).get("name") or Path(file).stem, default == "directed", vertices, edges)


def _data(element: Element, keys: dict[str, str]) -> dict[str, str]:
    found = {}
    for child in element.children:
        if child.tag == "data":
            key = child.attribute("key")
            if key not in keys:
                child.fail(f"data key {key[:40]!r} is not declared")
            if keys[key] in found:
                child.fail(f"attribute {keys[key][:40]!r} is there twice")
            found[keys[key]] = child.text.strip()
    return found
