"""Our JSON form of an Algorithm: versioned, loss-free (origins too), strict.

The steps are columns, one list per property, which is compact and quick at a million steps: ``threadblocks`` has
rank, send, recv, channel and the number of steps, ``steps`` has op, source and destination buffer (a letter per
step, ``-`` for none) and index (null for none), count, and the numbers of dependences; ``depends`` holds the global
numbers of the steps that are waited for, one after another.

An algorithm with one-sided steps is of version 2, which adds ``operands``: how many each step has (``counts``), and
rank, buffer, index and whether it is written (0 or 1) of each, step after step.
"""

from __future__ import annotations

import json
import os

import numpy as np

from commlib.collectives import Placement
from commlib.errors import AlgorithmError, FormatError
from commlib.files.characters import LONE_SURROGATE
from commlib.files.disk import read_text, write_atomic
from commlib.files.json_fields import Fields, Json, parse_json
from commlib.formats.collective_json import collective_from_json, collective_to_json
from commlib.formats.limits import DEFAULT_LIMITS, ReaderLimits, check_algorithm
from commlib.ir.algorithm import NOTHING, OP_OF_SHORT, Algorithm, Ints, Op, Origins
from commlib.ir.ops import TWO_SIDED

FORMAT = "commlib-algorithm"
VERSION = 1
ONE_SIDED_VERSION = 2

_KEYS = {"format", "version", "name", "protocol", "placements", "collective", "scratch_chunks"}
_LEVELS = {"threadblocks", "steps", "depends", "origins"}
_OPERANDS = {"operands"}
_BLOCK_KEYS = {"rank", "send", "recv", "channel", "steps"}
_STEP_KEYS = {"op", "source_buffer", "source_index", "destination_buffer", "destination_index", "count", "depends"}
_OPERAND_KEYS = {"counts", "rank", "buffer", "index", "writes"}
_LETTERS = "ios-"


def to_json(algorithm: Algorithm) -> dict[str, Json]:
    """The JSON form, as dictionaries and lists. Linear in the number of steps and dependences."""
    a = algorithm
    short = [op.short for op in Op]
    operands: dict[str, Json] = {"operands": _operands_to_json(a)} if a.one_sided else {}
    return {
        "format": FORMAT,
        "version": ONE_SIDED_VERSION if a.one_sided else VERSION,
        "name": a.name,
        "protocol": a.protocol,
        "placements": [placement.value for placement in Placement if placement in a.placements],
        "collective": collective_to_json(a.collective),
        "scratch_chunks": list(a.scratch_chunks),
        "threadblocks": {
            "rank": a.tb_rank.tolist(),
            "send": _or_null(a.tb_send),
            "recv": _or_null(a.tb_recv),
            "channel": a.tb_channel.tolist(),
            "steps": np.diff(a.tb_start).tolist(),
        },
        "steps": {
            "op": [short[op] for op in a.op.tolist()],
            "source_buffer": _letters(a.source_buffer),
            "source_index": _or_null(a.source_index),
            "destination_buffer": _letters(a.destination_buffer),
            "destination_index": _or_null(a.destination_index),
            "count": a.count.tolist(),
            "depends": np.diff(a.dep_start).tolist(),
        },
        "depends": a.dep.tolist(),
        **operands,
        "origins": None if a.origins is None else _origins_to_json(a.origins),
    }


def _operands_to_json(a: Algorithm) -> dict[str, Json]:
    return {
        "counts": np.diff(a.operand_start).tolist(),
        "rank": a.operand_rank.tolist(),
        "buffer": _letters(a.operand_buffer),
        "index": _or_null(a.operand_index),
        "writes": a.operand_writes.tolist(),
    }


def _origins_to_json(origins: Origins) -> dict[str, Json]:
    # A source file's name may have bytes that are no text; it is for messages only, so it need not come back exactly.
    files = [LONE_SURROGATE.sub("\ufffd", file) for file in origins.files]
    return {"files": files, "file": origins.file.tolist(), "line": origins.line.tolist()}


def _or_null(column: Ints) -> list[int | None]:
    return [None if value == NOTHING else value for value in column.tolist()]


def _letters(column: Ints) -> str:
    return "".join([_LETTERS[value] for value in column.tolist()])


def from_json(value: Json, file: str = "<json>", limits: ReaderLimits = DEFAULT_LIMITS) -> Algorithm:
    """The Algorithm of a JSON form; ``file`` is the name that messages use.

    Raises:
        FormatError: another format or version; keys missing or unknown; values of a wrong type, or that do not fit
            together; with file and key.
        LimitError: more than the limits allow.
    """
    top = Fields.of(value, file, "the file")
    if top.values.get("format") != FORMAT:
        top.fail(f"must be {FORMAT!r}", key="format")
    version = top.values.get("version")
    if type(version) is not int or version not in (VERSION, ONE_SIDED_VERSION):
        top.fail(f"must be {VERSION} or {ONE_SIDED_VERSION}, the versions that this library reads", key="version")
    one_sided = version == ONE_SIDED_VERSION
    top.check_keys(_KEYS | _LEVELS | (_OPERANDS if one_sided else set()))
    try:
        algorithm = _build(top, limits, OP_OF_SHORT if one_sided else TWO_SIDED)
    except AlgorithmError as error:
        top.refuse(error)
    check_algorithm(algorithm, limits, file)
    return algorithm


