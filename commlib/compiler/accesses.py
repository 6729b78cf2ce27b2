"""Accesses: every read and write of every slot, in slot and time order; what fusion and dependences look at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from commlib.ir.algorithm import HAS_DESTINATION, HAS_SOURCE, NOTHING, Ints, Op
from commlib.ir.graph import InstructionGraph, Slots, slots

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Accesses:
    """Row e: instruction ``node[e]`` reads or writes (``write[e]``) slot ``slot[e]``.

    Ordered by slot, then by instruction, an instruction's reads before its writes.
    """

    slots: Slots
    slot: Ints
    node: Ints
    write: Mask

    @cached_property
    def last_write(self) -> Ints:
        """Per row, the row of the write before it to the same slot, or NOTHING."""
        rows = np.arange(len(self.slot))
        latest = np.maximum.accumulate(np.where(self.write, rows, NOTHING)) if len(rows) else rows
        before = np.concatenate([[NOTHING], latest[:-1]]) if len(rows) else rows
        return np.where((before != NOTHING) & (self.slot[before] == self.slot), before, NOTHING)

    @cached_property
    def next_write(self) -> Ints:
        """Per row, the row of the write after it to the same slot, or NOTHING."""
        size = len(self.slot)
        rows = np.arange(size)
        if not size:
            return rows
        nearest = np.minimum.accumulate(np.where(self.write, rows, size)[::-1])[::-1]
        after = np.concatenate([nearest[1:], [size]])
        same = (after < size) & (self.slot[np.minimum(after, size - 1)] == self.slot)
        return np.where(same, after, NOTHING)

    @cached_property
    def slot_end(self) -> Ints:
        """Per row, the row after the last access to the same slot."""
        return np.searchsorted(self.slot, self.slot, side="right").astype(np.int64)

    def readers_after(self) -> Ints:
        """For each row, how many reads follow before the slot's next write (or its last access)."""
        end = np.where(self.next_write == NOTHING, self.slot_end, self.next_write)
        return end - np.arange(len(self.slot)) - 1

    def dies(self) -> Mask:
        """For each row, whether the content after it is overwritten later or never part of the result."""
        return np.asarray((self.next_write != NOTHING) | ~self.slots.observable[self.slot])


def start_slots(graph: InstructionGraph, numbering: Slots) -> tuple[Ints, Ints]:
    """The first source slot and the first destination slot of each instruction, or NOTHING."""
    found = []
    for buffer, index in (
        (graph.source_buffer, graph.source_index),
        (graph.destination_buffer, graph.destination_index),
    ):
        start = numbering.base[graph.rank, np.maximum(buffer, 0)] + index
        found.append(np.where(buffer == NOTHING, NOTHING, start))
    return found[0], found[1]


def accesses(graph: InstructionGraph) -> Accesses:
    """All accesses of a graph. Linearithmic in the chunks moved."""
    numbering = slots(graph.trace)
    source, destination = start_slots(graph, numbering)
    reads = np.flatnonzero(HAS_SOURCE[graph.op])
    also_reads = np.flatnonzero(graph.op == Op.REDUCE)
    writes = np.flatnonzero(HAS_DESTINATION[graph.op])
    node = np.concatenate([reads, also_reads, writes])
    first = np.concatenate([source[reads], destination[also_reads], destination[writes]])
    write = np.concatenate([np.zeros(len(reads) + len(also_reads), bool), np.ones(len(writes), bool)])
    node, first, write, slot = _units(graph, node, first, write)
    order = np.argsort((slot * len(graph) + node) * 2 + write, kind="stable")
    return Accesses(numbering, slot[order], node[order], write[order])


def _units(graph: InstructionGraph, node: Ints, first: Ints, write: Mask) -> tuple[Ints, Ints, Mask, Ints]:
    """One row per chunk instead of one per span."""
    count = graph.count[node]
    if count.max(initial=1) == 1:
        return node, first, write, first
    node, first, write = np.repeat(node, count), np.repeat(first, count), np.repeat(write, count)
    within = np.arange(len(node)) - np.repeat(np.cumsum(count) - count, count)
    return node, first, write, first + within


def hazards(found: Accesses) -> tuple[Ints, Ints]:
    """The edges (before, after) between instructions of a rank that must keep their order, each once.

    Read after write, write after read, write after write; linear in the accesses.
    """
    reads = ~found.write
    after_write = found.last_write != NOTHING
    before_write = reads & (found.next_write != NOTHING)
    before = np.concatenate([found.node[found.last_write[after_write]], found.node[before_write]])
    after = np.concatenate([found.node[after_write], found.node[found.next_write[before_write]]])
    proper = before != after
    size = int(found.node.max(initial=0)) + 1
    keys = np.unique(before[proper] * size + after[proper])
    return keys // size, keys % size
