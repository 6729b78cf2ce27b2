"""``commlib algorithms``: what the library has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from commlib.cli.console import out, out_json, table
from commlib.cli.options import JsonFlag

if TYPE_CHECKING:
    from commlib.algorithms import Entry

_Collective = Annotated[str | None, typer.Argument(metavar="[COLLECTIVE]", help="Only those of this collective.")]


def algorithms_command(collective: _Collective = None, as_json: JsonFlag = False) -> None:
    """List the library's algorithms.

    Their names are for compile, run and bench; parameters are given as --param KEY=NUMBER.
    """
    from commlib.algorithms import algorithms

    entries = algorithms(collective)
    if as_json:
        out_json({"algorithms": [_entry_json(entry) for entry in entries]})
        return
    rows = [(e.full_name, e.collective, "/".join(e.good_for), _parameters(e), _title(e)) for e in entries]
    table(("name", "collective", "good for", "parameters", "what it is"), rows)
    if len(entries) == 1:
        out()
        out(entries[0].summary)


def _title(entry: Entry) -> str:
    """The summary up to its colon: "Ring"."""
    return entry.summary.split(":")[0].rstrip(".")


def _parameters(entry: Entry) -> str:
    return " ".join(f"{p.name}={p.default}" for p in entry.parameters)


def _entry_json(entry: Entry) -> dict[str, object]:
    parameters = [{"name": p.name, "default": p.default, "meaning": p.meaning} for p in entry.parameters]
    return {
        "name": entry.full_name,
        "short_name": entry.name,
        "collective": entry.collective,
        "good_for": list(entry.good_for),
        "placements": sorted(placement.value for placement in entry.placements),
        "parameters": parameters,
        "summary": entry.summary,
    }
