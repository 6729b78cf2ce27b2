"""The command line: its commands, what they do with errors, and further commands from plug-ins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from commlib.cli.bench import bench_command
from commlib.cli.compile import compile_command
from commlib.cli.console import out
from commlib.cli.demo import demo_command
from commlib.cli.failures import UsageError, output_needed, report, report_usage, wants_json
from commlib.cli.library import algorithms_command
from commlib.cli.plugins import load_plugin, plugin_names
from commlib.cli.run import run_command
from commlib.cli.show import show_command
from commlib.cli.tune import tune_command
from commlib.cli.verify import verify_command
from commlib.errors import CommlibError

JSON_WANTED = "json"
"""The key under which the context remembers that the output is for a program."""


@contextmanager
def _usage_told(ctx: Any) -> Iterator[None]:
    """Wrong usage is printed as JSON where that is wanted, before the parser ends the command with status 2."""
    try:
        yield
    except UsageError as error:
        if ctx.obj[JSON_WANTED]:
            report_usage(error)
        raise


class Reporting(TyperGroup):
    """Commands of which a CommlibError ends with one line and status 1; ``program`` is the word it begins with."""

    program = "commlib"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options before the command's name, and whether errors are to be JSON too."""
        ctx.ensure_object(dict)[JSON_WANTED] = wants_json(args)
        with _usage_told(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; report its typed errors."""
        try:
            with _usage_told(ctx):
                return super().invoke(ctx)
        except CommlibError as error:
            if ctx.params.get("debug") or ctx.find_root().params.get("debug"):
                raise
            report(error, ctx.obj[JSON_WANTED], self.program)
            raise typer.Exit(1) from error


class Commands(Reporting):
    """The built-in commands, then those of plug-ins."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All commands' names, the built-in ones first."""
        own = list(super().list_commands(ctx))
        return own + [name for name in plugin_names() if name not in own]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name; a plug-in is imported only now."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in plugin_names():
            return own
        try:
            plugin = load_plugin(cmd_name)
        except CommlibError as error:
            return _broken(cmd_name, error)
        return None if plugin is None else typer.main.get_command(plugin)


def _broken(name: str, error: CommlibError) -> Any:
    """A command that stands for a plug-in that cannot be loaded, and says so when called."""
    app = typer.Typer(add_completion=False)

    @app.command(name, help=f"(cannot be loaded: {error.message})")
    def fail() -> None:
        raise error

    return typer.main.get_command(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        from commlib import __version__

        out(f"commlib {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the Python traceback of an error.")] = False,
) -> None:
    """Collective algorithms: write, compile, prove and run them."""


def new_app(name: str, commands: type[Reporting]) -> typer.Typer:
    """A Typer without commands; help is plain text when standard output is not a terminal."""
    return typer.Typer(
        name=name,
        cls=commands,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown" if sys.stdout is not None and sys.stdout.isatty() else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def build_app() -> typer.Typer:
    """The command line as a Typer."""
    app = new_app("commlib", Commands)
    app.callback()(_options)
    app.command("compile")(compile_command)
    app.command("verify")(verify_command)
    app.command("show")(show_command)
    app.command("run")(run_command)
    app.command("bench")(bench_command)
    app.command("tune")(tune_command)
    app.command("algorithms")(algorithms_command)
    app.command("demo")(demo_command)
    return app


def run(build: Callable[[], typer.Typer] = build_app) -> None:
    """Run a command line on this process's arguments; never returns."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with output_needed():
        build()()
