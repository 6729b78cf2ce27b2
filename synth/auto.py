"""auto: the best algorithm for each size of a range, and the sizes where one gives way to the next.

Small messages want few steps, large ones many small chunks that flow through every link. Candidates are synthesized
for sizes across the range and several numbers of chunks; all are priced at all sizes by the same cost model. Each is
used as far as it is (nearly) the fastest, and the crossover to the next is found by bisection.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from commlib.collectives import collective
from commlib.demand import chunk_bytes
from commlib.errors import SpecError
from synth.engine import Budget
from synth.pipeline import Question, solve
from synth.pose import pose
from synth.result import Result

FACTOR = 16.0
"""Between the sizes at which candidates are synthesized."""
CHUNKS = (1, 2, 4, 8)
"""Numbers of chunks per shard that are tried."""
EVEN_RANKS = 32
"""Ranks up to which the number of chunks that loads links evenly is looked for."""
NEAR = 1.02
"""How much slower than the best an algorithm may be before the next takes over: fewer of them, for next to nothing."""


@dataclass(frozen=True)
class SizeRange:
    """From ``low`` to ``high`` bytes (nccl-tests' sizes) ``result`` is the fastest of the candidates, within ``NEAR``.

    ``times`` are its predicted seconds at both ends.
    """

    low: float
    high: float
    result: Result
    times: tuple[float, float]


Ask = Callable[[float, int], Question]
"""The question for a size in bytes and a number of chunks."""


Search = Callable[[Question, str, Budget], Result]
"""What answers a question: ``solve``, or that with a cache."""


def solve_range(
    ask: Ask,
    low: float,
    high: float,
    mode: str = "auto",
    budget: Budget | None = None,
    chunks: Sequence[int] | None = None,
    search: Search = solve,
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
    tried = promising_chunks(ask(high, 1)) if chunks is None else chunks
    wanted = [(size, each) for each in tried for size in sizes]
    found: list[Result] = []
    for left, (size, each) in zip(range(len(wanted), 0, -1), wanted, strict=True):
        share = replace(budget, seconds=budget.left / left, began=time.monotonic())
        found.append(search(ask(size, each), mode, share))
    return _ranges(found, low, high)


def promising_chunks(asked: Question) -> tuple[int, ...]:
    """The numbers of chunks per shard to try: ``CHUNKS``, and the one that loads the links most evenly.

    The latter comes of packing trees (or of concurrent flow), and is left out on more than ``EVEN_RANKS`` ranks.
    """
    from synth.bandwidth import best_chunks

    wanted = asked.collective
    if wanted.ranks > EVEN_RANKS:
        return CHUNKS
    if wanted.name == "allreduce":
        wanted = collective("allgather", wanted.ranks)
    posed = pose(asked.topology, wanted, asked.chunk_bytes, asked.sketch, asked.bytes_of)
    return tuple(sorted({*CHUNKS, best_chunks(posed.problem)}))


def _samples(low: float, high: float) -> list[float]:
    sizes = [low]
    while sizes[-1] * FACTOR < high:
        sizes.append(sizes[-1] * FACTOR)
    return sizes if low == high else [*sizes, high]


def _ranges(found: Sequence[Result], low: float, high: float) -> tuple[SizeRange, ...]:
    """From the smallest size on, each candidate as far as it stays within ``NEAR`` of the best."""
    priced: dict[tuple[int, float], float] = {}

    def price(candidate: int, size: float) -> float:
        if (candidate, size) not in priced:
            result = found[candidate]
            priced[candidate, size] = result.seconds_at(chunk_bytes(result.collective, size))
        return priced[candidate, size]

    def best(size: float) -> int:
        return min(range(len(found)), key=lambda candidate: (price(candidate, size), candidate))

    def is_near(candidate: int, size: float) -> bool:
        return price(candidate, size) <= NEAR * price(best(size), size)

    ranges, start, grid = [], low, _grid(low, high)
    while start <= high:
        winner = _lasting(best(start), start, grid, len(found), is_near)
        end = _last_near(partial(is_near, winner), start, grid, high)
        ranges.append(SizeRange(start, end, found[winner], (price(winner, start), price(winner, end))))
        start = float(math.floor(end)) + 1
    return tuple(ranges)


def _grid(low: float, high: float) -> list[float]:
    """Sizes at which candidates are compared, a factor of two apart."""
    sizes = [low]
    while sizes[-1] * 2 < high:
        sizes.append(float(round(sizes[-1] * 2)))
    return [*sizes, high]


def _lasting(
    first: int, start: float, grid: Sequence[float], candidates: int, is_near: Callable[[int, float], bool]
) -> int:
    """Of the candidates that are near the best at ``start``, the one that stays so for longest."""

    def reach(candidate: int) -> int:
        later = (size for size in grid if size > start)
        return next((k for k, size in enumerate(later) if not is_near(candidate, size)), len(grid))

    near = [candidate for candidate in range(candidates) if is_near(candidate, start)]
    return min(near, key=lambda candidate: (-reach(candidate), candidate != first, candidate))


def _last_near(near: Callable[[float], bool], start: float, grid: Sequence[float], high: float) -> float:
    """The last size up to which a candidate is near the best; by bisection between two sizes of the grid."""
    good, bad = start, None
    for size in grid:
        if size > start:
            if not near(size):
                bad = size
                break
            good = size
    if bad is None:
        return high
    while bad - good > max(1.0, good / 1000):
        middle = float(round((good * bad) ** 0.5))
        good, bad = (middle, bad) if near(middle) else (good, middle)
    return good
