"""What commlib says of its own doings: the logger "commlib", and COMMLIB_DEBUG, which sends it to standard error."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

logger = logging.getLogger("commlib")
Say = Callable[[int, str], None]
"""Takes a message with its level, as ``logger.log`` does."""
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


def one_line(name: str, text: str) -> str:
    """A text in which a file's name, which may hold any character, stands with escapes for those that do not print."""
    return text.replace(name, repr(name)[1:-1])


class Complaints:
    """Messages that wait until it is known who tells them: ranks that read the same files would all say the same.

    Each text is taken once.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, str]] = []
        self._taken: set[str] = set()

    def add(self, level: int, text: str) -> None:
        """Keep a message until ``tell``, if there was none like it."""
        if text not in self._taken:
            self._taken.add(text)
            self._waiting.append((level, text))

    def tell(self, rank: int, alike: bool = True) -> None:
        """Say what waits: on rank 0 for all, where the ranks were found to be ``alike``; else each for itself."""
        waiting, self._waiting = self._waiting, []
        for level, text in waiting:
            if not alike:
                logger.log(level, "rank %d: %s", rank, text)
            elif rank == 0:
                logger.log(level, "%s", text)
