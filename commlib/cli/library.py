"""``commlib algorithms``: what the library has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from commlib.cli.console import out, out_json, table
from commlib.cli.options import JsonFlag

if TYPE_CHECKING:
    from commlib.algorithms import DirectEntry, Entry

_Collective = Annotated[str | None, typer.Argument(metavar="[COLLECTIVE]", help="Only those of this collective.")]


def algorithms_command(collective: _Collective = None, as_json: JsonFlag = False) -> None:
    """List the library's algorithms.

    Their names are for compile, run and bench; parameters are given as --param KEY=NUMBER. Those that are one-sided
    work on the memory of other ranks, which must be on the same host.
    """
    from commlib.algorithms import algorithms, direct_algorithms

    entries: list[Entry | DirectEntry] = [*algorithms(collective), *direct_algorithms(collective)]
    if as_json:
        out_json({"algorithms": [_entry_json(entry) for entry in entries]})
        return
    rows = [(e.full_name, e.collective, _kind(e), "/".join(e.good_for), _parameters(e), _title(e)) for e in entries]
    table(("name", "collective", "steps", "good for", "parameters", "what it is"), rows)
    if len(entries) == 1:
        out()
        out(entries[0].summary)


def _title(entry: Entry | DirectEntry) -> str:
    """The summary up to its colon: "Ring"."""
    return entry.summary.split(":")[0].rstrip(".")


def _kind(entry: Entry | DirectEntry) -> str:
    from commlib.algorithms import Entry

    return "messages" if isinstance(entry, Entry) else "one-sided"


def _parameters(entry: Entry | DirectEntry) -> str:
    return " ".join(f"{p.name}={p.default}" for p in entry.parameters)


def _entry_json(entry: Entry | DirectEntry) -> dict[str, object]:
    parameters = [{"name": p.name, "default": p.default, "meaning": p.meaning} for p in entry.parameters]
    return {
        "name": entry.full_name,
        "short_name": entry.name,
        "collective": entry.collective,
        "steps": _kind(entry),
        "good_for": list(entry.good_for),
        "placements": sorted(placement.value for placement in entry.placements),
        "parameters": parameters,
        "summary": entry.summary,
    }
