"""Accesses: every read and write of every slot, in slot and time order; what fusion and dependences look at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from commlib.collectives import Placement
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


def accesses(graph: InstructionGraph, placement: Placement | None = None, skip: Mask | None = None) -> Accesses:
    """All accesses of a graph but those of the rows to ``skip``. Linearithmic in the chunks moved.

    ``placement`` says which slots are the same; by default in place, if the program is meant for that.
    """
    numbering = slots(graph.trace, placement)
    source, destination = start_slots(graph, numbering)
    keep = np.ones(len(graph), dtype=bool) if skip is None else ~skip
    reads = np.flatnonzero(HAS_SOURCE[graph.op] & keep)
    also_reads = np.flatnonzero((graph.op == Op.REDUCE) & keep)
    writes = np.flatnonzero(HAS_DESTINATION[graph.op] & keep)
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


def hazards(graph: InstructionGraph, found: Accesses) -> tuple[Ints, Ints]:
    """The edges (before, after) between instructions of a rank that must keep their order, each once.

    Read after write, write after read, write after write, in every placement that the program is meant for. In
    place has the conflicts of out of place and more, but for copies of the input onto itself, which are then
    nothing: a program with such is looked at in both. Linear in the accesses, but for sorting.
    """
    source, destination = start_slots(graph, found.slots)
    itself = (graph.op == Op.COPY) & (source == destination)
    if len(graph.trace.placements) == 1 or not itself.any():
        before, after = _conflicts(found)
    else:
        apart = _conflicts(accesses(graph, Placement.OUT))
        shared = _conflicts(accesses(graph, Placement.IN, itself))
        before, after = (np.concatenate(pair) for pair in zip(apart, shared, strict=True))
    keys = np.unique(before * len(graph) + after)
    return keys // max(len(graph), 1), keys % max(len(graph), 1)


def _conflicts(found: Accesses) -> tuple[Ints, Ints]:
    reads = ~found.write
    after_write = found.last_write != NOTHING
    before_write = reads & (found.next_write != NOTHING)
    before = np.concatenate([found.node[found.last_write[after_write]], found.node[before_write]])
    after = np.concatenate([found.node[after_write], found.node[found.next_write[before_write]]])
    return before[before != after], after[before != after]
