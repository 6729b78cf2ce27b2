"""Where the table of ``commlib tune`` lies, and when it counts: on the machine that it was measured on."""

from __future__ import annotations

import os
from pathlib import Path

from commlib.errors import CommlibError
from commlib.runtime.debug import logger
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


def load_tuning(native: bool) -> Registry | None:
    """The table, if there is one that can be read and is of this machine; else None, and a message says why."""
    path, asked = tuning_file(), bool(os.environ.get(VARIABLE))
    if not asked and not path.exists():
        return None
    try:
        table = read_registry(path)
    except CommlibError as error:
        logger.warning("the table of algorithms is refused: %s: %s", type(error).__name__, error.message)
        return None
    here = this_machine(native)
    if table.machine is not None and table.machine != here:
        say = logger.warning if asked else logger.info
        say("%s is not used: it was measured on %s, this is %s", path, table.machine, here)
        return None
    return table
