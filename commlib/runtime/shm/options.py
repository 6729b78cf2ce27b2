"""ShmOptions: sizes and waiting of a shared-memory session; alike on all ranks of a group."""

from __future__ import annotations

import os
from dataclasses import dataclass

from commlib.errors import CommlibError, SpecError
from commlib.runtime.shm.control import CHANNELS, LINE, PAGE, SegmentLayout
from commlib.runtime.tabulate import TableLimits

_MOST_LOOKS = 100_000
"""A wait always comes to sleep, because only there it looks at its deadline."""
_CACHE, _PYTHON_CACHE = 4 << 20, 32 << 20


class ShmUnavailable(CommlibError):  # noqa: N818 (a fact, not a fault)
    """These ranks cannot use shared memory, and why; raised on all ranks alike."""


@dataclass(frozen=True)
class ShmOptions:
    """What a session is made of.

    Args:
        lane_bytes: of each of the two lanes of scratch of a rank, which are taken from memory at once.
        slot_bytes, depth: of a message, and messages in flight on a connection; taken when used.
        ring_bytes: of the ring between two ranks for send and recv; taken when used.
        tile_bytes: what a step of a program with scratch or messages moves at most in a tile; 0 for no bound.
        cache_bytes: what the scratch of all ranks takes in a tile, so that what one rank writes and another reads
            stays in the caches; 0 for no bound; None: 4 MB, and 32 MB where Python runs the steps, each of which costs
            more (measured, staged allreduce, 8 ranks, 32 MB of last-level cache: 64 MB in 27 ms with 4 MB and 53 ms
            without, 1 to 8 MB alike; in Python 4 MB in 5.2 ms with 4 MB, 2.9 ms with 32 MB).
        spins, yields: how often a wait looks again at once, and after giving the core to others, before it sleeps;
            None: by the number of ranks and cores.
        slice_seconds: how long it sleeps before it looks for the reason of a delay.
        readv: whether process_vm_readv may be used.
        native: whether the native core may be used.
        records: calls that the flight record holds.

    Raises:
        SpecError: a number is out of range.
    """

    lane_bytes: int = 4 << 20
    slot_bytes: int = 256 << 10
    depth: int = 8
    ring_bytes: int = 256 << 10
    tile_bytes: int = 512 << 10
    cache_bytes: int | None = None
    spins: int | None = None
    yields: int | None = None
    slice_seconds: float = 0.02
    readv: bool = True
    native: bool = True
    records: int = 256

    def __post_init__(self) -> None:
        for name in ("lane_bytes", "slot_bytes", "depth", "ring_bytes", "records"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is at least 1, not {getattr(self, name)}")
        for name in ("spins", "yields"):
            looks = getattr(self, name)
            if looks is not None and not 0 <= looks <= _MOST_LOOKS:
                raise SpecError(f"{name} is 0 to {_MOST_LOOKS}, not {looks}")
        if not 0 < self.slice_seconds <= 1:
            raise SpecError(f"slice_seconds is above 0 and at most 1, not {self.slice_seconds}")
        for name in ("tile_bytes", "cache_bytes"):
            if (getattr(self, name) or 0) < 0:
                raise SpecError(f"{name} is 0 or more, not {getattr(self, name)}")

    @property
    def limits(self) -> TableLimits:
        """What tables must keep to."""
        cache = (_CACHE if self.native else _PYTHON_CACHE) if self.cache_bytes is None else self.cache_bytes
        return TableLimits(self.lane_bytes, self.slot_bytes, self.depth, CHANNELS, self.tile_bytes, cache)

    def layout(self, ranks: int) -> SegmentLayout:
        """The segments of a group; lanes in whole pages, slots in whole lines, rings in whole pages."""
        lane, ring = (-(-size // PAGE) * PAGE for size in (self.lane_bytes, self.ring_bytes))
        return SegmentLayout(ranks, lane, -(-self.slot_bytes // LINE) * LINE, self.depth, ring)

    def looks(self, ranks: int) -> tuple[int, int]:
        """(spins, yields): arguments, then ``COMMLIB_SPINS`` and ``COMMLIB_YIELDS``, then by cores.

        With a core for each rank a wait is short, and sleep (some 18 us) the worst; with fewer, whoever is waited
        for needs this core: it gets it by a yield (8 ranks on 2 cores, allreduce of 1 MB through torch: 0.31 ms with
        100 yields, 0.53 ms with 10; of 1 KB: 36 us and 38 us).
        """
        crowded = ranks > len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else True
        spins, yields = (20, 100) if crowded else (100, 200)
        chosen = (_number("COMMLIB_SPINS", spins), _number("COMMLIB_YIELDS", yields))
        return (
            chosen[0] if self.spins is None else self.spins,
            chosen[1] if self.yields is None else self.yields,
        )


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdigit() or int(text) > _MOST_LOOKS:
        raise SpecError(f"{name} is a number from 0 to {_MOST_LOOKS}, not {text!r}")
    return int(text)
