"""The tables of a run, as aligned text or Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

from cells import COLLECTIVES, LARGEST, Cell
from goals import MPIS, Figures, Ratio, judge

Row = Sequence[str]
TORCH_HEAD = ("ranks", "size", "gloo p10", "median", "commlib p10", "median", "x p10", "x median", "python p10", "x")
MPI_HEAD = ("ranks", "size", *MPIS, "library", "x", "registered", "x", "torch call", "x")


def render(found: dict[str, Any], markdown: bool, only: str = "") -> str:
    """The tables of a run whose titles have the text ``only``."""
    figures = Figures(found)
    table = _markdown if markdown else _aligned
    parts = [about(found)]
    for title, head, rows in sections(figures):
        if rows and only in title:
            parts.append(f"{'## ' if markdown else ''}{title}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def about(found: dict[str, Any]) -> str:
    """Machine, versions, and what is missing."""
    machine = "; ".join(f"{key} {value}" for key, value in found["machine"].items())
    versions = "; ".join(
        f"{name}: " + ", ".join(f"{k} {v}" for k, v in found["versions"][name].items()) for name in found["versions"]
    )
    lines = [f"machine: {machine}", f"versions: {versions}", f"measured in {found['seconds']} s"]
    lines += [f"not installed, left out: {', '.join(found['missing'])}"] if found["missing"] else []
    lines += [f"lost: {text}" for text in found["lost"]]
    wrong = sum(not record["right"] for record in found["records"])
    lines += [f"WRONG RESULTS: {wrong}"] if wrong else []
    return "\n".join(lines)


def sections(figures: Figures) -> Iterator[tuple[str, Row, list[Row]]]:
    """Title, head and rows of each table."""
    for title, ratio in grids(figures):
        sizes = sorted({cell.bytes for collective in COLLECTIVES for cell in _measured(figures, collective)})
        head = ("collective", "ranks", *(Cell("", 1, size).size for size in sizes))
        yield title, head, list(_grid_rows(figures, sizes, ratio))
    for collective in COLLECTIVES:
        yield f"{collective}: torch.distributed, us", TORCH_HEAD, list(_torch_rows(figures, collective))
    for collective in COLLECTIVES:
        yield f"{collective}: library call and MPI, p10, us", MPI_HEAD, list(_mpi_rows(figures, collective))
    limit = ("ranks", "read GB/s", "update GB/s", "subject", "call us", "% of reading", "% of updating")
    yield f"allreduce of {LARGEST >> 20} MB and the memory's limits, medians", limit, list(_limit_rows(figures))
    ddp = ("backend", "step ms", "alone ms", "communication ms", "gloo / this")
    yield "DistributedDataParallel, 4 ranks, 25 million parameters, medians", ddp, list(_ddp_rows(figures))
    busy = ("collective", "ranks", "size", "quiet us", "busy us", "busy / quiet")
    yield "another process on a core, medians", busy, list(_busy_rows(figures))
    goals = ("what", "goal", "cells that meet it", "worst", "where")
    yield "goals (p10, where nothing else is said)", goals, [goal.row() for goal in judge(figures)]


def grids(figures: Figures) -> Iterator[tuple[str, Ratio]]:
    """The ratios that are shown for all collectives at once."""
    yield "gloo / commlib, the same torch.distributed call (p10)", partial(figures.against_gloo, "native")
    yield "gloo / commlib in pure Python (p10)", partial(figures.against_gloo, "python")
    yield "best MPI / library call, ordinary tensors (p10)", partial(figures.against_mpi, "library")
    yield "best MPI / library call, registered tensors (p10)", partial(figures.against_mpi, "registered")


def _measured(figures: Figures, collective: str) -> list[Cell]:
    return figures.cells(collective, "native", "commlib")


def _grid_rows(figures: Figures, sizes: Sequence[int], ratio: Ratio) -> Iterator[Row]:
    for collective in COLLECTIVES:
        cells = set(_measured(figures, collective))
        for ranks in sorted({cell.ranks for cell in cells}):
            among = [Cell(collective, ranks, size) for size in sizes]
            found = [ratio(cell) if cell in cells else None for cell in among]
            if any(found):
                yield (collective, str(ranks), *("-" if value is None else f"{value:.3g}" for value in found))


def _torch_rows(figures: Figures, collective: str) -> Iterator[Row]:
    for cell in figures.cells(collective, "native", "commlib"):
        gloo, own = (figures.record(cell, "native", subject) for subject in ("gloo", "commlib"))
        if gloo is None or own is None:
            continue
        times = [f"{1e6 * record[kind]:.1f}" for record in (gloo, own) for kind in ("p10", "median")]
        ratios = [f"{gloo[kind] / own[kind]:.1f}" for kind in ("p10", "median")]
        python = (_us(figures.p10(cell, "python", "commlib")), _ratio(figures.against_gloo("python", cell)))
        yield (str(cell.ranks), cell.size, *times, *ratios, *python)


def _mpi_rows(figures: Figures, collective: str) -> Iterator[Row]:
    for cell in figures.cells(collective, "native", "library"):
        best = figures.best_mpi(cell)
        row = [str(cell.ranks), cell.size, *(_us(figures.p10(cell, name, "mpi")) for name in MPIS)]
        for subject in ("library", "registered", "commlib"):
            own = figures.p10(cell, "native", subject)
            row += [_us(own), _ratio(best / own if best and own else None)]
        yield row


def _limit_rows(figures: Figures) -> Iterator[Row]:
    for limit in figures.limits():
        rates = [f"{median(rates) / 1e9:.1f}" for rates in (limit.reads, limit.updates)]
        for subject, times in limit.calls.items():
            shares = (f"{100 * limit.share(subject, rates):.0f}" for rates in (limit.reads, limit.updates))
            yield (str(limit.ranks), *rates, subject, f"{1e6 * median(times):.0f}", *shares)


def _ddp_rows(figures: Figures) -> Iterator[Row]:
    costs = figures.ddp()
    for name, (step, alone, cost) in costs.items():
        ratio = _ratio(costs["gloo"][2] / cost if cost > 0 else None)
        yield (name, f"{1e3 * step:.1f}", f"{1e3 * alone:.1f}", f"{1e3 * cost:.1f}", ratio)


def _busy_rows(figures: Figures) -> Iterator[Row]:
    for cell, quiet, busy in figures.busy():
        yield (cell.collective, str(cell.ranks), cell.size, _us(quiet), _us(busy), f"{busy / quiet:.2f}")


def _us(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _aligned(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def _markdown(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
