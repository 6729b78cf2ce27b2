"""What other packages offer: further commands, and how the demo's algorithm comes about.

Commands are in the entry-point group ``commlib.commands``: each a ``typer.Typer``; the entry point's name is the
command's name. One is imported only when it is called or when help is asked for, so that a slow or broken one harms
nobody else. A ``DemoStage`` is in the group ``commlib.demo``; of several the first by name is taken.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from commlib.errors import CommlibError

if TYPE_CHECKING:
    from commlib.ir.algorithm import Algorithm

GROUP = "commlib.commands"
DEMO_GROUP = "commlib.demo"


class DemoStage(Protocol):
    """How the algorithm of ``commlib demo`` comes about; ``name`` becomes the name of its file."""

    @property
    def name(self) -> str:
        """The algorithm's name."""
        ...

    def make(self, folder: Path) -> tuple[list[str], Algorithm]:
        """(what it did, the algorithm of an allreduce). Each entry is the title of a step and lines below it.

        ``folder`` is where it may leave files for the user to see.
        """
        ...


def load_demo_stage() -> DemoStage | None:
    """The demo's stage; None when no package offers one.

    Raises:
        CommlibError: it cannot be imported.
    """
    for point in sorted(entry_points(group=DEMO_GROUP), key=lambda point: point.name):
        stage: DemoStage = _imported(point, "the demo's stage")
        return stage
    return None


def plugin_names() -> list[str]:
    """The names of the commands that plug-ins offer."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load_plugin(name: str) -> typer.Typer | None:
    """The plug-in's Typer; None when there is none of this name.

    Raises:
        CommlibError: it cannot be imported, or is not a Typer.
    """
    for point in entry_points(group=GROUP):
        if point.name == name:
            return _loaded(point)
    return None


def _loaded(point: EntryPoint) -> typer.Typer:
    app = _imported(point, "the command")
    if not isinstance(app, typer.Typer):
        raise CommlibError(f"the command {point.name!r} ({point.value}) is not a typer.Typer", command=point.name)
    return app


def _imported(point: EntryPoint, what: str) -> Any:
    try:
        return point.load()
    except Exception as error:  # whatever somebody else's module raises
        message = f"{what} {point.name!r} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
        raise CommlibError(message, command=point.name, entry_point=point.value) from error
