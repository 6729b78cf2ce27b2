"""Contents: runs the units once on exact contents and compares the outputs with the postcondition.

One order is enough: where nothing races, every order that threadblocks, dependences and messages allow reads the
same writes, so contents do not depend on it (and where something races, that is a finding of its own).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from commlib.collectives import Buffer, Collective, Contribution
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


def initial(memory: Memory) -> Contents:
    """What the slots hold before the run: the inputs, and nothing elsewhere."""
    table, ids = ContentTable(), [EMPTY] * memory.size
    for rank in range(memory.algorithm.ranks):
        start = memory.address(rank, Buffer.INPUT, 0)
        for index in range(memory.algorithm.collective.input_chunks(rank)):
            ids[start + index] = table.initial(rank, index)
    return Contents(memory, table, ids)


def run_contents(units: Units, operands: Operands, order: list[int], contents: Contents) -> list[tuple[int, int]]:
    """Run all units in a topological order, changing ``contents``; returns the (unit, address) of reads of nothing.

    O(1) dictionary look-ups per unit.
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
        if findings.count(FindingKind.UNINITIALIZED):
            number = int(units.step[unit])
            _, buffer, chunk = memory.slot(address)
            message = (
                f"{describe(units.algorithm, number)} reads {buffer.letter}[{chunk}], to which nothing has been written"
            )
            findings.kept.append(
                at_step(
                    units.algorithm,
                    FindingKind.UNINITIALIZED,
                    message,
                    number,
                    placement=memory.placement,
                    buffer=buffer,
                    chunk=chunk,
                )
            )


def check_inputs_kept(algorithm: Algorithm, memory: Memory, findings: Findings) -> None:
    """Out of place the input belongs to the caller (NCCL's send buffer is const): report steps that write it."""
    a = algorithm
    same = (a.source_buffer == a.destination_buffer) & (a.source_index == a.destination_index)
    writes = HAS_DESTINATION[a.op] & (a.destination_buffer == Buffer.INPUT) & ~((a.op == Op.COPY) & same)
    for number in writes.nonzero()[0].tolist():
        if findings.count(FindingKind.INPUT_OVERWRITTEN):
            chunk = int(a.destination_index[number])
            message = f"{describe(a, number)} overwrites the input, which out of place belongs to the caller"
            findings.kept.append(
                at_step(
                    a,
                    FindingKind.INPUT_OVERWRITTEN,
                    message,
                    number,
                    placement=memory.placement,
                    buffer=Buffer.INPUT,
                    chunk=chunk,
                )
            )


def check_postcondition(contents: Contents, findings: Findings) -> None:
    """Compare every output slot with what the collective wants there. O(output slots) look-ups."""
    memory = contents.memory
    collective, ids = memory.algorithm.collective, contents.ids
    for rank in range(collective.ranks):
        start = memory.address(rank, Buffer.OUTPUT, 0)
        for index, wanted in _expected(collective, contents.table, rank):
            got = ids[start + index]
            if got not in (wanted, UNKNOWN) and findings.count(FindingKind.POSTCONDITION):
                findings.kept.append(_wrong(contents, rank, index, got, wanted))


def _expected(collective: Collective, table: ContentTable, rank: int) -> Iterator[tuple[int, int]]:
    """(chunk index, content id) for each output chunk of the rank whose content is prescribed."""
    chunks = collective.chunks
    for shard in range(collective.output_chunks(rank) // chunks):
        sources = collective.shard_sources(rank, shard)
        if sources is None:
            continue
        mask, offset = _mask(sources)
        for chunk in range(chunks):
            if offset is None:
                wanted = table.of((source, s * chunks + chunk) for source, s in sources)
            else:
                wanted = table.of_ranks(mask, offset * chunks + chunk)
            yield shard * chunks + chunk, wanted


@lru_cache(maxsize=4)
def _mask(sources: frozenset[Contribution]) -> tuple[int, int | None]:
    """The ranks of the sources as a mask, and the offset that they all have, if it is one."""
    offsets = {offset for _, offset in sources}
    return sum(1 << rank for rank, _ in sources), offsets.pop() if len(offsets) == 1 else None


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
