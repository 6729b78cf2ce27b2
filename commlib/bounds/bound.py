"""A lower bound: a time that no schedule beats, and the reason why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from commlib.topology.costs import CostTable

Json = dict[str, object]


class Certificate(Protocol):
    """Why a bound holds: what a person reads and what a program reads."""

    def text(self) -> str:
        """One or two lines that name the ranks, links, resources and times of the argument."""
        ...

    def as_json(self) -> Json:
        """The same as a JSON object; times in ticks, with ``tick`` in seconds."""
        ...


@dataclass(frozen=True)
class Bound:
    """No schedule of the demand ends before ``ticks`` ticks, which are ``seconds`` seconds; ``certificate`` says why.

    ``kind`` is one of distance, ingress, egress, head-tail, cut, growth, flow and total (of an allreduce's messages).
    """

    kind: str
    ticks: int
    seconds: float
    certificate: Certificate = field(repr=False)

    def as_json(self) -> Json:
        """The bound and its certificate as a JSON object."""
        return {
            "kind": self.kind,
            "ticks": self.ticks,
            "seconds": self.seconds,
            "certificate": self.certificate.as_json(),
        }


def bound(kind: str, ticks: int, costs: CostTable, certificate: Certificate) -> Bound:
    """A bound of ``ticks`` ticks of a cost table."""
    return Bound(kind, int(ticks), costs.seconds(int(ticks)), certificate)


def best_first(found: Iterable[Bound]) -> list[Bound]:
    """Bounds from the largest to the smallest; equal ones stay in order."""
    return sorted(found, key=lambda each: -each.seconds)


def best_of_each(found: Iterable[Bound]) -> list[Bound]:
    """The first of the best bounds of each kind, from the largest to the smallest."""
    kinds: dict[str, Bound] = {}
    for each in best_first(found):
        kinds.setdefault(each.kind, each)
    return list(kinds.values())


def microseconds(ticks: float, tick: float) -> str:
    """A time for a person: microseconds to six digits."""
    return f"{ticks * tick * 1e6:.6g} us"


def rank_list(ranks: Iterable[int]) -> str:
    """Ranks for a person, runs shortened: ``0-3, 8``."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
