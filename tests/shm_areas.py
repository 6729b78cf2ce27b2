"""Control areas in plain memory: what ranks would have written, for tests without processes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from commlib.runtime.liveness import Condition
from commlib.runtime.shm.control import (
    AFTER_BOARD,
    BOARD,
    BOARD_ENTRY,
    CALLS,
    DONE,
    ENTERED,
    HEADER,
    MAGIC,
    VERSION,
    WAITS,
    WHERE,
)
from commlib.runtime.shm.views import write_stall
from commlib.runtime.shm.watch import Watch

SIGNAL = WAITS.index("signal")


@dataclass
class Areas:
    """The control areas of ``ranks`` ranks whose process ids are 100 + rank, a clock, and what was rung."""

    ranks: int
    now: float = 1000.0
    conditions: dict[int, Condition] = field(default_factory=dict)
    rung: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.controls = [memoryview(bytearray(AFTER_BOARD)) for _ in range(self.ranks)]
        for rank, control in enumerate(self.controls):
            header = (MAGIC, VERSION, rank, self.ranks, 100 + rank, 7000 + rank, 1 << 20)
            struct.pack_into("<QIIIIQQ", control, HEADER, *header)

    def enter(self, rank: int, call: int, text: str = "allreduce ring", fingerprint: int = 11) -> None:
        """A rank begins a call."""
        at = BOARD + call % CALLS * BOARD_ENTRY
        struct.pack_into("<QQQQQ", self.controls[rank], at, call, call, fingerprint, 0, 0)
        data = text.encode() + b"\0"
        self.controls[rank][at + 40 : at + 40 + len(data)] = data
        struct.pack_into("<Q", self.controls[rank], ENTERED, call)
        self.wait(rank, call, None)

    def leave(self, rank: int, epoch: int) -> None:
        """A rank finishes an epoch."""
        struct.pack_into("<Q", self.controls[rank], DONE, epoch)

    def wait(self, rank: int, call: int, peer: int | None, kind: int = SIGNAL) -> None:
        """A rank waits for ``peer``, or for nobody."""
        words = (call, 0, 0, 0, 0, 0, 0) if peer is None else (call, 0, 3, peer, 1, kind, 0)
        struct.pack_into("<Qiiiiii", self.controls[rank], WHERE, *words)

    def still_waits(self, rank: int, peer: int) -> None:
        """A rank has looked again, and still waits for ``peer``."""
        write_stall(self.controls[rank], int(self.now * 1e9), (peer,))

    def condition(self, pid: int, start: int) -> Condition:
        """What has become of the process of rank ``pid`` - 100."""
        assert start == pid + 6900
        return self.conditions.get(pid - 100, "lives")

    def watch(self, rank: int, timeout: float = 10.0) -> Watch:
        """The watch of a rank."""
        return Watch(rank, self.controls, self.rung.append, timeout, lambda: self.now, self.condition)


def entered(ranks: int, call: int = 5) -> Areas:
    """Areas of ranks that are all in one call."""
    areas = Areas(ranks)
    for rank in range(ranks):
        areas.enter(rank, call)
    return areas


def stall(
    areas: Areas, watch: Watch, peers: Sequence[int], seconds: float, each: Callable[[float], None] = lambda _: None
) -> None:
    """Nothing moves for ``seconds``: every 50 ms ``each`` does what others do, then the watch is told."""
    waits = [(block, 4, SIGNAL, peer, 2) for block, peer in enumerate(peers)]
    begun = areas.now
    while areas.now < begun + seconds - 1e-9:
        areas.now += 0.05
        each(areas.now - begun)
        watch.on_stall(areas.now - begun, waits)
