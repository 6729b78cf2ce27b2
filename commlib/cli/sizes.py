"""Message sizes on the command line, written as nccl-tests has them: 512, 64K, 1.5M, 2G, 1T (powers of 1024)."""

from __future__ import annotations

import math
import re

import typer

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?)B?", re.IGNORECASE)
MAX_BYTES = 1 << 40


def parse_size(text: str) -> int:
    """The number of bytes that ``text`` means, rounded down.

    Raises:
        typer.BadParameter: not a size, or beyond 1T.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is not a size; write bytes, or a number with K, M, G or T such as 64K or 1.5M"
        )
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size > MAX_BYTES:
        raise typer.BadParameter(f"{text!r} is more than 1T")
    return size


def parse_sizes(texts: list[str]) -> list[int]:
    """The sizes of repeated options, each of which may list several with commas."""
    return [parse_size(part) for text in texts for part in text.split(",")]


def format_size(size: int) -> str:
    """A short form that ``parse_size`` reads back: 1536 -> "1536", 65536 -> "64K"."""
    for unit in ("T", "G", "M", "K"):
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}"
    return str(size)


def sweep(begin: int, end: int, factor: float, step: int | None = None) -> list[int]:
    """The sizes from ``begin`` to ``end``, each ``factor`` times the one before or, with ``step``, so much larger.

    Raises:
        typer.BadParameter: an empty range, or one that never ends.
    """
    if begin > end:
        raise typer.BadParameter(f"the range of sizes is empty: {format_size(begin)} to {format_size(end)}")
    if step is not None and step < 1:
        raise typer.BadParameter("the step between sizes must be positive")
    if step is None and (not math.isfinite(factor) or factor <= 1):
        raise typer.BadParameter(f"the factor between sizes must be above 1, not {factor:g}")
    sizes = [begin]
    while (following := _next(sizes[-1], factor, step)) <= end:
        sizes.append(following)
    return sizes


def _next(size: int, factor: float, step: int | None) -> int:
    return size + step if step is not None else max(size + 1, int(size * factor))
