"""Sketch: what a person says about good algorithms for a machine: TACCL's communication sketches, key by key.

The file is TACCL's JSON (Shah et al., NSDI 2023, repository microsoft/taccl, examples/sketch), read strictly:

- ``nnodes``: the number of nodes (machines).
- ``intranode_sketch``: ``strategy`` "switch" (``switches`` lists the local GPUs behind each switch, and
  ``switch_hyperedge_strategy`` says for each whether few ("uc-min") or many ("uc-max") distinct links of it are
  wanted), "minmax" (the busiest link is as idle as possible), "maxmin" (the idlest is as busy as possible) or "none".
- ``internode_sketch``: ``strategy`` "relay" (an item crosses between nodes once, out of its own node) or "none" (it
  may travel on); ``internode_conn`` maps a local GPU to the local GPUs of every other node that it sends to, or is
  "fully-connected" or "direct-map" (i to i); ``gpus_to_sender_rev_map`` maps a sender to the GPUs whose items leave
  the node through it; ``enforce_ordering``: a sender's own items leave before those that it passes on.
- ``symmetry_offsets``: pairs [offset, group]: nothing changes when the ranks of each group move on by offset.
- ``hyperparameters.input_chunkup``: chunks per shard.

``hierarchy`` is our own key, for more than two nodes: a list of levels, innermost first, see ``Level``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from commlib.files.disk import read_text
from commlib.files.json_fields import Fields, Json, parse_json
from synth.errors import SketchError

MAX_BYTES = 1 << 20
"""The largest sketch file."""
MAX_NODES = 4096
MAX_LOCAL = 1024
"""The most ranks of a node."""
MAX_CHUNKS = 1024
"""The most chunks per shard."""
MAX_OFFSETS = 64
FULLY_CONNECTED, DIRECT_MAP = "fully-connected", "direct-map"
LEVEL_STRATEGIES = ("relay", "direct", "ring", "recursive-doubling", "none")
_PREFERENCES = ("uc-min", "uc-max", "none")

GpuMap = Mapping[int, tuple[int, ...]]
"""From a local GPU to others, in the order of the file."""


@dataclass(frozen=True)
class Intranode:
    """How ranks of one node talk; ``preferences`` has one word for each of ``switches``."""

    strategy: str = "none"
    switches: tuple[tuple[int, ...], ...] = ()
    preferences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Internode:
    """How nodes talk. ``conn`` is a word or a map; None: every link. ``senders`` None: whoever is linked sends."""

    strategy: str = "relay"
    conn: str | GpuMap | None = None
    senders: GpuMap | None = None
    enforce_ordering: bool | None = None


@dataclass(frozen=True)
class Level:
    """One level of a hierarchy: groups of ``group`` nodes, made of the groups of the level below (nodes at first).

    Of two neighbouring units of a group only corresponding nodes are linked: first with first, second with second.
    ``strategy``: "relay" or "direct" (every unit to every other; an item crosses this level once), "ring" (each to
    the next and the previous one; items travel on), "recursive-doubling" (units whose numbers differ in one bit;
    items travel on) or "none" (every unit to every other; items travel on). The sender map binds on "relay" levels
    and on those that travel; "direct" is without it. ``conn`` None: the sketch's ``internode_conn``.
    """

    group: int
    strategy: str
    conn: str | GpuMap | None = None


@dataclass(frozen=True)
class Sketch:
    """A communication sketch; see the module's text. ``file`` is where it came from, for messages."""

    nodes: int
    intranode: Intranode = Intranode()
    internode: Internode | None = None
    hierarchy: tuple[Level, ...] = ()
    symmetry: tuple[tuple[int, int], ...] = ()
    chunkup: int = 1
    file: str = field(default="sketch", compare=False)

    def fail(self, key: str, message: str, **facts: object) -> SketchError:
        """The error for one of the sketch's keys."""
        return SketchError(f"{self.file}: {key}: {message}", file=self.file, key=key, **facts)


def read_sketch(path: str | os.PathLike[str]) -> Sketch:
    """The sketch in a file.

    Raises:
        FormatError: the file cannot be read, is too large or no JSON object, or a key is missing, unknown or of the
            wrong type; the message has file and key.
        SketchError: a value makes no sense; the message has file and key.
    """
    return parse_sketch(read_text(path, MAX_BYTES), os.fspath(path))


