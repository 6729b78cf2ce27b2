"""Our own JSON form of a topology: loss-free, versioned, and short enough to write by hand.

An object with these keys; those in brackets may be left out:

- ``format``: "commlib-topology", ``version``: 1, ``name``, ``ranks``;
- [``unit``]: {name, seconds, chunk_bytes}; [``node_of``]: the node of each rank;
- [``resources``]: name -> seconds per byte of its own, or null where it is taken for as long as the link is busy;
- ``kinds``: name -> {alpha (seconds), beta (seconds per byte), [pipelined]};
- ``links``: rows [source, destination, kind] or [source, destination, kind, [resources taken]].
"""

from __future__ import annotations

import json
import os

from commlib.errors import CommlibError, FormatError
from commlib.files.disk import read_text, write_atomic
from commlib.files.json_fields import Fields, Json, parse_json
from commlib.topology.limits import MAX_BYTES, MAX_LINKS, check_size
from commlib.topology.model import Link, Resource, Topology, Unit
from commlib.topology.numbers import cost

FORMAT = "commlib-topology"
VERSION = 1


def write_topology(topology: Topology, path: str | os.PathLike[str]) -> None:
    """Write a topology as JSON, whole or not at all.

    Raises:
        FormatError: the file cannot be written, or the topology has a name that no file can hold.
    """
    write_atomic(path, topology_to_json(topology))


def topology_to_json(topology: Topology) -> str:
    """The JSON text of a topology, a link per line. O(links)."""
    kinds: dict[tuple[float, float, bool], str] = {}
    rows = []
    for pair, link in sorted(topology.links.items()):
        kind = kinds.setdefault((link.alpha, link.beta, link.pipelined), f"k{len(kinds)}")
        rows.append([*pair, kind, *([list(link.resources)] if link.resources else [])])
    head = {
        "format": FORMAT,
        "version": VERSION,
        "name": topology.name,
        "ranks": topology.ranks,
        "unit": vars(topology.unit),
        "node_of": list(topology.node_of),
        "resources": {name: resource.beta for name, resource in topology.resources.items()},
        "kinds": {name: _kind(*key) for key, name in kinds.items()},
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines.append('  "links": [\n    ' + ",\n    ".join(map(json.dumps, rows)) + "\n  ]" if rows else '  "links": []')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _kind(alpha: float, beta: float, pipelined: bool) -> dict[str, object]:
    return {"alpha": alpha, "beta": beta, **({"pipelined": True} if pipelined else {})}


def read_topology_json(path: str | os.PathLike[str]) -> Topology:
    """The topology in a file of our JSON.

    Raises:
        FormatError: not such a file; the message names file and key.
        LimitError: larger than the limits allow.
    """
    file = os.fspath(path)
    return topology_from_json(parse_json(read_text(file, MAX_BYTES), file), file)


def topology_from_json(value: Json, file: str) -> Topology:
    """The topology in a JSON value; see ``read_topology_json``."""
    fields = Fields.of(value, file, "topology")
    fields.check_keys({"format", "version", "name", "ranks", "kinds", "links"}, {"unit", "node_of", "resources"})
    if fields.values["format"] != FORMAT:
        fields.fail(f"must be {FORMAT!r}", key="format")
    if fields.integer("version", 1) != VERSION:
        fields.fail(f"is {fields.values['version']}; this version of commlib reads {VERSION}", key="version")
    name, ranks, rows = fields.string("name"), fields.integer("ranks", 1), fields.array("links")
    check_size(file, ranks, len(rows))
    try:
        return Topology(name, ranks, _links(fields, rows), _resources(fields), _node_of(fields, ranks), _unit(fields))
    except CommlibError as error:
        if isinstance(error, FormatError):
            raise
        fields.refuse(error)


def _unit(fields: Fields) -> Unit:
    if "unit" not in fields.values:
        return Unit()
    unit = Fields.of(fields.values["unit"], fields.file, "unit")
    unit.check_keys({"name", "seconds", "chunk_bytes"})
    return Unit(unit.string("name"), cost(unit, "seconds"), cost(unit, "chunk_bytes"))


def _node_of(fields: Fields, ranks: int) -> tuple[int, ...]:
    if "node_of" not in fields.values:
        return ()
    node_of = tuple(fields.integers("node_of"))
    if len(node_of) != ranks:
        fields.fail(f"has {len(node_of)} entries for {ranks} ranks", key="node_of")
    return node_of


def _resources(fields: Fields) -> dict[str, Resource]:
    table = Fields.of(fields.values.get("resources", {}), fields.file, "resources")
    if len(table.values) > MAX_LINKS:
        table.fail(f"more than {MAX_LINKS} resources")
    return {name: Resource(None if beta is None else cost(table, name)) for name, beta in table.values.items()}


def _kinds(fields: Fields) -> dict[str, tuple[float, float, bool]]:
    table, found = Fields.of(fields.values["kinds"], fields.file, "kinds"), {}
    for name, value in table.values.items():
        kind = Fields.of(value, fields.file, f"kinds.{name[:40]}")
        kind.check_keys({"alpha", "beta"}, {"pipelined"})
        pipelined = "pipelined" in kind.values and kind.boolean("pipelined")
        found[name] = (cost(kind, "alpha"), cost(kind, "beta"), pipelined)
    return found


def _links(fields: Fields, rows: list[Json]) -> dict[tuple[int, int], Link]:
    kinds, links = _kinds(fields), {}
    made: dict[tuple[str, tuple[str, ...]], Link] = {}
    for number, row in enumerate(rows):
        source, destination, kind, taken = _row(fields, number, row)
        if kind not in kinds:
            fields.fail(f"row {number}: kind {kind[:40]!r} is not among kinds", key="links")
        if (source, destination) in links:
            fields.fail(f"row {number}: link {source} -> {destination} is there twice", key="links")
        if (kind, taken) not in made:
            alpha, beta, pipelined = kinds[kind]
            made[kind, taken] = Link(alpha, beta, taken, pipelined)
        links[source, destination] = made[kind, taken]
    return links


def _row(fields: Fields, number: int, row: Json) -> tuple[int, int, str, tuple[str, ...]]:
    if isinstance(row, list) and len(row) in (3, 4):
        source, destination, kind, *rest = row
        taken = rest[0] if rest else []
        if type(source) is int and type(destination) is int and isinstance(kind, str) and _are_names(taken):
            return source, destination, kind, tuple(taken)
    message = f"row {number} must be [source, destination, kind] or [source, destination, kind, [resources]]"
    raise FormatError(f"{fields.file}: {fields.where}.links: {message}", file=fields.file, key="links")


def _are_names(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
