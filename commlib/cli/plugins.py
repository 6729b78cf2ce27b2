"""Further commands: objects that other packages offer in the entry-point group ``commlib.commands``.

Each is a ``typer.Typer``; the entry point's name is the command's name. One is imported only when it is called or
when help is asked for, so that a slow or broken one harms nobody else.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import typer

from commlib.errors import CommlibError

GROUP = "commlib.commands"


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
    try:
        app = point.load()
    except Exception as error:  # whatever somebody else's module raises
        message = f"the command {point.name!r} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
        raise CommlibError(message, command=point.name, entry_point=point.value) from error
    if not isinstance(app, typer.Typer):
        raise CommlibError(f"the command {point.name!r} ({point.value}) is not a typer.Typer", command=point.name)
    return app