def parse_sketch(text: str, file: str = "sketch") -> Sketch:
    """The sketch in a JSON text; ``file`` is what messages call it. Raises as ``read_sketch``."""
    top = Fields.of(parse_json(text, file), file, "sketch")
    top.check_keys(
        {"nnodes"}, ("intranode_sketch", "internode_sketch", "symmetry_offsets", "hyperparameters", "hierarchy")
    )
    nodes = _integer(top, "nnodes", 1, MAX_NODES)
    has = top.values.keys()
    return Sketch(
        nodes,
        _intranode(_part(top, "intranode_sketch")) if "intranode_sketch" in has else Intranode(),
        _internode(_part(top, "internode_sketch"), "hierarchy" in has) if "internode_sketch" in has else None,
        _hierarchy(top, nodes) if "hierarchy" in has else (),
        _symmetry(top) if "symmetry_offsets" in has else (),
        _chunkup(_part(top, "hyperparameters")) if "hyperparameters" in has else 1,
        file,
    )


def sketch_json(sketch: Sketch) -> dict[str, Any]:
    """The JSON object of a sketch; parsing it gives the same sketch."""
    value: dict[str, Any] = {"nnodes": sketch.nodes, "intranode_sketch": {"strategy": sketch.intranode.strategy}}
    if sketch.intranode.strategy == "switch":
        value["intranode_sketch"]["switches"] = [list(switch) for switch in sketch.intranode.switches]
        value["intranode_sketch"]["switch_hyperedge_strategy"] = list(sketch.intranode.preferences)
    if sketch.internode is not None:
        value["internode_sketch"] = _internode_json(sketch.internode)
    if sketch.hierarchy:
        value["hierarchy"] = [
            {"group": level.group, "strategy": level.strategy, **_conn_json(level.conn)} for level in sketch.hierarchy
        ]
    value["symmetry_offsets"] = [list(pair) for pair in sketch.symmetry]
    value["hyperparameters"] = {"input_chunkup": sketch.chunkup}
    return value


def _internode_json(internode: Internode) -> dict[str, Any]:
    value: dict[str, Any] = {"strategy": internode.strategy, **_conn_json(internode.conn)}
    if internode.senders is not None:
        value["gpus_to_sender_rev_map"] = _map_json(internode.senders)
    if internode.enforce_ordering is not None:
        value["enforce_ordering"] = internode.enforce_ordering
    return value


def _conn_json(conn: str | GpuMap | None) -> dict[str, Any]:
    if conn is None:
        return {}
    return {"internode_conn": conn if isinstance(conn, str) else _map_json(conn)}


def _map_json(gpus: GpuMap) -> dict[str, list[int]]:
    return {str(gpu): list(others) for gpu, others in gpus.items()}


def _part(top: Fields, key: str) -> Fields:
    return Fields.of(top.values[key], top.file, key)


def _wrong(fields: Fields, key: str, message: str, **facts: object) -> SketchError:
    place = key if fields.where == "sketch" else f"{fields.where}.{key}"
    return SketchError(f"{fields.file}: {place}: {message}", file=fields.file, key=place, **facts)


def _integer(fields: Fields, key: str, low: int, high: int) -> int:
    value = fields.integer(key, low)
    if value > high:
        raise _wrong(fields, key, f"{value} is more than the {high} that are read")
    return value


def _word(fields: Fields, key: str, known: tuple[str, ...]) -> str:
    value = fields.string(key)
    if value not in known:
        raise _wrong(fields, key, f"{value[:40]!r} is none of {', '.join(known)}")
    return value


def _intranode(fields: Fields) -> Intranode:
    fields.check_keys({"strategy"}, ("switches", "switch_hyperedge_strategy"))
    strategy = _word(fields, "strategy", ("switch", "minmax", "maxmin", "none"))
    if strategy != "switch":
        for key in sorted(fields.values.keys() - {"strategy"}):
            raise _wrong(fields, key, f"strategy {strategy!r} takes no switches; leave this out")
        return Intranode(strategy)
    fields.check_keys({"strategy", "switches", "switch_hyperedge_strategy"})
    switches = _switches(fields)
    preferences = tuple(fields.words("switch_hyperedge_strategy", _PREFERENCES))
    if len(preferences) != len(switches):
        message = f"{len(preferences)} words for {len(switches)} switches; give one for each"
        raise _wrong(fields, "switch_hyperedge_strategy", message)
    return Intranode(strategy, switches, preferences)


def _switches(fields: Fields) -> tuple[tuple[int, ...], ...]:
    rows = fields.array("switches")
    if not rows or len(rows) > MAX_LOCAL:
        raise _wrong(fields, "switches", f"lists 1 to {MAX_LOCAL} switches, not {len(rows)}")
    switches = tuple(_gpus(fields, f"switches[{place}]", row) for place, row in enumerate(rows))
    seen: dict[int, int] = {}
    for place, switch in enumerate(switches):
        if len(switch) < 2:
            raise _wrong(fields, f"switches[{place}]", "a switch joins two GPUs or more")
        for gpu in switch:
            other = seen.setdefault(gpu, place)
            if set(switches[other]) != set(switch):
                message = f"GPU {gpu} is also in switches[{other}]; two switches have all GPUs in common, or none"
                raise _wrong(fields, f"switches[{place}]", message, rank=gpu)
    return switches


