"""Demands of a user's own: a matrix of chunks from each rank to each, a broadcast from several roots, or a file.

They become custom collectives, and so everything that follows (bounds, engines, proof) knows them already.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from commlib.collectives import Collective, custom
from commlib.errors import FormatError, SpecError
from commlib.files.disk import read_text
from commlib.files.json_fields import Fields, Json, parse_json
from commlib.formats.collective_json import collective_from_json

MAX_BYTES = 64 << 20
MAX_CHUNKS = 1 << 20
"""Chunks that a matrix may ask for in all."""


def matrix_demand(matrix: Sequence[Sequence[int]], name: str = "matrix") -> Collective:
    """The collective in which rank s sends ``matrix[s][d]`` chunks of its own to rank d.

    A rank's input has its chunks in the order of their destinations, its output in the order of their origins.

    Raises:
        SpecError: the matrix is not square, or has a number that is none of chunks.
    """
    ranks = len(matrix)
    if not ranks or any(len(row) != ranks for row in matrix):
        raise SpecError(f"{name}: a matrix has as many columns as rows, one for each rank")
    for source, row in enumerate(matrix):
        for target, count in enumerate(row):
            if type(count) is not int or count < 0:
                message = f"{name}: row {source}: from rank {source} to {target} go 0 chunks or more, not {count!r}"
                raise SpecError(message, rank=source)
    total = sum(map(sum, matrix))
    if not 0 < total <= MAX_CHUNKS:
        raise SpecError(f"{name}: asks for {total} chunks, and 1 to {MAX_CHUNKS} are possible")
    sources: dict[tuple[int, int], list[tuple[int, int]]] = {}
    filled = [0] * ranks
    for source, row in enumerate(matrix):
        sent = 0
        for target, count in enumerate(row):
            for _ in range(count):
                sources[target, filled[target]] = [(source, sent)]
                filled[target] += 1
                sent += 1
    return custom(name, [sum(row) for row in matrix], filled, sources)


def multi_root(ranks: int, roots: Sequence[int], name: str = "multi_root_broadcast") -> Collective:
    """The collective in which every rank gets one chunk of each root, in the order of ``roots``.

    Raises:
        SpecError: no roots, one twice, or one that is not a rank.
    """
    if not roots or len(set(roots)) != len(roots):
        raise SpecError(f"{name}: roots are some ranks, each once, not {list(roots)}")
    for root in roots:
        if not 0 <= root < ranks:
            raise SpecError(f"{name}: root {root} is not one of the {ranks} ranks", root=root)
    inputs = [int(rank in roots) for rank in range(ranks)]
    wanted = {(rank, place): [(root, 0)] for rank in range(ranks) for place, root in enumerate(roots)}
    return custom(name, inputs, [len(roots)] * ranks, wanted)


def read_demand(path: str | os.PathLike[str], ranks: int) -> Collective:
    """The collective in a JSON file: ``[[0, 2], [1, 0]]`` (a matrix), ``{"roots": [0, 3]}``, or a collective's form.

    Raises:
        FormatError: none of these, or not for ``ranks`` ranks.
    """
    file = os.fspath(path)
    value = parse_json(read_text(file, MAX_BYTES), file)
    try:
        found = _from_json(value, file, ranks)
    except SpecError as error:
        raise FormatError(f"{file}: {error.message}", **{**error.fields, "file": file}) from error
    if found.ranks != ranks:
        raise FormatError(f"{file}: is for {found.ranks} ranks, and the topology has {ranks}", file=file)
    return found


def _from_json(value: Json, file: str, ranks: int) -> Collective:
    if isinstance(value, list):
        if not all(isinstance(row, list) for row in value):
            raise FormatError(f"{file}: a matrix is a list of rows, one for each rank", file=file)
        return matrix_demand(value)
    fields = Fields.of(value, file, "the file")
    if "roots" in fields.values:
        fields.check_keys({"roots"}, {"name"})
        name = fields.string("name") if "name" in fields.values else "multi_root_broadcast"
        return multi_root(ranks, fields.integers("roots"), name)
    return collective_from_json(value, file)


def named_or_read(text: str, ranks: int) -> str | Collective:
    """What a user means by COLLECTIVE: a standard name, or a ``.json`` file.

    Raises:
        FormatError: as ``read_demand``.
    """
    return read_demand(text, ranks) if text.lower().endswith(".json") else text
