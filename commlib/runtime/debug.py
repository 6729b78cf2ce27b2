"""What commlib says of its own doings: the logger "commlib", and COMMLIB_DEBUG, which sends it to standard error."""

from __future__ import annotations

import logging
import os
import sys

logger = logging.getLogger("commlib")
LEVELS = {"WARN": logging.WARNING, "INFO": logging.INFO, "DEBUG": logging.DEBUG}


class _ToStderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what standard error is at the time: programs and tests replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> object:
        return sys.stderr


def obey_environment() -> None:
    """Show messages from the level that COMMLIB_DEBUG names (WARN, INFO or DEBUG); again, it changes nothing.

    Without it, messages go where the program's own logging sends them; warnings are always seen.
    """
    level = LEVELS.get(os.environ.get("COMMLIB_DEBUG", "").upper())
    if level is None or any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        return
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("commlib %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