def _gpus(fields: Fields, key: str, row: Json) -> tuple[int, ...]:
    """A list of distinct local GPUs."""
    if not isinstance(row, list) or len(row) > MAX_LOCAL:
        raise _wrong(fields, key, f"must be a list of at most {MAX_LOCAL} GPUs")
    for gpu in row:
        if type(gpu) is not int or not 0 <= gpu < MAX_LOCAL:
            raise _wrong(fields, key, f"holds GPUs from 0 to {MAX_LOCAL - 1} only, not {str(gpu)[:20]}")
    if len(set(row)) != len(row):
        twice = next(gpu for gpu in row if row.count(gpu) > 1)
        raise _wrong(fields, key, f"GPU {twice} is there twice", rank=twice)
    return tuple(row)


def _gpu_map(fields: Fields, key: str) -> GpuMap:
    value = fields.values[key]
    if not isinstance(value, dict) or len(value) > MAX_LOCAL:
        raise _wrong(fields, key, f"must be an object of at most {MAX_LOCAL} GPUs")
    found: dict[int, tuple[int, ...]] = {}
    for name, row in value.items():
        if not (name.isascii() and name.isdigit() and str(int(name[:9])) == name and int(name) < MAX_LOCAL):
            raise _wrong(fields, key, f"{name[:20]!a} is no GPU from 0 to {MAX_LOCAL - 1}")
        found[int(name)] = _gpus(fields, f'{key}["{name}"]', row)
        if not row:
            raise _wrong(fields, f'{key}["{name}"]', "lists no GPU; leave the key out")
    return MappingProxyType(found)


def _conn(fields: Fields) -> str | GpuMap:
    if isinstance(fields.values["internode_conn"], str):
        return _word(fields, "internode_conn", (FULLY_CONNECTED, DIRECT_MAP))
    return _gpu_map(fields, "internode_conn")


def _internode(fields: Fields, has_hierarchy: bool) -> Internode:
    fields.check_keys({"strategy"}, ("internode_conn", "gpus_to_sender_rev_map", "enforce_ordering"))
    strategy = _word(fields, "strategy", ("relay", "none"))
    has = fields.values.keys()
    if strategy == "relay" and "internode_conn" not in has and not has_hierarchy:
        raise _wrong(fields, "internode_conn", "is missing: relays need the links that join the nodes")
    return Internode(
        strategy,
        _conn(fields) if "internode_conn" in has else None,
        _gpu_map(fields, "gpus_to_sender_rev_map") if "gpus_to_sender_rev_map" in has else None,
        fields.boolean("enforce_ordering") if "enforce_ordering" in has else None,
    )


def _hierarchy(top: Fields, nodes: int) -> tuple[Level, ...]:
    rows = top.array("hierarchy")
    below, levels = 1, []
    for place, row in enumerate(rows):
        fields = Fields.of(row, top.file, f"hierarchy[{place}]")
        fields.check_keys({"group", "strategy"}, ("internode_conn",))
        group = _integer(fields, "group", 1, MAX_NODES)
        if group <= below or group % below or nodes % group:
            message = f"{group} nodes are no multiple of the {below} of the level below that divides all {nodes}"
            raise _wrong(fields, "group", message)
        strategy = _word(fields, "strategy", LEVEL_STRATEGIES)
        units = group // below
        if strategy == "recursive-doubling" and units & (units - 1):
            raise _wrong(fields, "strategy", f"recursive doubling takes a power of two of units, not {units}")
        levels.append(Level(group, strategy, _conn(fields) if "internode_conn" in fields.values else None))
        below = group
    if below != nodes:
        raise _wrong(top, "hierarchy", f"its last level has groups of {below} nodes, and must have all {nodes}")
    return tuple(levels)


def _symmetry(top: Fields) -> tuple[tuple[int, int], ...]:
    rows = top.array("symmetry_offsets")
    if len(rows) > MAX_OFFSETS:
        raise _wrong(top, "symmetry_offsets", f"{len(rows)} pairs are more than the {MAX_OFFSETS} that are read")
    pairs = []
    for place, row in enumerate(rows):
        key = f"symmetry_offsets[{place}]"
        if not isinstance(row, list) or len(row) != 2 or not all(type(value) is int for value in row):
            raise _wrong(top, key, "must be two integers, [offset, group]")
        offset, group = row
        if not 0 < offset < group <= MAX_NODES * MAX_LOCAL:
            raise _wrong(top, key, f"the offset is from 1 to below the group's size, not {str(offset)[:20]}")
        pairs.append((offset, group))
    return tuple(pairs)


def _chunkup(fields: Fields) -> int:
    fields.check_keys(set(), ("input_chunkup",))
    return _integer(fields, "input_chunkup", 1, MAX_CHUNKS) if "input_chunkup" in fields.values else 1
