"""The JSON form of a Collective; also what a user writes to define a collective of their own.

A standard one:

    {"name": "broadcast", "ranks": 8, "chunks": 2, "root": 3}

A custom one gives buffer sizes per rank, and for output chunks [rank, chunk, [[rank, chunk], ...]] which input
chunks each combines; output chunks that it leaves out may hold anything. ``offsets`` (input, output) per rank define
in place; null or left out, in place has no meaning:

    {"name": "swap", "inputs": [1, 1], "outputs": [1, 1], "sources": [[0, 0, [[1, 0]]], [1, 0, [[0, 0]]]],
     "offsets": [[0, 0], [0, 0]]}

``read_collective`` reads the short forms too (see ``short_forms``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from commlib.collectives import Collective, Contribution, custom
from commlib.errors import SpecError
from commlib.files.disk import read_text
from commlib.files.json_fields import Fields, Json, parse_json
from commlib.formats.limits import DEFAULT_LIMITS, ReaderLimits, check_sizes, refuse
from commlib.formats.short_forms import from_short, is_short

_STANDARD = {"name", "ranks"}
_CUSTOM = {"name", "inputs", "outputs", "sources"}


def collective_to_json(collective: Collective) -> dict[str, Json]:
    """The JSON form, loss-free."""
    c = collective
    if c.custom is None:
        return {"name": c.name, "ranks": c.ranks, "chunks": c.chunks, "root": c.root}
    offsets = c.custom.offsets
    return {
        "name": c.name,
        "inputs": list(c.custom.inputs),
        "outputs": list(c.custom.outputs),
        "sources": [
            [rank, chunk, [list(contribution) for contribution in sorted(wanted)]]
            for rank, row in enumerate(c.custom.sources)
            for chunk, wanted in enumerate(row)
            if wanted is not None
        ],
        "offsets": None if offsets is None else [list(pair) for pair in offsets],
        "chunks": c.chunks,
        "specified": c.custom.specified,
    }


def collective_from_json(
    value: Json, file: str = "<json>", where: str = "collective", limits: ReaderLimits = DEFAULT_LIMITS
) -> Collective:
    """The Collective of a JSON form; ``file`` and ``where`` are for messages.

    Raises:
        FormatError: keys missing or unknown, or values that define no collective; with file and key.
        LimitError: more ranks or chunks than the limits allow.
    """
    fields = Fields.of(value, file, where)
    try:
        return _custom(fields, limits) if "inputs" in fields.values else _standard(fields, limits)
    except SpecError as error:
        fields.refuse(error)


def read_collective(
    path: str | os.PathLike[str], limits: ReaderLimits = DEFAULT_LIMITS, ranks: Callable[[], int] | None = None
) -> Collective:
    """The Collective in a JSON file: its form, a matrix of chunks, or the roots of a broadcast from several.

    ``ranks`` is asked for the number of ranks where the roots' form leaves it out.

    Raises:
        FormatError, LimitError: as ``collective_from_json``; also when the file cannot be read.
    """
    name = os.fspath(path)
    value = parse_json(read_text(name, limits.max_bytes), name)
    if not is_short(value):
        return collective_from_json(value, name, "the file", limits)
    made = from_short(value, name, ranks)
    check_sizes(made, (), 0, limits, name)
    return made


def _standard(fields: Fields, limits: ReaderLimits) -> Collective:
    fields.check_keys(_STANDARD, {"chunks", "root"})
    ranks = fields.integer("ranks", 1)
    chunks = fields.integer("chunks", 1) if "chunks" in fields.values else 1
    root = None if fields.values.get("root") is None else fields.integer("root")
    _check_ranks(fields, limits, ranks)
    made = Collective(fields.string("name"), ranks, chunks, root)
    check_sizes(made, (), 0, limits, fields.file)
    return made


def _custom(fields: Fields, limits: ReaderLimits) -> Collective:
    fields.check_keys(_CUSTOM, {"offsets", "chunks", "specified"})
    inputs, outputs = fields.integers("inputs"), fields.integers("outputs")
    chunks = fields.integer("chunks", 1) if "chunks" in fields.values else 1
    _check_ranks(fields, limits, len(inputs))
    slots = (sum(inputs) + sum(outputs)) * chunks
    if slots > limits.max_slots:
        raise refuse(fields.file, 1, "max_slots", limits.max_slots, f"{slots} chunks in the buffers of all ranks")
    offsets = None if fields.values.get("offsets") is None else _pairs(fields, "offsets", fields.values["offsets"])
    specified = fields.boolean("specified") if "specified" in fields.values else True
    made = custom(fields.string("name"), inputs, outputs, _sources(fields), offsets)
    conditions = None if made.custom is None else replace(made.custom, specified=specified)
    return replace(made, chunks=chunks, custom=conditions)


def _check_ranks(fields: Fields, limits: ReaderLimits, ranks: int) -> None:
    if ranks > limits.max_ranks:
        raise refuse(fields.file, 1, "max_ranks", limits.max_ranks, f"{ranks} ranks")


def _sources(fields: Fields) -> Mapping[Contribution, list[Contribution]]:
    found: dict[Contribution, list[Contribution]] = {}
    for entry in fields.array("sources"):
        if not (isinstance(entry, list) and len(entry) == 3 and type(entry[0]) is int and type(entry[1]) is int):
            fields.fail("each of its sources must be [rank, chunk, [[rank, chunk], ...]]", key="sources")
        slot = (entry[0], entry[1])
        if slot in found:
            fields.fail(f"its sources have output chunk {entry[1]} of rank {entry[0]} twice", key="sources")
        found[slot] = _pairs(fields, "sources", entry[2])
        if len(set(found[slot])) != len(found[slot]):
            fields.fail(f"output chunk {entry[1]} of rank {entry[0]} wants a chunk twice", key="sources")
    return found


def _pairs(fields: Fields, key: str, value: Json) -> list[tuple[int, int]]:
    if not isinstance(value, list):
        fields.fail("must be a list of [number, number]", key=key)
    found: list[tuple[int, int]] = []
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n >= 0 for n in pair)):
            fields.fail("must be a list of [number, number], none negative", key=key)
        found.append((pair[0], pair[1]))
    return found
