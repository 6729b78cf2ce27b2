"""How the command line fails: typed errors and wrong usage, for a person on stderr, for a program as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from commlib.cli.console import note, out
from commlib.errors import CommlibError

UsageError: Any = typer.BadParameter.__mro__[1]
"""The base of what the parser raises; typer has click's under another name in each version, but exports this one."""


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether --json is among the arguments: what the parser refuses is also to be told to a program."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def report(error: CommlibError, as_json: bool, program: str = "commlib") -> None:
    """Print an error for a person on stderr and, when asked, for a program on stdout."""
    note(f"{program}: {error.message}")
    if not as_json:
        return
    findings = _findings(error)
    message = error.message.split("\n", 1)[0] if findings else error.message  # the rest is the findings in words
    fields = {name: _plain(value) for name, value in error.fields.items() if _is_plain(value)}
    _print_json(findings, {"kind": type(error).__name__, "message": message, **fields})


def _is_plain(value: object) -> bool:
    """Whether JSON can say it: a scalar, or a list of such, as of ranks or of a link's ends."""
    return isinstance(value, str | int | float) or (
        isinstance(value, list | tuple) and all(isinstance(each, str | int | float) for each in value)
    )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, list | tuple) else value


def report_usage(error: Any) -> None:
    """Print wrong usage for a program; the parser itself tells the person."""
    _print_json([], {"kind": "UsageError", "message": error.format_message()})


def _print_json(findings: list[dict[str, object]], error: dict[str, object]) -> None:
    out(json.dumps({"ok": False, "findings": findings, "error": error}, indent=2))


def _findings(error: CommlibError) -> list[dict[str, object]]:
    found: Any = error.fields.get("findings", ())
    return [finding.as_json() for finding in found]


@contextlib.contextmanager
def output_needed() -> Iterator[None]:
    """Inside it, standard output that is closed or cannot be written ends the process with one line and status 1."""
    if sys.stdout is None:
        note("commlib: standard output is closed")
        sys.exit(1)
    try:
        yield
    except OSError as error:
        if _can_be_written():
            raise
        note(f"commlib: standard output: {error.strerror}")
        sys.exit(1)


def _can_be_written() -> bool:
    """Whether standard output works; if not, what it still holds is dropped, so that leaving Python does not fail."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return False
    return True
