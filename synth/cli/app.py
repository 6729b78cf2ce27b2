"""The command line of the synthesizer: its commands, with the looks and the errors of ``commlib``'s."""

from __future__ import annotations

from typing import Annotated

import typer

from commlib.cli.app import Reporting, new_app
from commlib.cli.console import out
from synth.cli.bounds import bounds_command
from synth.cli.machines import machines_command
from synth.cli.pareto import pareto_command
from synth.cli.show import show_command
from synth.cli.solve import solve_command


class Commands(Reporting):
    """The commands of ``synth``."""

    program = "synth"


def _show_version(wanted: bool) -> None:
    if wanted:
        from commlib import __version__

        out(f"synth (commlib {__version__})")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")] = False,
) -> None:
    """Synthesize collective algorithms from a topology and a sketch, with a proof of how good they are."""


def build_app() -> typer.Typer:
    """The command line as a Typer."""
    app = new_app("synth", Commands)
    app.callback()(_options)
    app.command("solve")(solve_command)
    app.command("machines")(machines_command)
    app.command("bounds")(bounds_command)
    app.command("pareto")(pareto_command)
    app.command("show")(show_command)
    return app


app = build_app()
"""What ``commlib synth`` runs, through the entry-point group ``commlib.commands``."""
