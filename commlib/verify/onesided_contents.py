"""Contents of programs with one-sided steps.

Where nothing races, every run reads the same writes, so that one run stands for all, with each put done at once (and
where something races, that is a finding of its own).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import NOTHING, Algorithm, Op
from commlib.ir.contents import EMPTY
from commlib.verify.contents import UNKNOWN, Contents
from commlib.verify.memory import Memory
from commlib.verify.report import Finding, FindingKind, Findings, at_step, describe
from commlib.verify.units import Units


@dataclass(frozen=True, eq=False)
class _Moves:
    """The addresses that the first unit of each step reads and writes; its other units follow from there."""

    sources: list[list[int]]
    destinations: list[list[int]]


def _moves(memory: Memory) -> _Moves:
    a = memory.algorithm
    sources: list[list[int]] = [[] for _ in range(a.step_count)]
    destinations: list[list[int]] = [[] for _ in range(a.step_count)]
    for buffer, index, into in (
        (a.source_buffer, a.source_index, sources),
        (a.destination_buffer, a.destination_index, destinations),
    ):
        steps = np.flatnonzero(buffer != NOTHING)
        addresses = memory.base[a.step_rank[steps], buffer[steps]] + index[steps]
        for step, address in zip(steps.tolist(), addresses.tolist(), strict=True):
            into[step].append(address)
    for step in np.flatnonzero(a.op == Op.REDUCE).tolist():
        sources[step] += destinations[step]
    rows = np.flatnonzero(a.operand_buffer != NOTHING)
    addresses = memory.base[a.operand_rank[rows], a.operand_buffer[rows]] + a.operand_index[rows]
    owners, writes = a.operand_step[rows].tolist(), a.operand_writes[rows].tolist()
    for step, address, written in zip(owners, addresses.tolist(), writes, strict=True):
        (destinations if written else sources)[step].append(address)
    return _Moves(sources, destinations)


def run_one_sided(units: Units, order: list[int], contents: Contents) -> list[tuple[int, int]]:
    """Run all units in a topological order, as ``run_contents`` does: O(1) dictionary look-ups per operand."""
    moves = _moves(contents.memory)
    ids, add = contents.ids, contents.table.add
    step_of, offset_of, partners = units.step.tolist(), units.offset.tolist(), units.partner.tolist()
    incoming: dict[int, int] = {}
    undefined: list[tuple[int, int]] = []
    for unit in order:
        step, offset = step_of[unit], offset_of[unit]
        value = incoming.pop(unit, EMPTY)
        for address in moves.sources[step]:
            other = ids[address + offset]
            if other == EMPTY:
                undefined.append((unit, address + offset))
                other = UNKNOWN
            value = other if value == EMPTY else add(value, other) if value >= 0 and other >= 0 else UNKNOWN
        for address in moves.destinations[step]:
            ids[address + offset] = value
        if partners[unit] != NOTHING:
            incoming[partners[unit]] = value
    return undefined


def check_inputs_kept_by_peers(algorithm: Algorithm, placement: Placement, findings: Findings) -> None:
    """Out of place the input is constant, also for what other ranks store: report one-sided steps that write one."""
    a = algorithm
    rows = np.flatnonzero((a.operand_writes == 1) & (a.operand_buffer == Buffer.INPUT))
    for row in rows.tolist():
        number, rank, chunk = int(a.operand_step[row]), int(a.operand_rank[row]), int(a.operand_index[row])
        step = a.step(number)
        if not (step.op is Op.STORE and step.sources[0] in step.destinations and rank == step.rank):
            findings.make(FindingKind.INPUT_OVERWRITTEN, _overwritten, a, placement, number, rank, chunk)


def _overwritten(a: Algorithm, placement: Placement, number: int, rank: int, chunk: int) -> Finding:
    message = f"{describe(a, number)} overwrites rank {rank}'s input, which out of place belongs to its caller"
    where: dict[str, object] = {"placement": placement, "buffer": Buffer.INPUT, "chunk": chunk}
    return at_step(a, FindingKind.INPUT_OVERWRITTEN, message, number, **where)
