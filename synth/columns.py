"""Columns: the rows of a schedule's trace, all at once; what the DSL would record, for a million moves.

A *place* is a parcel on a rank, numbered ``parcel * ranks + rank``. Times are places in the order of arrival. This is
``placing`` and ``lowering`` once more, for what nearly every schedule is: each rank has at most one contribution to a
parcel. Whatever is not like that is left to the DSL, which says what is wrong with it or does it step by step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

from commlib.collectives import Buffer
from commlib.ir.algorithm import NOTHING
from commlib.ir.trace import COLUMNS, Action
from synth.moves import Bools, Moves
from synth.placing import in_place_offsets, is_overwritten
from synth.symmetry import Ints

MOST_PLACES = 1 << 24
"""Places up to which there are columns with a row for each."""
_NEVER = 1 << 62
_AT = {name: position for position, name in enumerate(COLUMNS)}


def trace_rows(moves: Moves) -> tuple[tuple[int, ...], Ints] | None:
    """(scratch chunks of each rank, rows of the trace); None where only the DSL will do. O(M log M + places)."""
    ranks = moves.collective.ranks
    if len(moves.parcels) * ranks > MOST_PLACES or bool((moves.source == moves.target).any()):
        return None
    sources = _flat([parcel.sources for parcel in moves.parcels], ranks)
    slots = _flat([parcel.slots for parcel in moves.parcels], ranks)
    if sources is None or slots is None or len(np.unique(sources[0])) < len(sources[0]):
        return None
    layout = _Layout(moves, sources, slots)
    return layout.rows() if layout.regular else None


def _flat(maps: list[Mapping[int, tuple[int, ...]]], ranks: int) -> tuple[Ints, Ints] | None:
    """(place, chunk index) of all entries, in order; None where a rank has an empty one."""
    count = [len(indices) for each in maps for indices in each.values()]
    if 0 in count:
        return None
    first = np.repeat(np.arange(len(maps)) * ranks, [len(each) for each in maps])
    rank = np.fromiter(chain.from_iterable(maps), dtype=np.int64)
    index = np.fromiter(_indices(maps), dtype=np.int64)
    return np.repeat(first + rank, count), index


def _indices(maps: list[Mapping[int, tuple[int, ...]]]) -> Iterator[int]:
    return chain.from_iterable(chain.from_iterable(each.values() for each in maps))


@dataclass(frozen=True, eq=False)
class _Homes:
    """Where each place keeps its parcel, or NOTHING; how much scratch ranks use; places that are copied there early."""

    buffer: Ints
    index: Ints
    relays: Ints
    early: Ints


class _Layout:
    """Who holds what when, for moves in the order of their arrival."""

    def __init__(self, moves: Moves, sources: tuple[Ints, Ints], slots: tuple[Ints, Ints]) -> None:
        self._moves, self._collective, self._ranks = moves, moves.collective, moves.collective.ranks
        order = np.argsort(moves.arrival, kind="stable")
        self._source = (moves.parcel * self._ranks + moves.source)[order]
        self._target = (moves.parcel * self._ranks + moves.target)[order]
        self._adds: Bools = moves.reduces[order]
        self._time = np.arange(len(order))
        places = len(moves.parcels) * self._ranks
        self._contributors = sources[0]
        self._own = np.full(places, NOTHING, dtype=np.int64)
        self._own[sources[0]] = sources[1]
        self._slot_place, self._slot = slots
        self._written = np.full(places, _NEVER, dtype=np.int64)
        np.minimum.at(self._written, self._target, self._time)
        self._from_input = self._written[self._source] > self._time

    @property
    def regular(self) -> bool:
        """Whether every rank has what it sends and what it wants."""
        has_own = self._own != NOTHING
        ends = has_own[self._slot_place] | (self._written[self._slot_place] != _NEVER)
        return bool(has_own[self._source[self._from_input]].all() and ends.all())

    def rows(self) -> tuple[tuple[int, ...], Ints]:
        """What ``trace_rows`` returns."""
        homes = self._homes
        scratch = np.where(homes.relays > 0, homes.relays.max(initial=0), 0)
        return tuple(scratch.tolist()), np.concatenate([self._moved(), self._copied_early(), self._delivered()])

    @cached_property
    def _last_read(self) -> Ints:
        """When each input chunk (those of all ranks, one after the other) is read last; -1 if it is not."""
        read = np.full(int(self._first_input[-1]), NOTHING, dtype=np.int64)
        by_own = self._adds & (self._written[self._target] == self._time) & (self._own[self._target] != NOTHING)
        for place, when in ((self._source, self._from_input), (self._target, by_own)):
            np.maximum.at(read, self._input_of(place[when]), self._time[when])
        read[self._input_of(self._kept)] = _NEVER
        return read

    @cached_property
    def _kept(self) -> Ints:
        """The places, in order, whose own contribution is all that they ever have and that want it in the end."""
        wanted = np.zeros(len(self._own), dtype=bool)
        wanted[self._slot_place] = True
        places = self._contributors
        kept: Ints = places[wanted[places] & (self._written[places] == _NEVER)]
        return kept

    @cached_property
    def _first_input(self) -> Ints:
        sizes = [self._collective.input_chunks(rank) for rank in range(self._ranks)]
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)

    def _input_of(self, place: Ints) -> Ints:
        return np.asarray(self._first_input[place % self._ranks] + self._own[place], dtype=np.int64)

    @cached_property
    def _homes(self) -> _Homes:
        buffer = np.full(len(self._own), NOTHING, dtype=np.int64)
        index = buffer.copy()
        index[self._slot_place[::-1]] = self._slot[::-1]
        offsets = np.array(in_place_offsets(self._collective), dtype=np.int64)
        places = self._target[self._written[self._target] == self._time]
        safe = self._is_safe(places, index[places], offsets)
        early = self._leaving(offsets)
        waiting = np.concatenate([places[~safe], early])
        buffer[places[safe]], buffer[waiting] = Buffer.OUTPUT, Buffer.SCRATCH
        index[waiting] = _numbers_within(waiting % self._ranks)
        return _Homes(buffer, index, np.bincount(waiting % self._ranks, minlength=self._ranks), early)

    def _is_safe(self, places: Ints, slot: Ints, offsets: Ints) -> Bools:
        """Whether each place may be at home in its output slot when it is written; see ``placing``."""
        rank, time = places % self._ranks, self._written[places]
        overlaid = slot + offsets[rank]
        first, size = self._first_input[rank], np.diff(self._first_input)[rank]
        inside = (overlaid >= 0) & (overlaid < size)
        last = np.full(len(places), NOTHING, dtype=np.int64)
        last[inside] = self._last_read[first[inside] + overlaid[inside]]
        return np.asarray((slot != NOTHING) & ((last < time) | ((last == time) & (self._own[places] == overlaid))))

    def _leaving(self, offsets: Ints) -> Ints:
        """The kept places whose input chunk gets another parcel in place, before that is written."""
        pairs = zip(*np.divmod(self._kept, self._ranks), self._own[self._kept], strict=True)
        shifted = ((int(p), int(r), int(own - offsets[r])) for p, r, own in pairs)
        leaves = [is_overwritten(self._collective, self._moves.parcels[p], r, output) for p, r, output in shifted]
        leaving: Ints = self._kept[np.array(leaves, dtype=bool)]
        return leaving

    def _moved(self) -> Ints:
        """A row for every move."""
        homes, own, at_home = self._homes, self._own, self._written[self._target] < self._time
        rows = _blank(len(self._time))
        adds = self._adds & (at_home | (own[self._target] != NOTHING))
        rows[:, _AT["action"]] = np.where(adds, Action.REDUCE, Action.COPY)
        value = self._value(self._source, self._from_input)
        _fill(rows, "src", self._source % self._ranks, *value)
        home = homes.buffer[self._target], homes.index[self._target]
        _fill(rows, "dst", self._target % self._ranks, *home)
        mine = adds & ~at_home
        rows[:, _AT["operand_buffer"]] = np.where(mine, Buffer.INPUT, home[0])
        rows[:, _AT["operand_index"]] = np.where(mine, own[self._target], home[1])
        return rows

    def _copied_early(self) -> Ints:
        """A row for every contribution that leaves its input chunk."""
        homes, place = self._homes, self._homes.early
        value = self._value(place, np.ones(len(place), dtype=bool))
        return _copies(place % self._ranks, value, (homes.buffer[place], homes.index[place]))

    def _delivered(self) -> Ints:
        """A row for every output slot that is not its parcel's home."""
        homes = self._homes
        at_home = (homes.buffer[self._slot_place] == Buffer.OUTPUT) & (homes.index[self._slot_place] == self._slot)
        place, slot = self._slot_place[~at_home], self._slot[~at_home]
        value = self._value(place, homes.buffer[place] == NOTHING)
        return _copies(place % self._ranks, value, (np.full(len(place), Buffer.OUTPUT), slot))

    def _value(self, place: Ints, from_input: Bools) -> tuple[Ints, Ints]:
        """(buffer, index) of what places have: their own contribution, or what is at home."""
        homes = self._homes
        buffer = np.where(from_input, Buffer.INPUT, homes.buffer[place])
        return buffer, np.where(from_input, self._own[place], homes.index[place])


def _numbers_within(group: Ints) -> Ints:
    """For each row, how many rows of its group come before it."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    numbers = np.empty(len(group), dtype=np.int64)
    numbers[order] = np.arange(len(group)) - np.searchsorted(ordered, ordered)
    return numbers


def _blank(size: int) -> Ints:
    rows = np.zeros((size, len(COLUMNS)), dtype=np.int64)
    for name in ("channel", "send_tb", "recv_tb"):
        rows[:, _AT[name]] = NOTHING
    rows[:, _AT["count"]] = rows[:, _AT["ways"]] = 1
    return rows


def _fill(rows: Ints, end: str, rank: Ints, buffer: Ints, index: Ints) -> None:
    for part, column in (("rank", rank), ("buffer", buffer), ("index", index)):
        rows[:, _AT[f"{end}_{part}"]] = column


def _copies(rank: Ints, source: tuple[Ints, Ints], target: tuple[Ints, Ints]) -> Ints:
    """Rows that copy on a rank."""
    rows = _blank(len(rank))
    _fill(rows, "src", rank, *source)
    _fill(rows, "dst", rank, *target)
    rows[:, _AT["operand_buffer"]], rows[:, _AT["operand_index"]] = target
    return rows
