"""Measuring: all crews of a number of ranks, cell by cell, in rounds, so that noise meets every peer alike."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, TypeVar

from cells import LARGEST, Cell
from crew import Crew, CrewLostError, Recipe

BATCH_SECONDS = 0.015
"""What a batch should last: long enough for a late start of a rank to matter little.

Where ranks outnumber cores the scheduler needs some milliseconds to settle into a rhythm after another peer ran: the
same calls took ten times longer in batches of 3 ms."""
WARM = 0.5
"""The untimed calls before a batch, as a part of the batch's; one at least."""
MOST_CALLS = 10_000
LEAST, CELL_SECONDS = 8, 12.0
"""Rounds that a cell has at least, and seconds after which it has no more."""
LIVES = 4
STREAM_BYTES = 128 << 20
STREAM_PIECE = 4 << 20
STREAM_SECONDS = 0.2
OVERHEAD_CALLS, OVERHEAD_BATCHES = 2000, 15
LIMITED, LIMITED_CALLS = ("commlib", "library", "registered"), 4
"""What is held against the memory's limits, and the least calls of its batches: a single one says little."""
T = TypeVar("T")


def p10(values: Sequence[float]) -> float:
    """The tenth percentile: the second lowest of ten to nineteen."""
    return sorted(values)[len(values) // 10]


@dataclass
class Record:
    """Times in seconds per call, of the slowest rank, of the batches of one subject in one cell.

    ``condition``: "cells", or of the part "busy": "quiet" and "busy".
    """

    crew: str
    subject: str
    collective: str
    ranks: int
    bytes: int
    condition: str = "cells"
    calls: int = 1
    right: bool = True
    times: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The record with its percentiles instead of its times."""
        found = asdict(self)
        times = found.pop("times")
        return {**found, "batches": len(times), "p10": p10(times), "median": median(times)}


def rotated(values: Sequence[T], turn: int) -> list[T]:
    """The values, beginning with another one in each turn: what ran before may matter to what comes next."""
    begin = turn % max(1, len(values))
    return [*values[begin:], *values[:begin]]


def turns(rounds: int) -> Iterator[int]:
    """``rounds`` rounds, or as many as begin within CELL_SECONDS, but LEAST at least."""
    began = time.monotonic()
    for number in range(rounds):
        if number >= LEAST and time.monotonic() - began > CELL_SECONDS:
            return
        yield number


class Table:
    """Crews of a number of ranks; a crew that is lost is started anew, a few times, then left out."""

    def __init__(self, recipes: Sequence[Recipe], ranks: int, say: Callable[[str], None]) -> None:
        self.ranks, self._say = ranks, say
        self.crews: dict[str, Crew] = {}
        self._recipes = {recipe.name: recipe for recipe in recipes}
        self._lives = dict.fromkeys(self._recipes, LIVES)
        self.lost: list[str] = []
        self.versions: dict[str, dict[str, str]] = {}

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for crew in self.crews.values():
            crew.close()

    def start(self) -> None:
        """Start the crews that are not running."""
        for name, recipe in self._recipes.items():
            if name not in self.crews and self._lives[name]:
                self._lives[name] -= 1
                with self._losing(name):
                    self.crews[name] = Crew(recipe, self.ranks)
                    self.versions[name] = self.crews[name].versions

    def crew(self, name: str) -> Crew:
        """A running crew.

        Raises:
            CrewLostError: it is not running.
        """
        if name not in self.crews:
            raise CrewLostError(f"{name} on {self.ranks} ranks is not running")
        return self.crews[name]

    @contextlib.contextmanager
    def _losing(self, name: str) -> Iterator[None]:
        try:
            yield
        except CrewLostError as error:
            self.lost.append(str(error))
            self._say(f"lost: {error}")
            if name in self.crews:
                self.crews.pop(name).close()

    def cell(self, cell: Cell, rounds: int) -> list[Record]:
        """Measure a cell: every crew in each round."""
        self.start()
        records = {name: self._begin(name, cell) for name in list(self.crews)}
        for turn in turns(rounds):
            for name in rotated(list(self.crews), turn):
                with self._losing(name):
                    self.batches(name, rotated(records[name], turn), 1)
        for name in list(self.crews):
            with self._losing(name):
                self._judge(name, records[name])
        return [record for name in self.crews for record in records[name] if record.times]

    def _begin(self, name: str, cell: Cell, subjects: Sequence[str] | None = None) -> list[Record]:
        """Make the cell's cases (of these subjects, or all), and find how many calls a batch has."""
        records: list[Record] = []
        with self._losing(name):
            crew = self.crew(name)
            chosen = list(subjects or crew.subjects)
            right = crew.ask("cell", subjects=chosen, **asdict(cell))
            records = [Record(name, subject, **asdict(cell)) for subject in chosen]
            for record in records:
                record.right = all(answer[record.subject] for answer in right)
            self._calibrate(name, records)
        return records

    def _calibrate(self, name: str, records: Sequence[Record]) -> None:
        """Find how many calls last BATCH_SECONDS. A single call is mostly the ranks' late start: look again."""
        for _ in range(8):
            short = [record for record in records if self._lengthen(name, record)]
            if not short:
                return

    def _lengthen(self, name: str, record: Record) -> bool:
        """Measure two batches and set the number of calls; whether they were much too short."""
        before = record.calls
        self.batches(name, [record], 2)
        record.calls = max(1, min(MOST_CALLS, int(BATCH_SECONDS / min(record.times))))
        record.times.clear()
        return record.calls > 1.5 * before

    def batches(self, name: str, records: Sequence[Record], count: int) -> None:
        """Measure ``count`` batches of each record's subject."""
        calls = {record.subject: record.calls for record in records}
        warm = {record.subject: max(1, int(WARM * record.calls)) for record in records}
        answers = self.crew(name).ask("time", calls=calls, warm=warm, batches=count)
        for record in records:
            record.times += map(max, zip(*(answer[record.subject] for answer in answers), strict=True))

    def _judge(self, name: str, records: Sequence[Record]) -> None:
        """Look at the results once more."""
        right = self.crew(name).ask("check")
        for record in records:
            record.right = record.right and all(answer[record.subject] for answer in right)

    def busy(self, cell: Cell, rounds: int) -> list[Record]:
        """The backend's call in a cell with and without another process on a core, in turn."""
        self.start()
        found = self._begin("native", cell, ["commlib"])
        quiet, loaded = ([replace(r, condition=condition, times=[]) for r in found] for condition in ("quiet", "busy"))
        with self._losing("native"), spinner() as spin:
            for _ in turns(rounds if found else 0):
                self.batches("native", quiet, 1)
                with spin():
                    self.batches("native", loaded, 1)
        return [record for record in (*quiet, *loaded) if record.times]

    def steps(self, count: int) -> list[Any]:
        """Steps of DistributedDataParallel; each rank's answer."""
        with self._losing("native"):
            return self.crew("native").ask("ddp", within=900.0, steps=count)
        return []

    def limited(self, rounds: int) -> dict[str, Any]:
        """How fast all ranks together read memory, and read and write it back, and the largest allreduce, in turn.

        "reads" and "updates" are in bytes per second, "calls" the seconds of each subject; "torch" those of an
        allreduce on a group that does nothing.
        """
        found: dict[str, Any] = {"ranks": self.ranks, "reads": [], "updates": [], "calls": {}, "torch": []}
        self.start()
        records = self._begin("native", Cell("allreduce", self.ranks, LARGEST), LIMITED)
        for record in records:
            record.calls = max(record.calls, LIMITED_CALLS)
        with self._losing("native"):
            answers = self.crew("native").ask("overhead", calls=OVERHEAD_CALLS, batches=OVERHEAD_BATCHES)
            found["torch"] = list(map(max, zip(*answers, strict=True)))
            for turn in range(rounds if records else 0):
                read, update = self._streaming()
                found["reads"].append(read)
                found["updates"].append(update)
                self.batches("native", rotated(records, turn), 1)
        rounds = min([len(found["reads"]), *(len(record.times) for record in records)])
        found["calls"] = {record.subject: record.times[:rounds] for record in records}
        return {**found, "reads": found["reads"][:rounds], "updates": found["updates"][:rounds]}

    def _streaming(self) -> tuple[float, float]:
        """Bytes per second that the ranks read together (the better kernel's), and that they read and write back."""
        sizes = {"bytes": STREAM_BYTES, "piece": STREAM_PIECE}
        answers = self.crew("native").ask("stream", seconds=STREAM_SECONDS, **sizes)
        rates = {kernel: together([answer[kernel] for answer in answers]) for kernel in answers[0]}
        update = rates.pop("update")
        return max(rates.values()), update


def together(times: Sequence[Sequence[float]]) -> float:
    """Bytes per second while all ranks were at it; ``times``: of each rank, its beginning, then each piece's end."""
    began, ended = max(each[0] for each in times), min(each[-1] for each in times)
    pieces = sum(sum(began < end <= ended for end in each) for each in times)
    return pieces * STREAM_PIECE / (ended - began) if ended > began else 0.0


@contextlib.contextmanager
def spinner() -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """A process that wants the first core, stopped except within what it gives."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
    os.kill(process.pid, signal.SIGSTOP)

    @contextlib.contextmanager
    def running() -> Iterator[None]:
        os.kill(process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.kill(process.pid, signal.SIGSTOP)

    try:
        yield running
    finally:
        process.kill()
        process.wait()
