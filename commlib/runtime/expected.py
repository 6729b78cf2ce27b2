"""Exact expectations: inputs of small integers, and the outputs that a collective must then have in every type.

The values are such that every sum, product and average is exact in the narrowest types (bfloat16 has 8 bits), so that
an output is right or wrong, never near. Numbers are int64, complex128 or bool here; the runtime casts them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from commlib.collectives import Buffer, Collective, Placement
from commlib.reductions import DtypeKind, reduction
from commlib.runtime.kernels import NUMPY_COMBINES, truncated
from commlib.runtime.layout import ChunkLayout, Sizes

Array = npt.NDArray[Any]
FACTOR = 2
"""The factor of premul_sum in expectations."""


@dataclass(frozen=True)
class Case:
    """A collective on shards of ``elements`` elements (or alltoallv's ``sizes``) of one kind of type, under one op."""

    collective: Collective
    elements: int
    kind: DtypeKind = DtypeKind.FLOAT
    op: str = "sum"
    sizes: Sizes | None = None

    @cached_property
    def layout(self) -> ChunkLayout:
        """Where chunks lie in the tensors."""
        elements = self.elements if self.sizes is None else max(max(row) for row in self.sizes)
        return ChunkLayout(self.collective, Placement.OUT, elements, self.sizes)

    def input(self, rank: int) -> Array:
        """The input of a rank, flat."""
        size = self.layout.buffer_elements(rank, Buffer.INPUT)
        index = np.arange(size, dtype=np.int64)
        if self.kind is DtypeKind.BOOL:
            return (index * 7 + rank * 3) % 5 < 3
        if self.kind is DtypeKind.COMPLEX:
            return self._complex(rank, index)
        return _values(self.op, self.collective.ranks, rank, index)

    def output(self, rank: int) -> tuple[Array, npt.NDArray[np.bool_]]:
        """The output of a rank, flat, and where it matters (elsewhere anything may be)."""
        size = self.layout.buffer_elements(rank, Buffer.OUTPUT)
        wanted = np.zeros(size, dtype=self.input(0).dtype)
        matters = np.zeros(size, dtype=bool)
        for index, (start, length) in enumerate(self.layout.user_slots(rank, Buffer.OUTPUT)):
            sources = self.collective.expected(rank, index)
            if sources is not None and length:
                wanted[start : start + length] = self._chunk(sorted(sources), length)
                matters[start : start + length] = True
        return wanted, matters

    def _chunk(self, sources: Sequence[tuple[int, int]], length: int) -> Array:
        parts = []
        for rank, index in sources:
            start, _ = self.layout.user_slots(rank, Buffer.INPUT)[index]
            parts.append(self._inputs[rank][start : start + length])
        if not self.collective.reduces:
            return parts[0]
        rule = reduction(self.op)
        combine: Callable[..., Array] = NUMPY_COMBINES[rule.combine]
        total = reduce(combine, parts)
        if rule.prepare == "scale":
            total = total * FACTOR
        if rule.finish != "divide":
            return total
        ranks = self.collective.ranks
        return truncated(total, ranks) if self.kind is DtypeKind.INTEGER else np.asarray(total / ranks)

    @cached_property
    def _inputs(self) -> list[Array]:
        return [self.input(rank) for rank in range(self.collective.ranks)]

    def _complex(self, rank: int, index: npt.NDArray[np.int64]) -> Array:
        if self.op == "prod" and self.collective.reduces:
            units = np.array([1, 1j, -1, -1j])
            return np.asarray(units[(index + rank) % 4])
        ranks = self.collective.ranks
        return _values(self.op, ranks, rank, index) + 1j * _values(self.op, ranks, rank, index + 5)


def _values(op: str, ranks: int, rank: int, index: npt.NDArray[np.int64]) -> Array:
    """Small integers, different between ranks and between neighbours."""
    if op == "prod":
        return np.asarray(np.where((index + rank) % 3 == 0, 2, 1))
    if op == "avg":
        partner = 0 if rank == ranks - 1 and ranks % 2 else 1 - 2 * (rank % 2)
        return np.asarray((index * 7) % 3 + partner)
    if op in ("band", "bor", "bxor"):
        return np.asarray((index * 37 + rank * 101) % 128)
    return np.asarray((index * 7 + rank * 3) % 4)
