"""Cells of the tables: a collective, a size and a number of ranks; their buffers, right results, and timing.

Shared by all peers, so only the standard library and numpy are used. Sizes are nccl-tests': the larger of input and
output of a rank. All tensors are float32 and their counts divisible by the ranks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

COLLECTIVES = ("allreduce", "allgather", "reducescatter", "alltoall", "broadcast")
RANKS = (2, 4, 8)
SIZES = tuple(1024 << shift for shift in range(0, 17, 2))
"""1 KB to 64 MB."""
LARGEST = SIZES[-1]
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cell:
    """``bytes``: the larger of a rank's input and output."""

    collective: str
    ranks: int
    bytes: int

    @property
    def count(self) -> int:
        """Elements of the larger buffer."""
        return self.bytes // 4

    @property
    def in_place(self) -> bool:
        """Whether the one tensor of the call is both input and output."""
        return self.collective in ("allreduce", "broadcast")

    @property
    def input_count(self) -> int:
        """Elements of a rank's input."""
        return self.count // self.ranks if self.collective == "allgather" else self.count

    @property
    def output_count(self) -> int:
        """Elements of a rank's output."""
        return self.count // self.ranks if self.collective == "reducescatter" else self.count

    @property
    def size(self) -> str:
        """The size in words."""
        return f"{self.bytes >> 20}M" if self.bytes >= 1 << 20 else f"{self.bytes >> 10}K"


@dataclass
class Case:
    """A call that can be made again and again; the arrays are one and the same if the cell is in place."""

    input: Array
    output: Array
    call: Callable[[], Any]


def _base(count: int) -> Array:
    """Small integers: every order of additions is exact."""
    return (np.arange(count) % 13).astype(np.float32)


def fill(case: Case, cell: Cell, rank: int) -> None:
    """Give input and output their first values; rank r's input differs from rank 0's by r."""
    case.output[:] = -1
    case.input[:] = _base(cell.input_count) + rank


def expected(cell: Cell, rank: int) -> Array:
    """The output that a call has after ``fill``."""
    ranks, base = cell.ranks, _base(cell.input_count)
    added = ranks * (ranks - 1) // 2
    if cell.collective == "broadcast":
        return base
    if cell.collective == "allgather":
        return np.concatenate([base + peer for peer in range(ranks)])
    mine = slice(rank * cell.count // ranks, (rank + 1) * cell.count // ranks)
    if cell.collective == "alltoall":
        return np.concatenate([base[mine] + peer for peer in range(ranks)])
    whole = ranks * base + added
    return whole if cell.collective == "allreduce" else whole[mine]


def is_right(case: Case, cell: Cell, rank: int) -> bool:
    """Make a call and look at its result; leaves zeros, so that sums of sums stay finite."""
    fill(case, cell, rank)
    case.call()
    right = np.array_equal(case.output, expected(cell, rank))
    case.input[:] = 0
    case.output[:] = 0
    return right


def time_batches(
    cases: Mapping[str, Case], calls: Mapping[str, int], warm: Mapping[str, int], batches: int
) -> dict[str, list[float]]:
    """Seconds per call of ``batches`` batches of each subject, the subjects in turn.

    The ``warm`` untimed calls before a batch bring the ranks together and the buffers into the cache.
    """
    times: dict[str, list[float]] = {subject: [] for subject in calls}
    for _ in range(batches):
        for subject, repeats in calls.items():
            call = cases[subject].call
            for _ in range(warm[subject]):
                call()
            began = time.perf_counter()
            for _ in range(repeats):
                call()
            times[subject].append((time.perf_counter() - began) / repeats)
    return times
