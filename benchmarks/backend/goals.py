"""What a run says about the goals: look-ups of its figures, ratios, and which cells meet each goal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import geometric_mean, median
from typing import Any

from cells import COLLECTIVES, LARGEST, Cell

MPIS = ("openmpi", "mpich", "impi")
KB, MB = 1 << 10, 1 << 20
Found = dict[str, Any]
Ratio = Callable[[Cell], float | None]
Reached = tuple[float, str, str]
"""What was reached in parts of what was wanted (1 meets it), the figure in words, and where."""
SMALL_CALLS = {2: 3, 4: 15, 8: 30}
"""Microseconds of a call of 1 KB through torch, by ranks."""


@dataclass(frozen=True)
class Limit:
    """How fast all ranks together read memory beyond the cache, and read it and write it back, in bytes per second, and
    the seconds of the largest allreduce, all of these in each round.

    Shares are medians of the rounds' shares: the memory is shared with what other machines do, and in its best moments
    twice as fast as mostly.
    """

    ranks: int
    reads: list[float]
    updates: list[float]
    calls: dict[str, list[float]]

    def share(self, subject: str, rates: list[float]) -> float:
        """The time to go through all inputs once at these rates, over the call's."""
        times = self.calls[subject]
        return median(self.ranks * LARGEST / rate / time for rate, time in zip(rates, times, strict=True))


