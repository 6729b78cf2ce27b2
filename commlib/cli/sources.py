"""From what the user names (a file, a library algorithm) to an Algorithm. Nothing here executes a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from commlib.cli.console import counted
from commlib.errors import FormatError, SpecError

if TYPE_CHECKING:
    from commlib.algorithms import DirectEntry, Entry
    from commlib.collectives import Collective, Placement
    from commlib.ir.algorithm import Algorithm

FORMS = (".xml", ".json", ".txt")


def is_file(name: str) -> bool:
    """Whether the user means a file, not a library algorithm: by its ending, a slash, or because it is there."""
    return Path(name).suffix.lower() in (*FORMS, ".py") or "/" in name or Path(name).exists()


def parse_placement(text: str | None) -> tuple[Placement, ...] | None:
    """The placements to judge: None (both) when no option was given.

    Raises:
        typer.BadParameter: neither "in" nor "out".
    """
    from commlib.collectives import Placement

    if text is None:
        return None
    if text not in ("in", "out"):
        raise typer.BadParameter(f"--placement is in or out, not {text!r}")
    return (Placement(text),)


def load_algorithm(path: Path, conditions: str | None = None, root: int | None = None) -> Algorithm:
    """The algorithm in a file, with the conditions and root that the user gives.

    Raises:
        FormatError: a Python file (which only compile executes), not a file that can be read, or one without its root.
    """
    from commlib.formats import load

    if path.suffix.lower() == ".py":
        message = f"{path}: a program, not a compiled algorithm; run commlib compile {path} -o FILE.xml first"
        raise FormatError(message, file=str(path))
    try:
        return load(path, parse_conditions(conditions, lambda: load(path).ranks), root)
    except FormatError as error:
        message = error.message.replace("pass root=RANK", "give it with --root RANK")  # the advice of the Python API
        raise type(error)(message, **error.fields) from error


def parse_conditions(text: str | None, ranks: Callable[[], int] | None = None) -> Collective | str | None:
    """The value of --collective: a collective read from a .json file, or a name as it is.

    ``ranks`` is asked where the file leaves the number of ranks open.

    Raises:
        FormatError: the file defines no collective.
        SpecError: no such collective.
    """
    from commlib.collectives import COLLECTIVES
    from commlib.formats import read_collective

    if text is None:
        return None
    if is_file(text) and text not in COLLECTIVES:
        return read_collective(text, ranks=ranks)
    if text not in COLLECTIVES:
        known = ", ".join(COLLECTIVES)
        raise SpecError(f"no collective is called {text!r}; there are {known}, or a .json file with one's conditions")
    return text


def library_entry(name: str, collective: Collective | str | None) -> Entry | DirectEntry:
    """A library algorithm, by its full name ("ring_allreduce") or, with a collective's name, its own ("ring").

    Raises:
        SpecError: no such algorithm, or the collective is a user's own.
    """
    from commlib.algorithms import entry_of

    if collective is None or isinstance(collective, str):
        return entry_of(name, collective)
    raise SpecError(f"{name} is in the library, which has none for {collective.name}", algorithm=name)


def library_algorithm(
    name: str,
    ranks: int | None,
    root: int | None = None,
    collective: Collective | str | None = None,
    parameters: Mapping[str, int] | None = None,
) -> Algorithm:
    """A library algorithm, compiled.

    Raises:
        SpecError: no such algorithm, or it does not run on so many ranks.
        typer.BadParameter: the number of ranks is missing.
    """
    from commlib.algorithms import build

    entry = library_entry(name, collective)
    if ranks is None:
        raise typer.BadParameter(f"{name} is compiled for a number of ranks: give it with --ranks")
    values: dict[str, Any] = dict(parameters or {})
    return build(entry.collective, entry.name, ranks, root, **values)


def resolve(
    name: str,
    ranks: int | None,
    root: int | None = None,
    conditions: str | None = None,
    parameters: Mapping[str, int] | None = None,
) -> Algorithm:
    """The algorithm of a file, or of the library.

    Raises:
        SpecError: a file's algorithm has another number of ranks, or takes no parameters.
    """
    if not is_file(name):
        return library_algorithm(name, ranks, root, parse_conditions(conditions), parameters)
    if parameters:
        raise SpecError(f"{name} is compiled; parameters are for library algorithms", file=name)
    algorithm = load_algorithm(Path(name), conditions, root)
    if ranks is not None and ranks != algorithm.ranks:
        message = (
            f"{name} is for {counted(algorithm.ranks, 'rank')}, not {ranks}; leave -n out, or give -n {algorithm.ranks}"
        )
        raise SpecError(message, file=name, ranks=ranks)
    return algorithm
