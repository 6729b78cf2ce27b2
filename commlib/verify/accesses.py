"""Accesses: which slot each event reads or writes, and from when to when, in programs with one-sided steps.

An access *begins* with its unit and *ends* with the event that makes it safe to touch the slot again. For most they
are one: the reads of a step and its writes to its own rank are done when it is. A put's read of its source, and every
write to another rank, are in flight for longer. For peer p they end

- where p waits for the next signal to p of the same threadblock: what the signal released is then there; or
- with the next flush of p in the threadblock.

Either will do; without both they never end (for the verifier: the runtime lets them land before scratch is used
again). Two virtual accesses per slot stand for what users do with their tensors outside the call: the entry of a
rank writes all of its input and output, its exit touches all of both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from commlib.collectives import Buffer
from commlib.ir.algorithm import NOTHING, Algorithm, Ints, Op
from commlib.ir.links import peers, signal_links
from commlib.verify.events import Events
from commlib.verify.memory import Memory, operands
from commlib.verify.units import Units

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Endings:
    """Per operand row: the units that end what it leaves in flight. ``lasting`` marks the rows that do."""

    lasting: Mask
    seen: Ints
    """The peer's wait that sees the next signal to it, or NOTHING."""
    flushed: Ints
    """The next flush of the peer, or NOTHING."""


def endings(units: Units) -> Endings:
    """When each operand's access ends, the same in every placement. O(steps log steps)."""
    a = units.algorithm
    step, rank = a.operand_step, a.operand_rank
    put_source = (a.op[step] == Op.PUT) & (a.operand_writes == 0)
    peer = np.where(put_source, np.roll(rank, -1), rank)
    signals = signal_links(a)
    wait_of = signals.partners(a.count)
    signal, flush = (_next(a, op, step, peer) for op in (Op.SIGNAL, Op.FLUSH))
    seen = NOTHING if wait_of is None else np.where(signal == NOTHING, NOTHING, units.first[wait_of[signal]])
    return Endings(
        put_source | ((rank != a.step_rank[step]) & (a.operand_writes == 1)),
        np.broadcast_to(seen, len(step)),
        np.where(flush == NOTHING, NOTHING, units.first[flush]),
    )


def _next(a: Algorithm, op: Op, step: Ints, peer: Ints) -> Ints:
    """The first step of this operation for the peer after a step, in its threadblock; or NOTHING."""
    found = np.flatnonzero(a.op == op)
    keys = (a.step_threadblock[found] * a.ranks + peers(a)[found]) * a.step_count + found
    order = np.argsort(keys)
    found, keys = np.append(found[order], NOTHING), np.append(keys[order], np.iinfo(np.int64).max)
    group = a.step_threadblock[step] * a.ranks + peer
    place = np.searchsorted(keys, group * a.step_count + step)
    return np.where(keys[place] < (group + 1) * a.step_count, found[place], NOTHING)


@dataclass(frozen=True, eq=False)
class Accesses:
    """All accesses in one placement, by address and then by where they begin, reads first.

    ``begin`` is an event; it is over with ``end`` or with ``other_end`` (a unit, or NOTHING); ``end`` is ``begin``
    where nothing stays in flight.
    """

    address: Ints
    begin: Ints
    writes: Mask
    end: Ints
    other_end: Ints

    def __len__(self) -> int:
        return len(self.address)


def accesses(units: Units, memory: Memory, events: Events, endings: Endings) -> Accesses:
    """The accesses of all units, entries and exits. O(n log n)."""
    parts = [*_local(units, memory), _of_operands(units, memory, endings), *_of_users(memory, events)]
    address, begin, writes, end, other = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((writes, events.position[begin], address))
    return Accesses(address[order], begin[order], writes[order] != 0, end[order], other[order])


_Columns = tuple[Ints, Ints, Ints, Ints, Ints]
"""address, begin, writes, end, other end."""


def _done_at_once(address: Ints, event: Ints, writes: int) -> _Columns:
    return address, event, np.full(len(event), writes), event, np.full(len(event), NOTHING)


def _local(units: Units, memory: Memory) -> tuple[_Columns, _Columns]:
    """Those of two-sided and local steps."""
    placed = operands(units, memory)
    reads, written = (
        np.flatnonzero((column != NOTHING) & ~placed.idle) for column in (placed.source, placed.destination)
    )
    return _done_at_once(placed.source[reads], reads, 0), _done_at_once(placed.destination[written], written, 1)


def _of_operands(units: Units, memory: Memory, endings: Endings) -> _Columns:
    """Those of one-sided steps, chunk by chunk."""
    a = units.algorithm
    first = operand_addresses(memory)
    count = np.where(_idle(a, first), 0, a.count[a.operand_step])
    row = np.repeat(np.arange(len(count)), count)
    chunk = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    address, unit = first[row] + chunk, units.first[a.operand_step[row]] + chunk
    lasting = endings.lasting[row]
    end = np.where(lasting, endings.seen[row], unit)
    return address, unit, a.operand_writes[row], end, np.where(lasting, endings.flushed[row], NOTHING)


def operand_addresses(memory: Memory) -> Ints:
    """The address of each operand row's first chunk, or NOTHING."""
    a = memory.algorithm
    base = memory.base[a.operand_rank, a.operand_buffer]
    return np.where(a.operand_buffer == NOTHING, NOTHING, base + a.operand_index)


def _idle(a: Algorithm, address: Ints) -> Mask:
    """The destinations that are the one source of their step, so that nothing is changed."""
    writes = a.operand_writes == 1
    sources = np.bincount(a.operand_step[~writes], minlength=a.step_count)
    alone = sources[a.operand_step] == 1
    unchanged: Mask = writes & alone & (address == address[a.operand_start[a.operand_step]])
    return unchanged


def _of_users(memory: Memory, events: Events) -> tuple[_Columns, _Columns]:
    """Those of entries and exits: the input and output of each rank, each address once."""
    collective, spans, owners = memory.algorithm.collective, [], []
    for rank in range(collective.ranks):
        sizes = {Buffer.INPUT: collective.input_chunks(rank), Buffer.OUTPUT: collective.output_chunks(rank)}
        tensors = [int(memory.base[rank, b]) + np.arange(chunks, dtype=np.int64) for b, chunks in sizes.items()]
        spans.append(np.unique(np.concatenate(tensors)))
        owners.append(np.full(len(spans[-1]), rank, dtype=np.int64))
    address, owner = np.concatenate(spans), np.concatenate(owners)
    return _done_at_once(address, events.entry[owner], 1), _done_at_once(address, events.exit[owner], 1)
