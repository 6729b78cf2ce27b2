"""Races of programs with one-sided steps, whose puts are in flight for a while.

Two accesses conflict when they touch one slot and one of them writes. One of them must then be over (``Accesses``
says when) before the other begins. As "over before" is transitive, it is enough to ask this of neighbours: a write
and the next write, a write and the reads up to the next, those reads and that write.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from commlib.collectives import Placement
from commlib.ir.algorithm import NOTHING, Algorithm, Ints
from commlib.verify.accesses import Accesses, Mask, accesses, endings, operand_addresses
from commlib.verify.events import Events
from commlib.verify.memory import Memory, operands
from commlib.verify.races import names_of, report_overlaps
from commlib.verify.report import Finding, FindingKind, Findings, at_step, describe
from commlib.verify.units import Units


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs of conflicting accesses (rows of ``Accesses``), the first of which must be over before the second."""

    accesses: Accesses
    first: Ints
    then: Ints


def check_one_sided_races(units: Units, order: list[int], placed: Iterable[tuple[Memory, Findings]]) -> None:
    """Report the races, and the steps whose operands overlap, in each placement."""
    events, last = Events(units, order), endings(units)
    checked = [(memory, found, _pairs(accesses(units, memory, events, last))) for memory, found in placed]
    answers = _ordered(units, events, [pairs for _, _, pairs in checked])
    for (memory, findings, pairs), ordered in zip(checked, answers, strict=True):
        _report(_Place(units, events, memory), pairs, np.flatnonzero(~ordered), findings)
        report_overlaps(units, memory, operands(units, memory), findings)
        _check_overlaps(memory, findings)


def _pairs(found: Accesses) -> _Pairs:
    """The neighbouring conflicts of each address; those within one unit are the business of ``_check_overlaps``."""
    size, here = len(found), np.arange(len(found))
    first_of_address = np.flatnonzero(np.diff(found.address, prepend=-1))
    sizes = np.diff(np.append(first_of_address, size))
    start, stop = (np.repeat(ends, sizes) for ends in (first_of_address, first_of_address + sizes))
    last_write = np.maximum.accumulate(np.where(found.writes, here, -1))
    last_write = np.concatenate([[-1], last_write[:-1]]) if size else last_write
    next_write = np.minimum.accumulate(np.where(found.writes, here, size)[::-1])[::-1]
    follows = (last_write >= start) & (~found.writes | (last_write == here - 1))
    overwritten = ~found.writes & (next_write < stop)
    first = np.concatenate([last_write[follows], here[overwritten]])
    then = np.concatenate([here[follows], next_write[overwritten]])
    apart = found.begin[first] != found.begin[then]
    return _Pairs(found, first[apart], then[apart])


