"""Stored results: a Result as JSON, whole, so that it can be shown later or found again instead of searched again.

    {"format": "commlib-result", "version": 1, "digest": "...", "result": {...}}

``digest`` is the SHA-256 of the canonical text of ``result``: a file that was cut or changed is refused. Whatever is
read is checked as if it had just been found: the moves must solve the collective, in the time that is stated.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from commlib.bounds import Bound
from commlib.collectives import Collective
from commlib.errors import CommlibError, FormatError
from commlib.files.disk import read_text, write_atomic
from commlib.files.json_fields import Fields, Json, parse_json
from commlib.formats import collective_from_json, collective_to_json
from commlib.topology import Topology, cost_table, topology_to_json
from commlib.topology.json_form import topology_from_json
from synth.compose import parcels_of
from synth.engine import Ended, Stage
from synth.moves import Moves, check_moves
from synth.result import Result
from synth.schedule import Transfer

FORMAT, VERSION = "commlib-result", 1
MAX_BYTES = 256 << 20
_LARGEST = 1 << 62
_PLAIN = ("engine", "bound_kind", "topology_bound_kind", "name")
_NUMBERS = ("chunk_bytes", "time", "bound", "topology_bound", "seconds")
_COLUMNS = ("start", "parcel", "source", "target", "reduces")
_KEYS = {*_PLAIN, *_NUMBERS, *_COLUMNS, "ended", "certificate", "stages", "instances", "notes", "plans"}
_KEYS |= {"collective", "topology", "logical", "sizes", "size_of"}


@dataclass(frozen=True)
class SavedCertificate:
    """A certificate as it was: its text and its JSON."""

    words: str
    value: dict[str, object]

    def text(self) -> str:
        """What it said."""
        return self.words

    def as_json(self) -> dict[str, object]:
        """What it said to a program."""
        return self.value


def canonical(value: Json) -> str:
    """The one JSON text of a value: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def save_result(result: Result, path: str | os.PathLike[str]) -> None:
    """Write a result, whole or not at all.

    Raises:
        FormatError: the file cannot be written.
    """
    write_atomic(path, result_to_json(result))


def load_result(path: str | os.PathLike[str]) -> Result:
    """The result in a file.

    Raises:
        FormatError: not such a file, or it is damaged; the message names file and key.
        LimitError: larger than 256 MiB.
    """
    file = os.fspath(path)
    return result_from_json(parse_json(read_text(file, MAX_BYTES), file), file)


def result_to_json(result: Result) -> str:
    """The JSON text of a result, loss-free but for what its certificate can say beyond words and JSON. O(moves)."""
    moves = result.moves
    body: dict[str, Any] = {name: getattr(result, name) for name in (*_PLAIN, *_NUMBERS, "instances")}
    body |= {name: getattr(moves, name).astype(np.int64).tolist() for name in _COLUMNS}
    same = result.logical is result.topology
    body |= {
        "ended": result.ended.name,
        "certificate": None if result.certificate is None else _certificate_json(result.certificate),
        "stages": [list(stage) for stage in result.stages],
        "notes": list(result.notes),
        "plans": {name: [list(transfer) for transfer in plan] for name, plan in result.plans.items()},
        "collective": collective_to_json(result.collective),
        "topology": json.loads(topology_to_json(result.topology)),
        "logical": None if same else json.loads(topology_to_json(result.logical)),
        "sizes": list(moves.costs.sizes),
        "size_of": [parcel.size for parcel in moves.parcels] if len(moves.costs.sizes) > 1 else [],
    }
    value = {"format": FORMAT, "version": VERSION, "digest": digest(canonical(body)), "result": body}
    return canonical(value) + "\n"


def _certificate_json(bound: Bound) -> dict[str, object]:
    return {"text": bound.certificate.text(), **bound.as_json()}


def result_from_json(value: Json, file: str) -> Result:
    """The result in a JSON value; see ``load_result``."""
    fields = Fields.of(value, file, "the file")
    fields.check_keys({"format", "version", "digest", "result"})
    if (fields.values["format"], fields.values["version"]) != (FORMAT, VERSION):
        fields.fail(f"must be {FORMAT!r} of version {VERSION}", key="format")
    body = Fields.of(fields.values["result"], file, "result")
    if digest(canonical(body.values)) != fields.string("digest"):
        fields.fail("is not that of the result: the file is damaged", key="digest")
    body.check_keys(_KEYS)
    try:
        return _checked(_read(body), body)
    except CommlibError as error:
        if isinstance(error, FormatError):
            raise
        body.refuse(error)


