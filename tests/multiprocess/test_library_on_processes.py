"""The library on real processes: every algorithm, ranks 1 to 8, both placements, types and odd sizes, over gloo, shared
memory (native and Python) and mixes of two and three emulated hosts.

A sample by default; all of it with COMMLIB_FULL=1 in the environment.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from process_cases import WIRINGS, ProcessCase, run_cases, supported

from commlib.algorithms import ALGORITHMS, Entry
from commlib.collectives import ROOTED
from commlib.compiler import compile_trace
from commlib.ir.algorithm import Algorithm
from commlib.reductions import REDUCTIONS
from commlib.runtime.tensors import DTYPES

FULL = bool(os.environ.get("COMMLIB_FULL"))
SAMPLE = [
    *((1, "gloo"), (2, "python"), (3, "two hosts"), (4, "gloo"), (4, "three hosts"), (5, "three hosts"), (5, "shm")),
    *((8, "gloo"), (8, "shm"), (8, "two hosts")),
]
"""(ranks, wiring)"""
RUNS = [(ranks, wiring) for ranks in range(1, 9) for wiring in WIRINGS] if FULL else SAMPLE
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
@pytest.mark.parametrize(("ranks", "wiring"), RUNS)
def test_the_library_is_exact(ranks: int, wiring: str) -> None:
    generator, cases = random.Random(f"{ranks} {wiring}"), list[ProcessCase]()
    for entry in ALGORITHMS:
        for algorithm in programs(entry, ranks):
            cases.extend(cases_of(entry, algorithm, generator))
    assert len({case.algorithm.collective.name for case in cases}) >= 10
    if not FULL:
        cases = generator.sample(cases, min(len(cases), 200 if ranks < 8 else 100))
    run_cases(cases, ranks, tile_bytes=2048, timeout=1700 if FULL else 110, wiring=wiring)