def _build(top: Fields, limits: ReaderLimits, ops: dict[str, Op]) -> Algorithm:
    blocks = _level(top, "threadblocks", _BLOCK_KEYS)
    steps = _level(top, "steps", _STEP_KEYS)
    collective = collective_from_json(top.values["collective"], top.file, "collective", limits)
    return Algorithm(
        top.string("name"),
        collective,
        tuple(top.integers("scratch_chunks")),
        tb_rank=_ints(blocks.integers("rank")),
        tb_send=_peers(blocks, "send"),
        tb_recv=_peers(blocks, "recv"),
        tb_channel=_ints(blocks.integers("channel")),
        tb_start=_starts(blocks.integers("steps")),
        op=_ints([ops[word] for word in steps.words("op", ops)]),
        source_buffer=_buffers(steps, "source_buffer"),
        source_index=_peers(steps, "source_index"),
        destination_buffer=_buffers(steps, "destination_buffer"),
        destination_index=_peers(steps, "destination_index"),
        count=_ints(steps.integers("count")),
        dep_start=_starts(steps.integers("depends")),
        dep=_ints(top.integers("depends")),
        placements=frozenset(map(Placement, top.words("placements", (p.value for p in Placement)))),
        protocol=top.string("protocol"),
        origins=_origins(top, len(steps.values["op"])),
        **_operand_columns(top),
    )


def _operand_columns(top: Fields) -> dict[str, Ints]:
    if "operands" not in top.values:
        return {}
    fields = _level(top, "operands", _OPERAND_KEYS)
    return {
        "operand_start": _starts(fields.integers("counts")),
        "operand_rank": _ints(fields.integers("rank")),
        "operand_buffer": _buffers(fields, "buffer"),
        "operand_index": _peers(fields, "index"),
        "operand_writes": _ints(fields.integers("writes")),
    }


def _level(top: Fields, key: str, keys: set[str]) -> Fields:
    fields = Fields.of(top.values[key], top.file, key)
    fields.check_keys(keys)
    return fields


def _ints(values: list[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def _peers(fields: Fields, key: str) -> Ints:
    return _ints([NOTHING if value is None else value for value in fields.integers_or_null(key)])


def _starts(sizes: list[int]) -> Ints:
    return np.cumsum([0, *sizes], dtype=np.int64)


def _buffers(fields: Fields, key: str) -> Ints:
    letters = fields.string(key)
    if not set(letters) <= set(_LETTERS):
        fields.fail(f"must hold only the letters {', '.join(_LETTERS)}", key=key)
    codes = {letter: code for code, letter in enumerate("ios")} | {"-": NOTHING}
    return _ints([codes[letter] for letter in letters])


def _origins(top: Fields, steps: int) -> Origins | None:
    if top.values["origins"] is None:
        return None
    fields = _level(top, "origins", {"files", "file", "line"})
    files = fields.strings("files")
    file, line = fields.integers("file"), fields.integers("line")
    if len(file) != steps or len(line) != steps:
        fields.fail(f"must have one file and one line for each of the {steps} steps")
    if any(number >= max(len(files), 1) for number in file):
        fields.fail(f"names a file beyond the {len(files)} there are", key="file")
    if not files and any(line):
        fields.fail("must name at least one file, since steps have lines", key="files")
    return Origins(tuple(files), _ints(file), _ints(line))


def write_json(algorithm: Algorithm, path: str | os.PathLike[str]) -> None:
    """Write the JSON form to a file, as a whole or not at all.

    Raises:
        FormatError: the file cannot be written, or a name in it is none that a text file holds.
    """
    check_names(algorithm, path)
    write_atomic(path, json_text(algorithm))


def check_names(algorithm: Algorithm, path: str | os.PathLike[str]) -> None:
    """Refuse to write what no reader of our forms takes back.

    Raises:
        FormatError: the name of the algorithm, its protocol or collective holds half of a surrogate pair.
    """
    a, file = algorithm, os.fspath(path)
    for word, text in (("algorithm", a.name), ("protocol", a.protocol), ("collective", a.collective.name)):
        if LONE_SURROGATE.search(text):
            message = f"{file!r}: the name {text!r} of the {word} holds half of a surrogate pair, which is no character"
            raise FormatError(message, file=file)


def json_text(algorithm: Algorithm) -> str:
    """The text that ``write_json`` writes: one column a line, always the same for the same algorithm."""
    return "{\n" + ",\n".join(_line(key, value) for key, value in to_json(algorithm).items()) + "\n}\n"


def _line(key: str, value: Json) -> str:
    if key not in _LEVELS | _OPERANDS or not isinstance(value, dict):
        return f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}"
    inner = ",\n  ".join(_line(column, row) for column, row in value.items())
    return f"{json.dumps(key)}: {{\n  {inner}\n}}"


def read_json(path: str | os.PathLike[str], limits: ReaderLimits = DEFAULT_LIMITS) -> Algorithm:
    """The Algorithm in a JSON file.

    Raises:
        FormatError, LimitError: as ``from_json``; also when the file cannot be read or is not JSON.
    """
    name = os.fspath(path)
    return from_json(parse_json(read_text(name, limits.max_bytes), name), name, limits)
