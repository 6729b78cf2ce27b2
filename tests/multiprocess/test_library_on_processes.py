"""The library on real processes: every algorithm, ranks 1 to 8, both placements, types and odd sizes.

A sample by default; all of it with COMMLIB_FULL=1 in the environment.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from process_cases import ProcessCase, run_cases, supported

from commlib.algorithms import ALGORITHMS, Entry
from commlib.collectives import ROOTED
from commlib.compiler import compile_trace
from commlib.ir.algorithm import Algorithm
from commlib.reductions import REDUCTIONS
from commlib.runtime.tensors import DTYPES

FULL = bool(os.environ.get("COMMLIB_FULL"))
RANKS = range(1, 9) if FULL else (1, 2, 3, 4, 5, 8)
SIZES = (0, 1, 2, 17, 64, 1000, 4099)


def programs(entry: Entry, ranks: int) -> Iterator[Algorithm]:
    """The algorithm as it is by default, with two nodes where it has such, from the last root, in two instances."""
    options: list[dict[str, int]] = [{}]
    if any(parameter.name == "nodes" for parameter in entry.parameters):
        options = [{"nodes": 2}, {}]
    variants: list[dict[str, int]] = [{}, {"instances": 2}] if FULL else [{}]
    if entry.collective in ROOTED and ranks > 1:
        variants.append({"root": ranks - 1})
    for option in options:
        if entry.supports(ranks, **option):
            for variant in variants:
                yield compile_trace(entry.trace(ranks, **variant, **option))  # type: ignore[arg-type]


def matrix(generator: random.Random, ranks: int, symmetric: bool) -> tuple[tuple[int, ...], ...]:
    sizes = [[generator.choice((0, 1, 9, 130)) for _ in range(ranks)] for _ in range(ranks)]
    if symmetric:
        sizes = [[sizes[max(s, d)][min(s, d)] for d in range(ranks)] for s in range(ranks)]
    return tuple(map(tuple, sizes))


def cases_of(entry: Entry, algorithm: Algorithm, generator: random.Random) -> Iterator[ProcessCase]:
    """Every placement with every size, each with a type and a reduction; with all of them in full."""
    reduces = algorithm.collective.reduces
    kinds = [(t, op) for t in DTYPES for op in (REDUCTIONS if reduces else ("sum",)) if supported(t, op, reduces)]
    for placement in sorted(entry.placements, key=lambda placement: placement.value):
        for elements in SIZES:
            for dtype, op in kinds if FULL and elements == 17 else generator.sample(kinds, 2 if FULL else 1):
                sizes = None
                if entry.collective == "alltoallv":
                    sizes = matrix(generator, algorithm.ranks, placement.value == "in")
                strided = generator.random() < 0.2
                yield ProcessCase(algorithm, elements, dtype, op, placement, sizes, strided)


@pytest.mark.timeout(1800 if FULL else 120)
@pytest.mark.parametrize("ranks", RANKS)
def test_the_library_is_exact(ranks: int) -> None:
    generator, cases = random.Random(ranks), list[ProcessCase]()
    for entry in ALGORITHMS:
        for algorithm in programs(entry, ranks):
            cases.extend(cases_of(entry, algorithm, generator))
    assert len({case.algorithm.collective.name for case in cases}) >= 10
    if not FULL:
        cases = generator.sample(cases, min(len(cases), 300 if ranks < 8 else 150))
    run_cases(cases, ranks, tile_bytes=2048, timeout=1700 if FULL else 110)
