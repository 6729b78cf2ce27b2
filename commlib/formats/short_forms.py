"""Short forms of collectives of a user's own: a matrix of chunks from each rank to each, or several roots.

They become custom collectives, and so everything that reads, proves or synthesizes these knows them already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from commlib.collectives import Collective, custom
from commlib.errors import FormatError, SpecError
from commlib.files.json_fields import Fields, Json

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


def is_short(value: Json) -> bool:
    """Whether a JSON value is to be one of the short forms: a list (a matrix), or an object with "roots"."""
    return isinstance(value, list) or (isinstance(value, dict) and "roots" in value)


def from_short(value: Json, file: str, ranks: Callable[[], int] | None = None) -> Collective:
    """The collective of ``[[0, 2], [1, 0]]`` (a matrix) or ``{"roots": [0, 3], "ranks": 4}``.

    ``ranks`` is asked where the roots' form does not say of how many; ``file`` is for messages.

    Raises:
        FormatError: wrong in it, with file and key.
    """
    try:
        return _matrix(value, file) if isinstance(value, list) else _roots(Fields.of(value, file, "the file"), ranks)
    except SpecError as error:
        raise FormatError(f"{file}: {error.message}", **{**error.fields, "file": file}) from error


def _matrix(rows: list[Json], file: str) -> Collective:
    if not all(isinstance(row, list) for row in rows):
        raise FormatError(f"{file}: a matrix is a list of rows, one for each rank", file=file)
    return matrix_demand(rows)


def _roots(fields: Fields, ranks: Callable[[], int] | None) -> Collective:
    fields.check_keys({"roots"}, {"name", "ranks"})
    name = fields.string("name") if "name" in fields.values else "multi_root_broadcast"
    roots = fields.integers("roots")
    if "ranks" in fields.values:
        return multi_root(fields.integer("ranks", 1), roots, name)
    if ranks is None:
        fields.fail('say beside the roots of how many ranks, as "ranks": 8', key="ranks")
    return multi_root(ranks(), roots, name)