class Figures:
    """Look-ups in what a run found; times in seconds."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._records: dict[tuple[str, str, str, Cell], Found] = {
            (r["condition"], r["crew"], r["subject"], Cell(r["collective"], r["ranks"], r["bytes"])): r
            for r in found["records"]
        }

    def cells(self, collective: str, crew: str, subject: str, condition: str = "cells") -> list[Cell]:
        """The cells of a collective that a subject was measured in."""
        wanted = (condition, crew, subject)
        return [key[3] for key in self._records if key[:3] == wanted and key[3].collective == collective]

    def record(self, cell: Cell, crew: str, subject: str, condition: str = "cells") -> Found | None:
        """What was measured of a subject in a cell."""
        return self._records.get((condition, crew, subject, cell))

    def p10(self, cell: Cell, crew: str, subject: str) -> float | None:
        """Its tenth percentile."""
        found = self.record(cell, crew, subject)
        return None if found is None else float(found["p10"])

    def best_mpi(self, cell: Cell) -> float | None:
        """The tenth percentile of the best MPI."""
        times = [time for name in MPIS if (time := self.p10(cell, name, "mpi")) is not None]
        return min(times, default=None)

    def against_gloo(self, crew: str, cell: Cell) -> float | None:
        """gloo's time over the backend's, through the same call in the same processes."""
        gloo, own = (self.p10(cell, crew, subject) for subject in ("gloo", "commlib"))
        return gloo / own if gloo and own else None

    def against_mpi(self, subject: str, cell: Cell) -> float | None:
        """The best MPI's time over that of a subject."""
        best, own = self.best_mpi(cell), self.p10(cell, "native", subject)
        return best / own if best and own else None

    def limits(self) -> Iterator[Limit]:
        """The memory's limits on the largest allreduce, and the measured calls."""
        for found in self._found["limit"]:
            if found["reads"]:
                yield Limit(**{name: found[name] for name in ("ranks", "reads", "updates", "calls")})

    def torch_itself(self, ranks: int) -> float | None:
        """The tenth percentile of an allreduce on a group that does nothing."""
        times = next((sorted(found["torch"]) for found in self._found["limit"] if found["ranks"] == ranks), [])
        return times[len(times) // 10] if times else None

    def ddp(self) -> dict[str, tuple[float, float, float]]:
        """Step, step without communication, and their difference, of the slowest rank; medians."""
        answers = self._found["ddp"]
        costs = {}
        for name in answers[0] if answers else ():
            step, alone = (
                median(map(max, zip(*(answer[name][kind] for answer in answers), strict=True)))
                for kind in ("step", "alone")
            )
            costs[name] = (step, alone, step - alone)
        return costs

    def busy(self) -> Iterator[tuple[Cell, float, float]]:
        """Medians of the backend's call, quiet and with another process on a core."""
        for collective in COLLECTIVES:
            for cell in self.cells(collective, "native", "commlib", "quiet"):
                both = [self.record(cell, "native", "commlib", condition) for condition in ("quiet", "busy")]
                if both[0] and both[1]:
                    yield cell, both[0]["median"], both[1]["median"]


@dataclass
class Goal:
    """A goal, and what each of its cells reached."""

    what: str
    goal: str
    reached: list[Reached]

    def row(self) -> list[str]:
        """A line of the table."""
        if not self.reached:
            return [self.what, self.goal, "not measured", "-", "-"]
        worst = min(self.reached)
        met = sum(share >= 1 for share, _, _ in self.reached)
        return [self.what, self.goal, f"{met} of {len(self.reached)}", worst[1], worst[2]]


def _where(cell: Cell) -> str:
    return f"{cell.collective} {cell.ranks} ranks {cell.size}"


def _least(
    figures: Figures, what: str, wanted: float, ratio: Ratio, collective: str, among: Callable[[Cell], bool]
) -> Goal:
    """Each cell's ratio is at least ``wanted``."""
    reached = []
    for cell in figures.cells(collective, "native", "commlib"):
        found = ratio(cell) if among(cell) else None
        if found is not None:
            reached.append((found / wanted, f"{found:.2f}x", _where(cell)))
    return Goal(what, f">= {wanted:g}x", reached)


def judge(figures: Figures) -> Iterator[Goal]:
    """All goals."""
    yield from _against_gloo(figures)
    yield from _against_mpi(figures)
    yield from _others(figures)


def _against_gloo(figures: Figures) -> Iterator[Goal]:
    native, python = (partial(figures.against_gloo, crew) for crew in ("native", "python"))
    least = partial(_least, figures)
    yield least("allreduce / gloo", 6.5, native, "allreduce", _every)
    yield least("allreduce / gloo, stretch", 8, native, "allreduce", _every)
    yield least("allreduce / gloo, <= 16K", 25, native, "allreduce", lambda cell: cell.bytes <= 16 * KB)
    yield least("allreduce / gloo, 8 ranks, <= 1M", 40, native, "allreduce", _eight_small)
    for collective in COLLECTIVES[1:]:
        yield least(f"{collective} / gloo", 4, native, collective, _every)
    for collective in COLLECTIVES:
        wanted = 4 if collective == "allreduce" else 2
        yield least(f"pure Python {collective} / gloo", wanted, python, collective, _every)


def _every(_cell: Cell) -> bool:
    return True


def _eight_small(cell: Cell) -> bool:
    return cell.ranks == 8 and cell.bytes <= MB


def _against_mpi(figures: Figures) -> Iterator[Goal]:
    library, registered, call = (
        partial(figures.against_mpi, subject) for subject in ("library", "registered", "commlib")
    )
    rows: list[tuple[str, float, Ratio, Callable[[Cell], bool]]] = [
        ("library allreduce / best MPI", 1, library, _every),
        ("the same at 16M", 1.7, library, lambda cell: cell.bytes == 16 * MB),
        ("the same at 64M", 3, library, lambda cell: cell.bytes == 64 * MB),
        ("registered allreduce / best MPI, >= 256K", 3.5, registered, lambda cell: cell.bytes >= 256 * KB),
        ("the same at 64M", 5, registered, lambda cell: cell.bytes == 64 * MB),
        ("torch allreduce / best MPI, >= 1M", 1, call, lambda cell: cell.bytes >= MB),
    ]
    for what, wanted, ratio, among in rows:
        yield _least(figures, what, wanted, ratio, "allreduce", among)
    for collective in COLLECTIVES[1:]:
        cells = figures.cells(collective, "native", "library")
        ratios = [found for cell in cells if (found := library(cell)) is not None]
        mean = geometric_mean(ratios) if ratios else 0.0
        reached = [(mean, f"{mean:.2f}x", f"mean of {len(ratios)} cells")] if ratios else []
        yield Goal(f"library {collective} / best MPI, geometric mean", "> 1x", reached)


def _others(figures: Figures) -> Iterator[Goal]:
    for subject, percent in (("registered", 85), ("library", 55)):
        yield Goal(f"{subject} allreduce of 64M / memory limit", f">= {percent}%", _shares(figures, subject, percent))
    yield Goal("a call of 1K through torch", "<= 3, 15, 30 us", _small_calls(figures))
    costs = figures.ddp()
    for name in costs:
        if name != "gloo":
            ratio = costs["gloo"][2] / max(costs[name][2], 1e-9)
            reached = [(ratio / 5, f"{ratio:.2f}x", "4 ranks")]
            yield Goal(f"DDP communication, gloo / {name}", ">= 5x", reached)
    slow = [(3 * quiet / busy, f"{busy / quiet:.2f}x", _where(cell)) for cell, quiet, busy in figures.busy()]
    yield Goal("busy / quiet (medians)", "<= 3x", slow)


def _shares(figures: Figures, subject: str, percent: int) -> list[Reached]:
    reached = []
    for limit in figures.limits():
        if subject in limit.calls:
            share = 100 * limit.share(subject, limit.reads)
            reached.append((share / percent, f"{share:.0f}%", f"{limit.ranks} ranks"))
    return reached


def _small_calls(figures: Figures) -> list[Reached]:
    reached = []
    for cell in figures.cells("allreduce", "native", "commlib"):
        seconds, wanted = figures.p10(cell, "native", "commlib"), SMALL_CALLS.get(cell.ranks)
        if cell.bytes == KB and seconds and wanted:
            alone = figures.torch_itself(cell.ranks)
            itself = f" (torch itself {1e6 * alone:.1f})" if alone else ""
            reached.append((wanted / (1e6 * seconds), f"{1e6 * seconds:.1f} us{itself}", _where(cell)))
    return reached
