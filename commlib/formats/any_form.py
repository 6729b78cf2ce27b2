"""Load and save in whichever form a file has."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from commlib.collectives import COLLECTIVES, ROOTED, Collective
from commlib.errors import AlgorithmError, FormatError, SpecError
from commlib.files.disk import decode, read_bounded, write_atomic
from commlib.files.json_fields import parse_json
from commlib.formats.json_form import check_names, from_json, write_json
from commlib.formats.limits import DEFAULT_LIMITS, ReaderLimits, check_algorithm
from commlib.formats.msccl_xml import Dialect, parse_xml, write_xml
from commlib.ir.algorithm import Algorithm
from commlib.ir.text import algorithm_from_text, algorithm_to_text

FORMS = (".xml", ".json", ".txt")


def load(
    path: str | os.PathLike[str],
    collective: Collective | str | None = None,
    root: int | None = None,
    limits: ReaderLimits = DEFAULT_LIMITS,
) -> Algorithm:
    """The Algorithm in a file of any form: MSCCL XML, our JSON, or our text; told apart by content.

    ``collective`` and ``root`` are what the file does not hold (see ``read_xml``). Our own forms hold both; they may
    still be given, for an algorithm whose conditions nobody gave yet, or if they are the same.

    Raises:
        FormatError: none of these forms, or wrong in it, or it contradicts what was given.
        LimitError: larger than the limits allow.
    """
    name = os.fspath(path)
    content = read_bounded(name, limits.max_bytes)
    start = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<") or content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return parse_xml(content, name, collective, root, limits)[0]
    if start.startswith(b"{"):
        algorithm = from_json(parse_json(decode(content, name), name), name, limits)
    elif start.startswith((b"algorithm", b"#")):
        algorithm = algorithm_from_text(decode(content, name), name)
        check_algorithm(algorithm, limits, name)
    else:
        message = "neither MSCCL XML (<algo ...>) nor our JSON ({...) nor our text (algorithm ...)"
        raise FormatError(f"{name}:1: {message}", file=name, line=1)
    return with_conditions(algorithm, collective, root, name)


def with_conditions(
    algorithm: Algorithm, collective: Collective | str | None, root: int | None, file: str
) -> Algorithm:
    """The algorithm with a given collective in place of one that specified nothing, or the same.

    Raises:
        FormatError: what is given contradicts the algorithm's own collective.
    """
    own = algorithm.collective
    if own.specified:
        given = (None, own) if isinstance(collective, Collective) else (None, own.name)
        if collective not in given or root not in (None, own.root):
            wanted = collective if root is None else f"{collective or own.name} with root {root}"
            raise FormatError(f"{file}: the file's collective is {own}, not {wanted}", file=file)
        return algorithm
    if collective is None:
        return algorithm
    return _specified(algorithm, _made(algorithm, collective, root, file), file)


def _made(algorithm: Algorithm, collective: Collective | str, root: int | None, file: str) -> Collective:
    """The collective that is given, with the chunks that the algorithm's buffers have."""
    if isinstance(collective, Collective):
        return collective
    if collective not in COLLECTIVES:
        raise FormatError(f"{file}: no collective is called {collective!r}; there are {', '.join(COLLECTIVES)}")
    if collective in ROOTED and root is None:
        raise FormatError(f"{file}: {collective} needs a root: pass root=RANK", file=file)
    try:
        unit = Collective(collective, algorithm.ranks, 1, root)
    except SpecError as error:
        raise FormatError(f"{file}: {error.message}", file=file) from error
    ranks, own = range(algorithm.ranks), algorithm.collective
    sizes = max(max(own.input_chunks(r), own.output_chunks(r)) for r in ranks)
    units = max(max(unit.input_chunks(r), unit.output_chunks(r)) for r in ranks)
    return unit.refine(max(1, sizes // units))


def _specified(algorithm: Algorithm, collective: Collective, file: str) -> Algorithm:
    try:
        return replace(algorithm, collective=collective)
    except (AlgorithmError, IndexError) as error:
        raise FormatError(f"{file}: its steps do not fit {collective}: {error}", file=file) from error


def save(
    algorithm: Algorithm,
    path: str | os.PathLike[str],
    dialect: Dialect = "msccl",
    min_bytes: int | None = None,
    max_bytes: int | None = None,
) -> None:
    """Write an Algorithm in the form that the name's ending says: .xml (see ``write_xml``), .json or .txt.

    Raises:
        FormatError: another ending, something that XML does not hold, or the file cannot be written.
    """
    ending = Path(path).suffix.lower()
    if ending == ".xml":
        write_xml(algorithm, path, dialect, min_bytes, max_bytes)
    elif ending == ".json":
        write_json(algorithm, path)
    elif ending == ".txt":
        check_names(algorithm, path)
        write_atomic(path, algorithm_to_text(algorithm))
    else:
        name = os.fspath(path)
        raise FormatError(f"{name}: a file's name must end in one of {', '.join(FORMS)}", file=name)