def _ordered(units: Units, events: Events, all_pairs: list[_Pairs]) -> list[Mask]:
    """Whether each pair is ordered; all placements ask at once, as they mostly share their questions."""
    if not all_pairs:
        return []
    ends = [p.accesses.end[p.first] for p in all_pairs] + [p.accesses.other_end[p.first] for p in all_pairs]
    end, begin = np.concatenate(ends), np.concatenate([p.accesses.begin[p.then] for p in all_pairs] * 2)
    answer = _known_at_once(units, events, end, begin)
    open_ = np.flatnonzero(~answer & (end != NOTHING))
    distinct, place = np.unique(end[open_] * len(events) + begin[open_], return_inverse=True)
    answer[open_] = events.before(*np.divmod(distinct, len(events)))[place]
    either = answer[: len(answer) // 2] | answer[len(answer) // 2 :]
    return np.split(either, np.cumsum([len(p.first) for p in all_pairs])[:-1])


def _known_at_once(units: Units, events: Events, end: Ints, begin: Ints) -> Mask:
    """Events of one rank that need no search: of one threadblock, its entry, its exit."""
    row, rank = _places(units)
    same: Mask = (end != NOTHING) & (events.position[end] <= events.position[begin])
    same &= (rank[end] == rank[begin]) & ((row[end] == row[begin]) | (row[end] < 0) | (row[begin] < 0))
    return same


def _places(units: Units) -> tuple[Ints, Ints]:
    """(threadblock row, or NOTHING for entries and exits; rank) of each event."""
    a = units.algorithm
    ranks = np.arange(a.ranks)
    row = np.concatenate([units.threadblock, np.full(2 * a.ranks, NOTHING)])
    return row, np.concatenate([a.tb_rank[units.threadblock], ranks, ranks])


@dataclass(frozen=True, eq=False)
class _Place:
    """What it takes to put a race in words."""

    units: Units
    events: Events
    memory: Memory

    def key(self, event: Ints) -> Ints:
        """The step of each event, or a number beyond the steps for the entry or exit of a rank."""
        size = len(self.units)
        step = self.units.step[np.minimum(event, size - 1)] if size else event
        return np.where(event < size, step, self.units.algorithm.step_count + event - size)


def _report(place: _Place, pairs: _Pairs, wrong: Ints, findings: Findings) -> None:
    """A finding for each pair of steps (or of a step and a rank's entry or exit) with an unordered pair of accesses."""
    begin = pairs.accesses.begin
    keys = place.key(begin[pairs.first[wrong]]) * (len(place.events) * 2) + place.key(begin[pairs.then[wrong]])
    _, distinct = np.unique(keys, return_index=True)
    for i in wrong[np.sort(distinct)].tolist():
        findings.make(FindingKind.RACE, _race, place, pairs.accesses, int(pairs.first[i]), int(pairs.then[i]))


def _race(place: _Place, found: Accesses, first: int, then: int) -> Finding:
    a, memory, size = place.units.algorithm, place.memory, len(place.units)
    before, after, address = int(found.begin[first]), int(found.begin[then]), int(found.address[first])
    rank, buffer, chunk = memory.slot(address)
    slot = f"rank {rank} {names_of(memory, rank, address)}"
    others: tuple[tuple[int, int, int], ...] = ()
    if before >= size:
        number = int(place.units.step[after])
        words = _early(a, number, bool(found.writes[then]), rank, slot)
    elif after >= size:
        number = int(place.units.step[before])
        words = _late(a, number, bool(found.writes[first]), rank, slot, _flight(place, found, first))
    else:
        number, other = int(place.units.step[after]), int(place.units.step[before])
        words, others = _clash(a, other, number, slot, _flight(place, found, first)), (a.place(other),)
    how = "in place" if memory.placement is Placement.IN else "out of place"
    where: dict[str, object] = {"placement": memory.placement, "buffer": buffer, "chunk": chunk, "others": others}
    return at_step(a, FindingKind.RACE, f"{how}, {words}", number, peer=_other(a, number, rank), **where)


def _early(a: Algorithm, number: int, writes: bool, rank: int, slot: str) -> str:
    return (
        f"{describe(a, number)} {'writes' if writes else 'reads'} {slot} when rank {rank} may not have entered the "
        f"call: nothing orders it after that rank's entry (let rank {rank} signal first)"
    )


def _late(a: Algorithm, number: int, writes: bool, rank: int, slot: str, flight: str) -> str:
    cure = "flush it" if a.step_rank[number] == rank else f"let rank {rank} wait for a signal that follows it"
    return (
        f"{describe(a, number)} {'writes' if writes else 'reads'} {slot} when rank {rank} may have left the call: "
        f"nothing orders it before that rank's exit{flight} ({cure})"
    )


def _clash(a: Algorithm, before: int, after: int, slot: str, flight: str) -> str:
    return (
        f"{slot}: {describe(a, before)} and {describe(a, after)} both use it, one of them writes, and nothing "
        f"orders them{flight}"
    )


def _other(a: Algorithm, number: int, rank: int) -> int | None:
    """The rank whose slot it is, where that is not the step's own."""
    return None if a.place(number)[0] == rank else rank


def _flight(place: _Place, found: Accesses, access: int) -> str:
    """Until when an access is in flight, in words; nothing where it is done with its step."""
    begin, end, other = (int(column[access]) for column in (found.begin, found.end, found.other_end))
    if end == begin:
        return ""
    a, verb = place.units.algorithm, "write" if found.writes[access] else "read"
    ends = [describe(a, int(place.units.step[unit])) for unit in (end, other) if unit != NOTHING]
    if not ends:
        return f"; its {verb} stays in flight: no signal or flush for that peer follows in its threadblock"
    return f"; its {verb} is in flight until {' or '.join(ends)}"


def _check_overlaps(memory: Memory, findings: Findings) -> None:
    """Report one-sided steps of which a destination overlaps another operand, but for a source that is equal."""
    a = memory.algorithm
    rows = np.flatnonzero(a.operand_buffer != NOTHING)
    address, step = operand_addresses(memory)[rows], a.operand_step[rows]
    slot, member = np.unique(step * memory.size + address, return_inverse=True)
    written = np.bincount(member, weights=a.operand_writes[rows], minlength=len(slot))
    owner, at = np.divmod(slot, max(memory.size, 1))
    near = (np.diff(owner) == 0) & (np.diff(at) < a.count[owner[:-1]]) & (written[1:] + written[:-1] > 0)
    for number in np.union1d(owner[written > 1], owner[:-1][near]).tolist():
        findings.make(FindingKind.RACE, _overlap, a, memory.placement, number)


def _overlap(a: Algorithm, placement: Placement, number: int) -> Finding:
    how = "in place" if placement is Placement.IN else "out of place"
    message = (
        f"{how}, a destination of {describe(a, number)} overlaps another operand: which chunk it moves first is not "
        f"defined; a destination may equal a source exactly, or lie apart"
    )
    return at_step(a, FindingKind.RACE, message, number, placement=placement)
