"""Memory: the slots of all ranks in one address space, for one placement.

Out of place a rank has input, output and scratch apart; in place, input and output lie in one span at the offsets
that the Collective gives, so that slots of both buffers may be one address.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import NOTHING, Algorithm, Ints, Op
from commlib.verify.units import Units


@dataclass(frozen=True, eq=False)
class Memory:
    """``base[rank, buffer]`` is the address of the buffer's chunk 0; addresses run from 0 to ``size`` - 1."""

    algorithm: Algorithm
    placement: Placement
    base: Ints
    size: int

    @cached_property
    def rank_end(self) -> Ints:
        """The address after the last one of each rank."""
        scratch = np.array(self.algorithm.scratch_chunks, dtype=np.int64)
        ends: Ints = self.base[:, Buffer.SCRATCH] + scratch
        return ends

    def address(self, rank: int, buffer: Buffer, index: int) -> int:
        """The address of a slot."""
        return int(self.base[rank, buffer]) + index

    def slot(self, address: int) -> tuple[int, Buffer, int]:
        """A slot (rank, buffer, index) at this address; where input and output share it, that of the output."""
        rank = int(np.searchsorted(self.rank_end, address, side="right"))
        for buffer in (Buffer.OUTPUT, Buffer.INPUT):
            index = address - int(self.base[rank, buffer])
            if 0 <= index < self.algorithm.buffer_chunks(rank, buffer):
                return rank, buffer, index
        return rank, Buffer.SCRATCH, address - int(self.base[rank, Buffer.SCRATCH])


def memory(algorithm: Algorithm, placement: Placement) -> Memory:
    """Lay out the buffers of all ranks.

    Raises:
        SpecError: in place, for a custom collective that says nothing of it.
    """
    collective, base, end = algorithm.collective, [], 0
    for rank in range(algorithm.ranks):
        inputs, outputs = collective.input_chunks(rank), collective.output_chunks(rank)
        if placement is Placement.IN:
            input_at, output_at = collective.in_place_offsets(rank)
        else:
            input_at, output_at = 0, inputs
        scratch_at = max(input_at + inputs, output_at + outputs)
        base.append((end + input_at, end + output_at, end + scratch_at))
        end += scratch_at + algorithm.scratch_chunks[rank]
    return Memory(algorithm, placement, np.array(base, dtype=np.int64).reshape(-1, len(Buffer)), end)


@dataclass(frozen=True, eq=False)
class Operands:
    """The addresses that each unit reads as its source and writes as its destination, or NOTHING.

    ``overlaps`` marks the steps whose source and destination overlap in part: threads move the elements of a step in
    parallel, so that its result is undefined. ``idle`` marks copies of a slot to itself.
    """

    source: Ints
    destination: Ints
    overlaps: npt.NDArray[np.bool_]
    idle: npt.NDArray[np.bool_]


def operands(units: Units, memory: Memory) -> Operands:
    """Resolve the slots of all units."""
    a = units.algorithm
    source = _addresses(memory, a.source_buffer, a.source_index)
    destination = _addresses(memory, a.destination_buffer, a.destination_index)
    both = (source != NOTHING) & (destination != NOTHING)
    shift = np.abs(destination - source)
    idle = both & (shift == 0) & (a.op == Op.COPY)
    return Operands(
        source=_of_units(units, source),
        destination=_of_units(units, destination),
        overlaps=both & (shift > 0) & (shift < a.count),
        idle=idle[units.step],
    )


def _of_units(units: Units, address: Ints) -> Ints:
    """The address of each unit's own chunk, of those of the steps' first chunks."""
    first = address[units.step]
    return np.where(first == NOTHING, NOTHING, first + units.offset)


def _addresses(memory: Memory, buffer: Ints, index: Ints) -> Ints:
    base = memory.base[memory.algorithm.step_rank, buffer]
    return np.where(buffer == NOTHING, NOTHING, base + index)
