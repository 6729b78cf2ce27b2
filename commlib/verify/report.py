"""What the verifier says: findings (counterexamples), per placement, and a report that prints and serializes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import ParamSpec

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import Algorithm

MAX_FINDINGS = 20
"""Findings kept per kind; of the rest only the number is reported."""

SHOWN = 5
"""Findings of each kind that the text form shows."""

P = ParamSpec("P")


class FindingKind(StrEnum):
    """What can be wrong with an Algorithm."""

    CONNECTION = "connection"
    MATCH = "match"
    DEADLOCK = "deadlock"
    RACE = "race"
    UNINITIALIZED = "uninitialized"
    POSTCONDITION = "postcondition"
    INPUT_OVERWRITTEN = "input_overwritten"
    PLACEMENT = "placement"


@dataclass(frozen=True)
class Finding:
    """One counterexample. ``threadblock`` and ``step`` are indices as in the XML; ``others`` are further steps that
    take part (the rest of a cycle, the other step of a race), as (rank, threadblock, step). ``placement`` is None
    when it holds in both."""

    kind: FindingKind
    message: str
    placement: Placement | None = None
    rank: int | None = None
    peer: int | None = None
    channel: int | None = None
    threadblock: int | None = None
    step: int | None = None
    buffer: Buffer | None = None
    chunk: int | None = None
    file: str | None = None
    line: int | None = None
    others: tuple[tuple[int, int, int], ...] = ()

    def as_json(self) -> dict[str, object]:
        """The finding as JSON values; fields that do not apply are left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["placement"] = None if self.placement is None else self.placement.value
        values["buffer"] = None if self.buffer is None else self.buffer.name.lower()
        values["kind"] = self.kind.value
        values["others"] = [list(other) for other in self.others] or None
        return {name: value for name, value in values.items() if value is not None}


def at_step(algorithm: Algorithm, kind: FindingKind, message: str, number: int, **more: object) -> Finding:
    """A finding at a step: rank, threadblock, step, file and line are filled in."""
    rank, threadblock, step = algorithm.place(number)
    file, line = algorithm.origin(number) or (None, None)
    place = {"rank": rank, "threadblock": threadblock, "step": step, "file": file, "line": line}
    return Finding(kind, message, **(place | more))  # type: ignore[arg-type]


def describe(algorithm: Algorithm, number: int) -> str:
    """A step in words: ``rank 2 threadblock 1 step 0 (rrc i[3] -> o[3], ring.py:12)``."""
    step = algorithm.step(number)
    origin = algorithm.origin(number)
    came_from = "" if origin is None else f", {origin[0]}:{origin[1]}"
    return f"rank {step.rank} threadblock {step.threadblock} step {step.index} ({step}{came_from})"


class Findings:
    """Collects findings, at most ``MAX_FINDINGS`` of a kind, and counts the others."""

    def __init__(self) -> None:
        self.kept: list[Finding] = []
        self.total: Counter[FindingKind] = Counter()

    def add(self, finding: Finding) -> None:
        """Keep the finding, or only count it when there are enough of its kind."""
        self.make(finding.kind, lambda: finding)

    def make(self, kind: FindingKind, word: Callable[P, Finding], *args: P.args, **kwargs: P.kwargs) -> None:
        """As ``add``, but the finding is put in words, by ``word(*args)``, only when it is kept."""
        self.total[kind] += 1
        if self.total[kind] <= MAX_FINDINGS:
            self.kept.append(word(*args, **kwargs))

    def more(self) -> dict[FindingKind, int]:
        """How many findings of each kind were counted but not kept."""
        return {kind: total - MAX_FINDINGS for kind, total in self.total.items() if total > MAX_FINDINGS}

    def __bool__(self) -> bool:
        return bool(self.total)


@dataclass(frozen=True)
class PlacementReport:
    """The verdict for one placement. ``findings`` include those that hold in any placement."""

    placement: Placement
    findings: tuple[Finding, ...]
    more: Mapping[FindingKind, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether everything is proved in this placement."""
        return not self.findings


@dataclass(frozen=True)
class Report:
    """The verdict on an Algorithm.

    ``smallest_fifo_depth`` is the smallest depth at which it cannot deadlock however messages are cut: None when no
    depth is enough, or when its messages do not match so that the question has no answer. ``postcondition_given`` is
    False for a custom collective without one: then all the rest is proved. ``whole_messages``: deadlock was judged
    with each step's chunks as one message.
    """

    algorithm: str
    fifo_depth: int
    placements: Mapping[Placement, PlacementReport]
    smallest_fifo_depth: int | None
    postcondition_given: bool
    whole_messages: bool = False

    @property
    def proved(self) -> frozenset[Placement]:
        """The placements in which everything is proved."""
        return frozenset(placement for placement, report in self.placements.items() if report.ok)

    @property
    def ok(self) -> bool:
        """Whether at least one of the placements asked for is proved."""
        return bool(self.proved)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings; one that holds in every placement is listed once."""
        return tuple(dict.fromkeys(f for report in self.placements.values() for f in report.findings))

    @property
    def postcondition(self) -> str:
        """``proved``, ``not proved`` or ``not given``."""
        if not self.postcondition_given:
            return "not given"
        return "proved" if self.ok else "not proved"

    def text(self) -> str:
        """The report for a person."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        depth = self.smallest_fifo_depth
        cut = "smallest that works if messages are cut" if self.whole_messages else "smallest that works"
        limits = "" if depth is None else f" ({cut}: {depth})"
        yield f"{self.algorithm}: {'ok' if self.ok else 'NOT PROVED'}, FIFO depth {self.fifo_depth}{limits}"
        if not self.postcondition_given:
            yield "  no postcondition was given: everything else was checked"
        for placement, report in self.placements.items():
            yield f"  {_WORDS[placement]}: {'proved' if report.ok else 'not proved'}"
            yield from _shown(report)

    def as_json(self) -> dict[str, object]:
        """The report as JSON values."""
        return {
            "algorithm": self.algorithm,
            "ok": self.ok,
            "findings": [finding.as_json() for finding in self.findings],
            "placements": {p.value: _placement_json(report) for p, report in self.placements.items()},
            "fifo_depth": self.fifo_depth,
            "smallest_fifo_depth": self.smallest_fifo_depth,
            "postcondition": self.postcondition,
        }


def _shown(report: PlacementReport) -> Iterator[str]:
    """The first few findings of each kind."""
    for kind in dict.fromkeys(finding.kind for finding in report.findings):
        same = [finding for finding in report.findings if finding.kind is kind]
        for finding in same[:SHOWN]:
            yield f"    {kind}: " + finding.message.replace("\n", "\n      ")
        rest = len(same) - SHOWN + report.more.get(kind, 0)
        if rest > 0:
            yield f"    {kind}: and {rest} more"


_WORDS = {Placement.IN: "in place", Placement.OUT: "out of place"}


def _placement_json(report: PlacementReport) -> dict[str, object]:
    return {
        "ok": report.ok,
        "findings": [finding.as_json() for finding in report.findings],
        "more": {kind.value: number for kind, number in report.more.items()},
    }
