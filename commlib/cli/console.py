"""What reaches the screen: plain text when piped, a little colour on a terminal, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

import typer

_WIDTH = 30
"""Characters of a full progress bar."""


def out(text: str = "") -> None:
    """A line on standard output, at once (so that a reader of a pipe sees a table grow)."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A line on standard error, where that is open."""
    if sys.stderr is not None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def out_json(value: Mapping[str, object]) -> None:
    """One JSON document on standard output."""
    out(json.dumps(value, indent=2))


def counted(number: int, singular: str, plural: str = "") -> str:
    """ "1 step", "2 steps"; ``plural`` where it does not end in a mere s."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def verdict(good: bool, text: str) -> str:
    """The text in green or red when standard output is a terminal, plain otherwise."""
    return typer.style(text, fg="green" if good else "red") if sys.stdout.isatty() else text


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], right: frozenset[int] = frozenset()) -> None:
    """Print a table, columns two spaces apart; those in ``right`` are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(headers))]
    for place, row in enumerate(cells):
        padded = (cell.rjust(widths[k]) if k in right else cell.ljust(widths[k]) for k, cell in enumerate(row))
        line = "  ".join(padded).rstrip()
        out(typer.style(line, bold=True) if place == 0 and sys.stdout.isatty() else line)


class Progress:
    """A progress bar on the last line of a terminal; nothing elsewhere. Hide it before anything else is printed.

    It has no thread of its own, because what it accompanies forks.
    """

    def __init__(self, total: int, what: str, quiet: bool = False) -> None:
        self.total, self.what, self.done = total, what, 0
        self._shown = sys.stdout.isatty() and not quiet

    def show(self, advance: int = 0, what: str | None = None) -> None:
        """Draw the bar, after so many more units of work were done; ``what``: what is done now."""
        self.done += advance
        self.what = self.what if what is None else what
        filled = _WIDTH * self.done // max(1, self.total)
        bar = "#" * filled + "-" * (_WIDTH - filled)
        self._write(f"\r\x1b[K{self.what} [{bar}] {self.done}/{self.total}")

    def hide(self) -> None:
        """Wipe the bar."""
        self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        if self._shown:
            sys.stdout.write(text)
            sys.stdout.flush()
