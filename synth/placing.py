"""Placing: where each rank keeps each parcel, so that one trace is right in place and out of place.

Times are places in the order of moves. In place, an output slot may lie on an input chunk: it is a parcel's home only
if that chunk is never read later; otherwise the parcel waits in scratch, and the output is written at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from commlib.collectives import Collective
from synth.moves import Move, Parcel

Place = tuple[str, int]
"""A buffer ("output" or "relay") and an index in it."""
RELAY = "relay"
"""The scratch buffer of what is passed on or waits."""
_END = 1 << 62


@dataclass
class Places:
    """``home[parcel, rank]`` is where a rank keeps what it makes or gets of a parcel; its own input stays in place.

    ``relays[rank]`` is how much scratch that takes. ``early`` lists the parcels that a rank only keeps for itself and
    that must leave its input before outputs are written at the end.
    """

    home: dict[tuple[int, int], Place] = field(default_factory=dict)
    relays: list[int] = field(default_factory=list)
    early: list[tuple[int, int]] = field(default_factory=list)

    def relay(self, parcel: int, rank: int) -> None:
        """Give a parcel a scratch slot of its own."""
        self.home[parcel, rank] = (RELAY, self.relays[rank])
        self.relays[rank] += 1


def places(collective: Collective, parcels: Sequence[Parcel], rows: Sequence[Move]) -> Places:
    """The places for moves that happen in the order of ``rows``. O(moves + slots)."""
    found = Places(relays=[0] * collective.ranks)
    offsets = in_place_offsets(collective)
    written, read = _times(parcels, rows)
    for (number, rank), time in written.items():
        parcel = parcels[number]
        slots = parcel.slots.get(rank)
        if slots and _is_safe(parcel, rank, slots[0] + offsets[rank], time, read):
            found.home[number, rank] = ("output", slots[0])
        else:
            found.relay(number, rank)
    for number, parcel in enumerate(parcels):
        for rank, own in parcel.sources.items():
            kept = rank in parcel.slots and (number, rank) not in written
            if kept and (len(own) > 1 or is_overwritten(collective, parcel, rank, own[0] - offsets[rank])):
                found.relay(number, rank)
                found.early.append((number, rank))
    return found


def in_place_offsets(collective: Collective) -> list[int]:
    """Per rank, the input chunk on which output chunk 0 lies in place; far outside where there is no in place."""
    if not collective.can_be_in_place:
        return [-_END] * collective.ranks
    offsets = map(collective.in_place_offsets, range(collective.ranks))
    return [output - inputs for inputs, output in offsets]


def _times(
    parcels: Sequence[Parcel], rows: Sequence[Move]
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], int]]:
    """When each (parcel, rank) is first written outside the input, and each (rank, input chunk) last read."""
    written: dict[tuple[int, int], int] = {}
    read: dict[tuple[int, int], int] = {}
    for time, move in enumerate(rows):
        sources = parcels[move.parcel].sources
        if (move.parcel, move.source) not in written:
            own = sources.get(move.source, ())
            read.update({(move.source, index): time for index in own})
            if len(own) > 1:
                written[move.parcel, move.source] = time
        if (move.parcel, move.target) not in written:
            written[move.parcel, move.target] = time
            if move.reduces:
                read.update({(move.target, index): time for index in sources.get(move.target, ())})
    for number, parcel in enumerate(parcels):
        for rank, own in parcel.sources.items():
            if rank in parcel.slots and (number, rank) not in written:
                read.update({(rank, index): _END for index in own})
    return written, read


def _is_safe(parcel: Parcel, rank: int, overlaid: int, time: int, read: dict[tuple[int, int], int]) -> bool:
    """Whether a slot that lies on input chunk ``overlaid`` may be written at ``time``.

    The operation that reads the chunk last may write it too, if it is the first that the operation takes.
    """
    last = read.get((rank, overlaid), -1)
    return last < time or (last == time and parcel.sources.get(rank, (-1,))[0] == overlaid)


def is_overwritten(collective: Collective, parcel: Parcel, rank: int, output: int) -> bool:
    """Whether the output chunk that lies on an input chunk gets another parcel."""
    if not 0 <= output < collective.output_chunks(rank) or output in parcel.slots[rank]:
        return False
    return collective.expected(rank, output) is not None
