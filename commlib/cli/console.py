"""What reaches the screen: plain text when piped, a little colour on a terminal, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import typer

GREEN, RED, BOLD = "green", "red", "bold"


def out(text: str = "") -> None:
    """A line on standard output, at once (so that a reader of a pipe sees a table grow)."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def out_json(value: Mapping[str, object]) -> None:
    """One JSON document on standard output."""
    out(json.dumps(value, indent=2))


def verdict(good: bool, text: str) -> str:
    """The text in green or red when standard output is a terminal, plain otherwise."""
    return typer.style(text, fg=GREEN if good else RED) if sys.stdout.isatty() else text


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], right: frozenset[int] = frozenset()) -> None:
    """Print a table; the columns in ``right`` are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(headers, cells, right)
    else:
        for line in plain_table(headers, cells, right):
            out(line)


def plain_table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int]) -> Iterator[str]:
    """The lines of a table in plain text, columns two spaces apart."""
    everything = [list(headers), *map(list, rows)]
    widths = [max(len(row[k]) for row in everything) for k in range(len(headers))]
    for row in everything:
        padded = (cell.rjust(widths[k]) if k in right else cell.ljust(widths[k]) for k, cell in enumerate(row))
        yield "  ".join(padded).rstrip()


def _rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD)
    for k, header in enumerate(headers):
        shown.add_column(header, justify="right" if k in right else "left")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    Console().print(shown)


@contextmanager
def progress(total: int, what: str, quiet: bool = False) -> Iterator[Callable[[], None]]:
    """A progress bar under the output while the block runs, on a terminal only; call what it yields per unit done."""
    if quiet or not sys.stdout.isatty():
        yield lambda: None
        return
    from rich.progress import Progress

    # No refreshing thread: the block forks. rich prints what the block writes above the bar.
    with Progress(transient=True, auto_refresh=False) as bar:
        task = bar.add_task(what, total=total)
        bar.refresh()
        yield lambda: bar.update(task, advance=1, refresh=True)