def _read(body: Fields) -> Result:
    values = body.values
    topology = topology_from_json(values["topology"], body.file)
    logical = topology if values["logical"] is None else topology_from_json(values["logical"], body.file)
    collective = collective_from_json(values["collective"], body.file)
    certificate = None if values["certificate"] is None else _certificate(body)
    if body.string("ended") not in Ended.__members__:
        body.fail("is no way in which a search ends", key="ended")
    plain = {name: body.string(name) for name in _PLAIN} | {name: _number(body, name) for name in _NUMBERS}
    return Result(
        collective=collective,
        topology=topology,
        logical=logical,
        moves=_moves(body, collective, logical),
        ended=Ended[body.string("ended")],
        certificate=certificate,
        stages=tuple(_stage(body, row) for row in body.array("stages")),
        instances=body.integer("instances", 1),
        notes=tuple(body.strings("notes")),
        plans=_plans(Fields.of(values["plans"], body.file, "plans")),
        **plain,  # type: ignore[arg-type]
    )


def _moves(body: Fields, collective: Collective, logical: Topology) -> Moves:
    sizes = body.array("sizes")
    if not sizes or not all(isinstance(size, int | float) and 0 <= size < _LARGEST for size in sizes):
        body.fail("must hold sizes in bytes", key="sizes")
    parcels = parcels_of(collective, body.integers("size_of"))
    columns = {name: _column(body, name) for name in _COLUMNS}
    if len({len(column) for column in columns.values()}) > 1:
        body.fail("has not as many entries as the other columns", key="parcel")
    limits = {"parcel": len(parcels), "source": collective.ranks, "target": collective.ranks, "reduces": 2}
    for name, limit in limits.items():
        if len(columns[name]) and not 0 <= int(columns[name].min()) <= int(columns[name].max()) < limit:
            body.fail(f"must hold numbers below {limit}", key=name)
    if any(parcel.size >= len(sizes) for parcel in parcels):
        body.fail("names a size that is not there", key="size_of")
    start, parcel, source, target, reduces = columns.values()
    return Moves(collective, cost_table(logical, sizes), parcels, start, parcel, source, target, reduces > 0)


def _column(body: Fields, name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    values = body.array(name)
    if not all(type(value) is int and 0 <= value < _LARGEST for value in values):
        body.fail("must hold integers from 0 on only", key=name)
    return np.array(values, dtype=np.int64)


def _plans(fields: Fields) -> dict[str, tuple[Transfer, ...]]:
    def transfer(name: str, row: Json) -> Transfer:
        if not isinstance(row, list) or len(row) != 3 or not all(type(value) is int for value in row):
            fields.fail("must hold rows of three integers", key=name)
        return Transfer(*row)

    return {name: tuple(transfer(name, row) for row in fields.array(name)) for name in fields.values}


def _stage(body: Fields, row: Json) -> Stage:
    if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], str) or not isinstance(row[1], int | float):
        body.fail("must hold rows of a name and seconds", key="stages")
    return Stage(row[0], float(row[1]))


def _number(body: Fields, key: str) -> float:
    value = body.values[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        body.fail("must be a number", key=key)
    return float(value)


def _certificate(body: Fields) -> Bound:
    fields = Fields.of(body.values["certificate"], body.file, "certificate")
    fields.check_keys({"text", "kind", "ticks", "seconds", "certificate"})
    value = fields.values["certificate"]
    if not isinstance(value, dict):
        fields.fail("must be an object", key="certificate")
    saved = SavedCertificate(fields.string("text"), value)
    return Bound(fields.string("kind"), int(_number(fields, "ticks")), _number(fields, "seconds"), saved)


def _checked(result: Result, body: Fields) -> Result:
    check_moves(result.moves)
    if abs(result.moves.seconds - result.time) > 1e-9 * result.time:
        body.fail(f"is not the {result.moves.seconds} s that the moves take", key="time")
    return result
