"""Where the table of ``commlib tune`` lies, and when it counts: on the machine that it was measured on."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from commlib.errors import CommlibError
from commlib.runtime.debug import Say, logger, one_line
from commlib.runtime.registry import Registry, read_registry, this_machine

VARIABLE = "COMMLIB_TUNING"


def tuning_file() -> Path:
    """COMMLIB_TUNING, or tuning/tuning.json in COMMLIB_CACHE or in commlib's folder of the user's cache."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    own, shared = os.environ.get("COMMLIB_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "commlib"
    return folder / "tuning" / "tuning.json"


def load_tuning(native: bool, say: Say = logger.log) -> Registry | None:
    """The table, if there is one that can be read and is of this machine; else None, and ``say`` gets why."""
    path, asked = tuning_file(), bool(os.environ.get(VARIABLE))
    if not asked and not path.exists():
        return None
    try:
        table = read_registry(path)
    except CommlibError as error:
        text = f"the table of algorithms is refused: {type(error).__name__}: {error.message}"
        say(logging.WARNING, one_line(str(path), text))
        return None
    here = this_machine(native)
    if table.machine is not None and table.machine != here:
        level = logging.WARNING if asked else logging.INFO
        say(level, one_line(str(path), f"{path} is not used: it was measured on {table.machine}, this is {here}"))
        return None
    return table
