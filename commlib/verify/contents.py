"""Contents: runs the units once on exact contents and compares the outputs with the postcondition.

One order is enough: where nothing races, every order that threadblocks, dependences and messages allow reads the
same writes, so contents do not depend on it (and where something races, that is a finding of its own).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from commlib.collectives import Buffer, Collective, Contribution, Placement, Shards
from commlib.ir.algorithm import HAS_DESTINATION, Algorithm, Op
from commlib.ir.contents import EMPTY, ContentTable
from commlib.verify.memory import Memory, Operands
from commlib.verify.report import Finding, FindingKind, Findings, at_step, describe
from commlib.verify.units import Units

UNKNOWN = -2
"""The content id of what was computed from a slot that was never written (reported where it is read)."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What every slot holds: ``ids[address]`` in ``table``; EMPTY where nothing was ever written."""

    memory: Memory
    table: ContentTable
    ids: list[int]

    def counts(self, rank: int, buffer: Buffer, index: int) -> dict[Contribution, int] | None:
        """The contributions in a slot and how often each is counted; None when nothing defined is there."""
        content = self.ids[self.memory.address(rank, buffer, index)]
        return None if content < 0 else self.table.counts(content)


def table_of(collective: Collective) -> ContentTable:
    """A table for the contents of a collective's runs; runs that share one do not add the same contents again."""
    return ContentTable([collective.input_chunks(rank) for rank in range(collective.ranks)])


def initial(memory: Memory, table: ContentTable | None = None) -> Contents:
    """What the slots hold before the run: the inputs, and nothing elsewhere. By default in a table of its own."""
    collective = memory.algorithm.collective
    table, ids = table_of(collective) if table is None else table, [EMPTY] * memory.size
    for rank in range(collective.ranks):
        start, chunks = memory.address(rank, Buffer.INPUT, 0), collective.input_chunks(rank)
        ids[start : start + chunks] = table.initials(rank, 0, chunks)
    return Contents(memory, table, ids)


def run_contents(units: Units, operands: Operands, order: list[int], contents: Contents) -> list[tuple[int, int]]:
    """Run all units in a topological order, changing ``contents``; returns the (unit, address) of reads of nothing.

    O(1) dictionary look-ups per unit, that is, per chunk moved.
    """
    ids, add = contents.ids, contents.table.add
    sources, destinations = operands.source.tolist(), operands.destination.tolist()
    partners, reduces = units.partner.tolist(), (units.algorithm.op == Op.REDUCE)[units.step].tolist()
    incoming = [UNKNOWN] * len(units)
    receives = (units.recv_link >= 0).tolist()
    undefined: list[tuple[int, int]] = []
    for unit in order:
        source, destination, value = sources[unit], destinations[unit], UNKNOWN
        if source >= 0:
            value = ids[source]
            if value == EMPTY:
                undefined.append((unit, source))
                value = UNKNOWN
        if receives[unit]:
            message = incoming[unit]
            value = message if source < 0 else add(value, message) if value >= 0 and message >= 0 else UNKNOWN
        if destination >= 0:
            if reduces[unit]:
                other = ids[destination]
                if other == EMPTY:
                    undefined.append((unit, destination))
                value = add(value, other) if value >= 0 and other >= 0 else UNKNOWN
            ids[destination] = value
        if partners[unit] >= 0:
            incoming[partners[unit]] = value
    return undefined


def report_undefined(units: Units, memory: Memory, undefined: list[tuple[int, int]], findings: Findings) -> None:
    """A finding for each read of a slot that nothing was written to before."""
    for unit, address in undefined:
        findings.make(FindingKind.UNINITIALIZED, _undefined, units, memory, unit, address)


def _undefined(units: Units, memory: Memory, unit: int, address: int) -> Finding:
    a, number = units.algorithm, int(units.step[unit])
    rank, buffer, chunk = memory.slot(address)
    owner = "" if rank == a.step_rank[number] else f"rank {rank} "
    message = f"{describe(a, number)} reads {owner}{buffer.letter}[{chunk}], to which nothing has been written"
    return at_step(
        a, FindingKind.UNINITIALIZED, message, number, placement=memory.placement, buffer=buffer, chunk=chunk
    )


