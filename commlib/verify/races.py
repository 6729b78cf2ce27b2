"""Races: two units that nothing orders touch one slot, and one of them writes.

Per slot the accesses are taken in a topological order of happens-before. There is no race exactly when each write
comes after the write before it and after all reads since, and each read after the last write: everything else
follows because happens-before is transitive. That leaves at most two pairs per access, found on columns; pairs of
one threadblock need no question, the others are asked of ``HappensBefore``.

The threads of a threadblock move the elements of a step in parallel. So a step whose source and destination overlap
in part races with itself, in whichever direction it shifts them.

Bounded FIFOs order nothing here, so that what is free of races is so at every depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import NOTHING, Algorithm, Ints, Span
from commlib.verify.memory import Memory, Operands
from commlib.verify.report import Finding, FindingKind, Findings, at_step, describe
from commlib.verify.units import Units


@dataclass(frozen=True, eq=False)
class Pairs:
    """Accesses to one address that must be ordered: unit ``before[i]`` before unit ``after[i]``."""

    before: Ints
    after: Ints
    address: Ints

    def __len__(self) -> int:
        return len(self.before)


def conflicts(units: Units, operands: Operands, position: Ints) -> Pairs:
    """The neighbouring conflicting accesses of different threadblocks; ``position`` is each unit's place in a
    topological order. O(units log units), on columns."""
    unit, address, writes = _accesses(operands, position)
    first_of_address = np.flatnonzero(np.diff(address, prepend=-1))
    sizes = np.diff(np.append(first_of_address, len(address)))
    group_start, group_end = (np.repeat(ends, sizes) for ends in (first_of_address, first_of_address + sizes))
    here = np.arange(len(unit))
    last_write = np.maximum.accumulate(np.where(writes, here, -1))
    last_write = np.concatenate([[-1], last_write[:-1]]) if len(unit) else last_write
    next_write = np.minimum.accumulate(np.where(writes, here, len(unit))[::-1])[::-1]
    follows = (last_write >= group_start) & (~writes | (last_write == here - 1))
    overwritten = ~writes & (next_write < group_end)
    before = np.concatenate([last_write[follows], here[overwritten]])
    after = np.concatenate([here[follows], next_write[overwritten]])
    apart = units.threadblock[unit[before]] != units.threadblock[unit[after]]
    before, after = before[apart], after[apart]
    return Pairs(unit[before], unit[after], address[before])


def _accesses(operands: Operands, position: Ints) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """(unit, address, writes) of all accesses, by address, then by position, reads first."""
    reads = np.flatnonzero((operands.source != NOTHING) & ~operands.idle)
    writes = np.flatnonzero((operands.destination != NOTHING) & ~operands.idle)
    unit = np.concatenate([reads, writes])
    address = np.concatenate([operands.source[reads], operands.destination[writes]])
    is_write = np.arange(len(unit)) >= len(reads)
    key = (address * len(position) + position[unit]) * 2 + is_write
    order = np.argsort(key)
    return unit[order], address[order], is_write[order]


def report_races(
    units: Units, memory: Memory, pairs: Pairs, ordered: npt.NDArray[np.bool_], findings: Findings
) -> None:
    """A finding for each pair of steps with an unordered pair of units (the first slot stands for the others)."""
    wrong = np.flatnonzero(~ordered)
    before, after = units.step[pairs.before[wrong]], units.step[pairs.after[wrong]]
    _, first = np.unique(before * units.algorithm.step_count + after, return_index=True)
    for i in np.sort(first).tolist():
        address = int(pairs.address[wrong[i]])
        findings.make(FindingKind.RACE, _race, units, memory, int(before[i]), int(after[i]), address)


def _race(units: Units, memory: Memory, before: int, after: int, address: int) -> Finding:
    a = units.algorithm
    rank, buffer, chunk = memory.slot(address)
    how = "in place" if memory.placement is Placement.IN else "out of place"
    message = (
        f"{how}, rank {rank} {names_of(memory, rank, address)}: {describe(a, before)} and {describe(a, after)} both "
        f"use it, one of them writes, and no threadblock order, dependence or message orders them"
    )
    others = (a.place(before),)
    return at_step(
        a, FindingKind.RACE, message, after, placement=memory.placement, buffer=buffer, chunk=chunk, others=others
    )


def names_of(memory: Memory, rank: int, address: int) -> str:
    """All names of the slot at this address: ``i[3] = o[1]`` where input and output share it."""
    a = memory.algorithm
    slots = ((buffer, address - int(memory.base[rank, buffer])) for buffer in Buffer)
    return " = ".join(
        str(Span(buffer, index, 1)) for buffer, index in slots if 0 <= index < a.buffer_chunks(rank, buffer)
    )


def report_overlaps(units: Units, memory: Memory, operands: Operands, findings: Findings) -> None:
    """A finding for each step whose source and destination overlap in part."""
    for number in np.flatnonzero(operands.overlaps).tolist():
        findings.make(FindingKind.RACE, _overlap, units.algorithm, memory.placement, number)


def _overlap(a: Algorithm, placement: Placement, number: int) -> Finding:
    how = "in place" if placement is Placement.IN else "out of place"
    message = (
        f"{how}, {describe(a, number)} reads and writes overlapping chunks: which it moves first is not defined; "
        f"move them in steps that do not overlap"
    )
    buffer, chunk = Buffer(int(a.destination_buffer[number])), int(a.destination_index[number])
    return at_step(a, FindingKind.RACE, message, number, placement=placement, buffer=buffer, chunk=chunk)
