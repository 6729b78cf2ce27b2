"""auto: the best algorithm for each size of a range, and the sizes where one gives way to the next.

Small messages want few steps, large ones many small chunks that flow through every link. Candidates are synthesized
for sizes across the range and several numbers of chunks; all are priced at all sizes by the same cost model, and the
crossover between neighbours is found by bisection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from commlib.errors import SpecError
from synth.engine import Budget
from synth.pipeline import Question, solve
from synth.result import Result

FACTOR = 16.0
"""Between the sizes at which candidates are synthesized."""
CHUNKS = (1, 2, 4, 8)
_HALVINGS = 30


@dataclass(frozen=True)
class SizeRange:
    """From ``low`` to ``high`` bytes (nccl-tests' sizes) ``result`` is the fastest of the candidates.

    ``times`` are its predicted seconds at both ends.
    """

    low: float
    high: float
    result: Result
    times: tuple[float, float]


Ask = Callable[[float, int], Question]
"""The question for a size in bytes and a number of chunks."""


def solve_range(
    ask: Ask, low: float, high: float, mode: str = "auto", budget: Budget | None = None, chunks: Sequence[int] = CHUNKS
) -> tuple[SizeRange, ...]:
    """The fastest algorithms from ``low`` to ``high`` bytes, in order of size.

    Deterministic unless the budget's clock ends a search. The budget is shared evenly by the candidates.

    Raises:
        SpecError: the range is empty, or reaches below one byte.
        SynthesisError: as ``solve``.
    """
    if not 1 <= low <= high < float("inf"):
        raise SpecError(f"a range of sizes goes from at least 1 byte up, not from {low} to {high}")
    budget = Budget() if budget is None else budget
    sizes = _samples(low, high)
    wanted = [(size, each) for each in chunks for size in sizes]
    found: list[tuple[int, Result]] = []
    for left, (size, each) in zip(range(len(wanted), 0, -1), wanted, strict=True):
        share = replace(budget, seconds=budget.left / left, began=time.monotonic())
        found.append((each, solve(ask(size, each), mode, share)))
    return _ranges(ask, found, sizes)


def _samples(low: float, high: float) -> list[float]:
    sizes = [low]
    while sizes[-1] * FACTOR < high:
        sizes.append(sizes[-1] * FACTOR)
    return sizes if low == high else [*sizes, high]


def _ranges(ask: Ask, found: Sequence[tuple[int, Result]], sizes: Sequence[float]) -> tuple[SizeRange, ...]:
    def price(candidate: int, size: float) -> float:
        each, result = found[candidate]
        return result.seconds_at(ask(size, each).chunk_bytes)

    def best(size: float) -> int:
        return min(range(len(found)), key=lambda candidate: (price(candidate, size), candidate))

    winners = [best(size) for size in sizes]
    cuts: list[tuple[float, int]] = [(sizes[0], winners[0])]
    for place in range(1, len(sizes)):
        if winners[place] != winners[place - 1]:
            cuts += _between(best, sizes[place - 1], sizes[place], winners[place - 1], winners[place])
    ends = [cut for cut, _ in cuts[1:]] + [sizes[-1]]
    return tuple(
        SizeRange(start, end, found[winner][1], (price(winner, start), price(winner, end)))
        for (start, winner), end in zip(cuts, ends, strict=True)
    )


def _between(
    best: Callable[[float], int], low: float, high: float, first: int, last: int, depth: int = 6
) -> list[tuple[float, int]]:
    """Where the best changes from ``first`` to ``last``, others in between included: (size, winner from there on)."""
    start = low
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        winner = best(middle)
        if winner not in (first, last) and depth:
            return [
                *_between(best, start, middle, first, winner, depth - 1),
                *_between(best, middle, high, winner, last, depth - 1),
            ]
        low, high = (middle, high) if winner == first else (low, middle)
        if high - low <= max(1.0, low / 1000):
            break
    return [(float(round(high)), last)]
