"""Ranks that call with different sizes, tiles or algorithms: each gets a MismatchError that says who did what."""

from __future__ import annotations

import time

import pytest
import torch
from runtime_algorithms import allpairs_allreduce, ring_allreduce

from commlib import algorithms
from commlib.compiler import compile_trace
from commlib.errors import MismatchError
from commlib.ir.algorithm import Algorithm
from commlib.runtime import Communicator, launch

RANKS = 4
LONG_BEFORE = 10.0
"""Seconds: a third of the deadline."""


def _library(name: str) -> Algorithm:
    return compile_trace(algorithms.trace("allreduce", name, RANKS))


PROGRAMS = {
    "ring": ring_allreduce(RANKS),
    "allpairs": allpairs_allreduce(RANKS),
    "tree": _library("binomial_tree"),
    "hierarchical": _library("hierarchical"),
}


def _run(name: str, elements: int, tile_bytes: int = 1 << 22, transport: str = "gloo") -> list[object]:
    comm = Communicator(timeout=30, tile_bytes=tile_bytes, transport=transport)
    start = time.monotonic()
    with pytest.raises(MismatchError) as caught:
        comm.run(PROGRAMS[name], torch.ones(elements))
    return [str(caught.value), time.monotonic() - start]


def _sizes(rank: int, odd: int, its: int, others: int, name: str) -> list[object]:
    return _run(name, its if rank == odd else others)


@pytest.mark.parametrize("name", ["ring", "allpairs", "hierarchical"])
@pytest.mark.parametrize(("odd", "its", "others"), [(2, 1_000_000, 100), (1, 10, 300_000), (3, 3000, 20_000)])
def test_a_message_longer_than_was_expected_is_a_mismatch(name: str, odd: int, its: int, others: int) -> None:
    for text, seconds in launch(_sizes, RANKS, (odd, its, others, name), 30):
        assert f"rank {odd} in call 1" in text or f"rank {odd} is in call 1" in text
        assert f"float32 sum {its} in" in text
        assert f"float32 sum {others} in" in text
        assert seconds < LONG_BEFORE


def _tiles(rank: int, transport: str) -> list[object]:
    return _run("ring", 40_000, 1024 if rank == 1 else 1 << 22, transport)


@pytest.mark.parametrize("transport", ["gloo", "auto"])
def test_tiles_that_differ_are_a_mismatch(transport: str) -> None:
    for text, seconds in launch(_tiles, RANKS, (transport,), 30):
        assert "rank 1 in call 1" in text or "rank 1 is in call 1" in text
        assert "differ in what the names do not show: the steps, tile_bytes, fifo_depth or sizes" in text
        assert seconds < LONG_BEFORE


def _algorithms(rank: int, odd: int, transport: str) -> list[object]:
    return _run("tree" if rank == odd else "ring", 100, transport=transport)


@pytest.mark.parametrize(("odd", "transport", "first"), [(0, "gloo", ""), (2, "gloo", ""), (2, "auto", "allreduce ")])
def test_algorithms_that_differ_are_a_mismatch_even_where_no_message_meets(
    odd: int, transport: str, first: str
) -> None:
    for text, seconds in launch(_algorithms, RANKS, (odd, transport), 30):
        tree = f"in call 1 ({first}binomial_tree_allreduce"
        assert f"rank {odd} is {tree}" in text or f"rank {odd} {tree}" in text
        assert f"in call 1 ({first}ring_allreduce float32 sum 100 in)" in text
        assert seconds < LONG_BEFORE