def check_inputs_kept(algorithm: Algorithm, memory: Memory, findings: Findings) -> None:
    """Out of place the input belongs to the caller (NCCL's send buffer is const): report steps that write it."""
    a = algorithm
    same = (a.source_buffer == a.destination_buffer) & (a.source_index == a.destination_index)
    writes = HAS_DESTINATION[a.op] & (a.destination_buffer == Buffer.INPUT) & ~((a.op == Op.COPY) & same)
    for number in writes.nonzero()[0].tolist():
        findings.make(FindingKind.INPUT_OVERWRITTEN, _overwritten, a, memory.placement, number)


def _overwritten(a: Algorithm, placement: Placement, number: int) -> Finding:
    message = f"{describe(a, number)} overwrites the input, which out of place belongs to the caller"
    buffer, chunk = Buffer.INPUT, int(a.destination_index[number])
    return at_step(a, FindingKind.INPUT_OVERWRITTEN, message, number, placement=placement, buffer=buffer, chunk=chunk)


def check_postcondition(contents: Contents, findings: Findings) -> None:
    """Compare every output slot with what the collective wants there.

    O(output slots), and a look-up for each chunk of each distinct set of shards that is combined.
    """
    memory = contents.memory
    collective = memory.algorithm.collective
    combined: dict[Shards, Sequence[int]] = {}
    for rank in range(collective.ranks):
        start = memory.address(rank, Buffer.OUTPUT, 0)
        found = contents.ids[start : start + collective.output_chunks(rank)]
        wanted = _wanted(contents.table, collective, rank, found, combined)
        if found != wanted:
            for index, (got, want) in enumerate(zip(found, wanted, strict=True)):
                if got not in (want, UNKNOWN):
                    findings.make(FindingKind.POSTCONDITION, _wrong, contents, rank, index, got, want)


def _wanted(
    table: ContentTable, collective: Collective, rank: int, found: list[int], combined: dict[Shards, Sequence[int]]
) -> list[int]:
    """The content id wanted in each output chunk of the rank; what was found, where anything may be."""
    wanted: list[int] = []
    for shard in range(len(found) // collective.chunks):
        sources = collective.shard_sources(rank, shard)
        if sources is None:
            wanted += found[len(wanted) : len(wanted) + collective.chunks]
        elif len(sources) == 1:
            ((source, offset),) = sources
            wanted += table.initials(source, offset * collective.chunks, collective.chunks)
        else:
            if sources not in combined:
                combined[sources] = _combined(table, sources, collective.chunks)
            wanted += combined[sources]
    return wanted


def _combined(table: ContentTable, sources: Shards, chunks: int) -> list[int]:
    """The content id of each chunk of a shard that combines these input shards."""
    offsets = {offset for _, offset in sources}
    if len(offsets) > 1:
        return [table.of((source, s * chunks + chunk) for source, s in sources) for chunk in range(chunks)]
    mask, offset = sum(1 << rank for rank, _ in sources), min(offsets, default=0)
    return [table.of_ranks(mask, offset * chunks + chunk) for chunk in range(chunks)]


def _wrong(contents: Contents, rank: int, index: int, got: int, wanted: int) -> Finding:
    where = f"rank {rank} o[{index}]"
    if got == EMPTY:
        belongs = _names(list(contents.table.counts(wanted)))
        message = f"{where}: nothing was ever written to it; {belongs} belongs there"
    else:
        message = f"{where}: {_difference(contents.table.counts(got), contents.table.counts(wanted))}"
    return Finding(
        FindingKind.POSTCONDITION,
        message,
        placement=contents.memory.placement,
        rank=rank,
        buffer=Buffer.OUTPUT,
        chunk=index,
    )


def _difference(got: dict[Contribution, int], wanted: dict[Contribution, int]) -> str:
    missing = [c for c in wanted if c not in got]
    twice = [c for c, count in got.items() if count > 1 and c in wanted]
    extra = [c for c in got if c not in wanted]
    parts = []
    if missing:
        parts.append(f"the contribution of {_names(missing)} is lost")
    if twice:
        parts.append(f"{_names(twice)} is counted {max(got[c] for c in twice)} times")
    if extra:
        parts.append(f"{_names(extra)} does not belong there")
    return "; ".join(parts)


def _names(contributions: list[Contribution]) -> str:
    ordered = sorted(contributions)
    shown = ", ".join(f"rank {rank} i[{index}]" for rank, index in ordered[:6])
    return shown if len(ordered) <= 6 else f"{shown} and {len(ordered) - 6} more"
