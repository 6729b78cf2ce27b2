"""Trim: give back the scratch that fusion made unnecessary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from commlib.collectives import Buffer
from commlib.ir.algorithm import Ints
from commlib.ir.graph import InstructionGraph


@dataclass(frozen=True)
class TrimScratch:
    """Graph in, graph out: scratch chunks that no instruction touches are gone, the others moved together.

    A span stays a span, because all its chunks are in use. Linear in the chunks moved.
    """

    def __call__(self, graph: InstructionGraph) -> InstructionGraph:
        """Apply the pass."""
        sizes = np.array(graph.trace.scratch_chunks, dtype=np.int64)
        if not sizes.any():
            return graph
        start = np.cumsum(sizes) - sizes
        used = np.zeros(int(sizes.sum()), dtype=bool)
        operands = ((graph.source_buffer, graph.source_index), (graph.destination_buffer, graph.destination_index))
        for buffer, index in operands:
            rows = np.flatnonzero(buffer == Buffer.SCRATCH)
            used[_units(start[graph.rank[rows]] + index[rows], graph.count[rows])] = True
        place = np.cumsum(used) - 1
        kept = np.array([int(used[s : s + n].sum()) for s, n in zip(start, sizes, strict=True)], dtype=np.int64)
        moved = [_moved(graph, buffer, index, start, place, np.cumsum(kept) - kept) for buffer, index in operands]
        trace = replace(graph.trace, scratch_chunks=tuple(kept.tolist()))
        return replace(graph, trace=trace, source_index=moved[0], destination_index=moved[1])


def _moved(graph: InstructionGraph, buffer: Ints, index: Ints, start: Ints, place: Ints, first: Ints) -> Ints:
    result = index.copy()
    rows = np.flatnonzero(buffer == Buffer.SCRATCH)
    rank = graph.rank[rows]
    result[rows] = place[start[rank] + index[rows]] - first[rank]
    return result


def _units(first: Ints, count: Ints) -> Ints:
    """The numbers of all chunks of spans that begin at ``first``."""
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(first, count) + within
