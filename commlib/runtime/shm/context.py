"""PythonContext: one rank's place in a group, which executes tables over segments; the reference of the native core.

A call writes its board entry, then runs the table once per tile (an *epoch* each). Before an epoch, a rank makes sure
that every rank has finished the epoch before the last, whose scratch lane it is about to use again; the table before
may have proved that already. It relies on x86-64's order of plain loads and stores (``control.py``).
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from commlib.errors import SpecError
from commlib.runtime.shm.control import (
    ALARM,
    BOARD,
    BOARD_ENTRY,
    BOARD_TEXT,
    CALLS,
    DONE,
    ENTERED,
    HEADER,
    WAITS,
    SegmentLayout,
)
from commlib.runtime.shm.interface import (
    DONE_WELL,
    FAILED,
    NO_REGION,
    REACH_NONE,
    REACH_READV,
    RUNNING,
    OnStall,
    RefusedError,
    Trace,
)
from commlib.runtime.shm.interface import RECORD as RECORD
from commlib.runtime.shm.links import Links
from commlib.runtime.shm.memory import bytes_at
from commlib.runtime.shm.moves import Remote
from commlib.runtime.shm.replay import Action, Plan, Replay
from commlib.runtime.shm.rings import Rings
from commlib.runtime.shm.waiting import Bells, Blocked, Waiter
from commlib.runtime.table import PEERS, RankTable

_ENTRY = struct.Struct("<QQQQQ")
_OFFSET = 48
_REPLAYS, _CALLS = 128, 50_000
"""How many replays a context keeps, and how many calls they may hold together."""
_GUARD = WAITS.index("guard")


class PythonTable(NamedTuple):
    """A table that a context has taken in."""

    number: int
    table: RankTable
    fingerprint: int
    text: bytes
    reach: int
    bytes: int
    plan: Plan


class PythonContext:
    """See the module's text. One call at a time; rings may be used by another thread meanwhile.

    Args:
        segments: the addresses of all ranks' segments as mapped here.
        spins, yields: how often a wait looks again at once, and then after yielding the core, before it sleeps.
        slice_seconds: how long it sleeps before it asks ``on_stall``.
        on_stall: called with the seconds since the rank last moved on and all that it waits for: (threadblock, step,
            kind, peer, channel), kind as index in ``WAITS``, -1 where there is none. It raises to end the call, after
            which the context is unusable, or returns to wait on.
        records: how many calls the flight ring holds.

    Attributes ``on_mismatch``: called with a peer that makes another call, raises; ``on_error``: called with the
    exception that ends a call that has begun; ``trace``: called with threadblock,
    step and tile when a step is first tried, None by default; ``timeout``: of the running call, for ``on_stall``.
    """

    def __init__(
        self,
        rank: int,
        ranks: int,
        layout: SegmentLayout,
        segments: Sequence[int],
        spins: int,
        yields: int,
        slice_seconds: float,
        on_stall: OnStall,
        records: int,
    ) -> None:
        self.rank, self.ranks, self._layout, self._segments = rank, ranks, layout, tuple(segments)
        control = [bytes_at(address, layout.control_end).data for address in segments]
        self.words = [view.cast("Q") for view in control]
        self._own = control[rank]
        self.bells = Bells(rank, layout, segments)
        self.waiter = Waiter(self.bells, spins, yields, slice_seconds, on_stall)
        self.calls = self.epochs = 0
        self.checked = [0] * ranks
        self._agreed = 0  # the last call that was the same on all ranks, because its table let none pass alone
        self.links = Links(self, layout, segments)
        self._rings = Rings(rank, layout, segments, self.bells, spins + yields, slice_seconds)
        self._on_stall = on_stall
        self.timeout = 0.0
        self.on_mismatch: Callable[[int], Any] | None = None
        self.on_error: Callable[[BaseException], Any] | None = None
        self.trace: Trace | None = None
        self._peers = [peer for peer in range(ranks) if peer != rank]
        self._regions: dict[tuple[int, int], tuple[int, int]] = {}
        self._replays: OrderedDict[tuple[int, int, int], Replay] = OrderedDict()
        self._tables, self._synchronized = 0, True
        self._busy, self._refusal = threading.Lock(), ""
        self._records, self._kept = bytearray(max(1, records) * RECORD.size), max(1, records)

    def table(self, rank_table: RankTable, fingerprint: int, text: bytes, reach: int) -> PythonTable:
        """Take in a table; ``fingerprint`` (u64) and ``text`` say what all ranks must agree on.

        Raises:
            ValueError: a table of another rank or group.
        """
        if (rank_table.rank, rank_table.ranks) != (self.rank, self.ranks):
            raise ValueError(f"a table of rank {rank_table.rank} of {rank_table.ranks} on rank {self.rank}")
        moves = rank_table.moves
        written = int(((moves["high"] - moves["destination_low"]) * moves["length"]).sum()) * rank_table.itemsize
        padded = text[: BOARD_TEXT - 1].ljust(BOARD_TEXT, b"\0")
        number, self._tables = self._tables, self._tables + 1
        return PythonTable(number, rank_table, fingerprint, padded, reach, written, Plan(rank_table))

    def run(self, table: PythonTable, input: int, output: int, timeout: float) -> None:
        """Execute a table on tensors at these addresses; every rank makes the same calls in the same order.

        Raises:
            SpecError: the table reads or writes peers' tensors, and these are not registered.
            RefusedError: the context is closed, has failed, or is in a call.
            Whatever ``on_stall``, ``on_mismatch`` and ``trace`` raise.
        """
        self.timeout = timeout
        self._call(self._replay(table, input, output))

    def planned(self, table: PythonTable, input: int, output: int, timeout: float) -> Callable[[], None]:
        """``run`` with all looked up ahead, as a function without arguments."""
        replay = self._replay(table, input, output)

        def call() -> None:
            self.timeout = timeout
            self._call(replay)

        return call

    def region(self, peer: int, number: int, address: int, size: int) -> None:
        """Registered memory ``number`` of a rank (also of this one) is mapped here at ``address``; size 0: no more."""
        self._regions.pop((peer, number), None)
        if size:
            self._regions[peer, number] = (address, size)
        self._forget(0)

    def records(self) -> bytes:
        """The last calls, oldest first, one ``RECORD`` each."""
        used = min(self.calls, self._kept) * RECORD.size
        start = self.calls % self._kept * RECORD.size if self.calls > self._kept else 0
        return bytes(self._records[start:used] + self._records[:start])

    def ring_write(self, peer: int, address: int, bytes: int) -> int:
        """Write as many of these bytes into the ring to a peer as fit now; how many."""
        return self._rings.write(peer, address, bytes)

    def ring_read(self, peer: int, address: int, bytes: int) -> int:
        """Read as many bytes from a peer's ring as are there now; how many."""
        return self._rings.read(peer, address, bytes)

    def wait_rings(self, timeout: float) -> None:
        """Sleep until a ring has changed since it was last looked at, at most ``timeout`` seconds."""
        self._rings.wait(timeout)

    def close(self, why: str = "the context is closed") -> None:
        """Refuse all later calls, with these words."""
        self._refusal = self._refusal or why
        self._forget(0)
        if self._busy.acquire(blocking=False):
            self.__dict__.pop("links", None)  # they refer to each other: memory is free without a garbage collection
            self._busy.release()

    def board_word(self, address: int, reach: int) -> int:
        """What stands in the board for a tensor of this rank.

        Newer regions come first: memory that was registered may have been given back and registered again.
        """
        if reach == REACH_READV:
            return address
        if reach == REACH_NONE:
            return 0
        for (peer, number), (start, size) in reversed(self._regions.items()):
            if peer == self.rank and start <= address < start + size:
                return number << _OFFSET | address - start
        return NO_REGION

    def peer_word(self, base: int) -> int:
        """The board's word for the tensor of a peer that a base names, in this call."""
        peer, buffer = divmod(base - PEERS, 3)
        if self.checked[peer] != self.calls:
            self.check(peer)
        return int(self.words[peer][self._entry(self.calls) // 8 + 3 + buffer])

    def reach(self, base: int, word: int, reach: int) -> int | Remote:
        """Where the tensor is that a word on a board names.

        Raises:
            SpecError: the peer's tensor is not registered.
        """
        peer = (base - PEERS) // 3
        if reach == REACH_READV:
            return Remote(int(self.words[peer][HEADER // 8 + 2] >> 32), word)
        number, offset = word >> _OFFSET, word & ((1 << _OFFSET) - 1)
        found = None if word == NO_REGION else self._regions.get((peer, number))
        if found is None or offset >= found[1]:
            raise SpecError(f"rank {peer}'s tensor is not in registered memory; register it on all ranks", rank=peer)
        return found[0] + offset

    def scratch(self, rank: int, lane: int) -> int:
        """The address of a lane of scratch."""
        return self._segments[rank] + self._layout.scratch(lane)

    def check(self, peer: int) -> None:
        """A peer whose signal or message has come must be in the same call as this rank, and have been in all before:
        signals of a call that was another one, where nobody waited for them, would be taken for those of this."""
        self._compare(peer, self.calls)

    def _compare(self, peer: int, last: int) -> None:
        """What the peer called up to call ``last``, as far as that is not known, must be what this rank called."""
        theirs, ours = self.words[peer], self.words[self.rank]
        for call in range(max(self.checked[peer], self._agreed) + 1, last + 1):
            entry = self._entry(call) // 8
            if theirs[entry] != call or theirs[entry + 2] != ours[entry + 2]:
                if self.on_mismatch is not None:
                    self.on_mismatch(peer)
                raise RuntimeError(f"rank {peer}'s call {call} is not the same as that of rank {self.rank}")
            self.checked[peer] = call

    def tracer(self, threadblock: int, step: int) -> Callable[[], None]:
        """Calls the trace hook for a step."""

        def tell() -> None:
            if self.trace is not None:
                self.trace(threadblock, step, self.waiter.tile)

        return tell

    @staticmethod
    def _entry(call: int) -> int:
        return BOARD + call % CALLS * BOARD_ENTRY

    def _replay(self, table: PythonTable, input: int, output: int) -> Replay:
        if self.trace is not None:
            return Replay(self, table, Plan(table.table, traced=True), (input, output))
        key = (table.number, input, output)
        found = self._replays.get(key)
        if found is None:
            found = self._replays[key] = Replay(self, table, table.plan, (input, output))
            self._forget(_REPLAYS)
            while len(self._replays) > 1 and sum(replay.count for replay in self._replays.values()) > _CALLS:
                self._forget(len(self._replays) - 1)
        else:
            self._replays.move_to_end(key)
        return found

    def _forget(self, kept: int) -> None:
        """Drop all replays but those used last."""
        while len(self._replays) > kept:
            self._replays.popitem(last=False)[1].forget()

    def _call(self, replay: Replay) -> None:
        if not self._busy.acquire(blocking=False):
            raise RefusedError("a call of this or another thread is running on this context")
        try:
            if self._refusal:
                raise RefusedError(self._refusal)
            if self.bells.halves[self.rank][ALARM // 4]:
                self._on_stall(0.0, ())
            self._record(replay)
        finally:
            self._busy.release()

    def _record(self, replay: Replay) -> None:
        """The call, with its flight record; after an error the context is unusable."""
        table = replay.table
        self.calls += 1
        at = (self.calls - 1) % self._kept * RECORD.size
        began = time.monotonic_ns()
        RECORD.pack_into(self._records, at, self.calls, table.number, RUNNING, table.bytes, began, 0)
        state = FAILED
        try:
            self._enter(replay)
            self._run(replay)
            state = DONE_WELL
        except BaseException as error:  # whatever it is, also an interrupt, others may wait for this rank
            self._refusal = f"a call failed on this context, number {self.calls}"
            if self.on_error is not None:
                self.on_error(error)
            raise
        finally:
            ended = time.monotonic_ns()
            RECORD.pack_into(self._records, at, self.calls, table.number, state, table.bytes, began, ended)

    def _enter(self, replay: Replay) -> None:
        """Write the board entry, then say that the call has begun."""
        call, at = self.calls, self._entry(self.calls)
        _ENTRY.pack_into(self._own, at, call, self.epochs + 1, replay.table.fingerprint, *replay.words)
        self._own[at + 40 : at + BOARD_ENTRY] = replay.table.text
        self.words[self.rank][ENTERED // 8] = call
        self.waiter.call = call

    def _run(self, replay: Replay) -> None:
        table = replay.table.table
        calm = np.errstate(all="ignore") if replay.plan.movers.floats else contextlib.nullcontext()
        with calm:  # overflow to infinity is the sum's right result, no news
            for tile in range(max(1, table.tiles)):  # one without data, too, or it could be many calls ahead of others
                epoch = self.epochs + 1
                if not self._synchronized:
                    self._guard(epoch)
                self.epochs, self.waiter.tile = epoch, tile
                if table.tiles:
                    self._epoch(replay, replay.actions(epoch % 2, tile))
                self.words[self.rank][DONE // 8] = epoch
                self.waiter.fence()
                self.bells.finished()
                self._synchronized = table.synchronizing and table.tiles > 0
                if self._synchronized:
                    self._agreed = self.calls

    def _guard(self, epoch: int) -> None:
        """Wait until every other rank has finished the epoch before the last."""
        words, peers, at = self.words, self._peers, DONE // 8

        def attempt() -> tuple[Blocked, ...] | None:
            late = [peer for peer in peers if words[peer][at] < epoch - 2]
            return tuple((-1, -1, _GUARD, peer, -1) for peer in late) or None

        def prepare() -> None:
            for peer in peers:
                self.bells.halves[peer][DONE // 4 + 2] = 1

        if epoch > 2:
            if attempt() is not None:
                self.waiter.until(attempt, prepare)
            self._check_guarded(epoch - 2)

    def _check_guarded(self, epoch: int) -> None:
        """All ranks have finished this epoch: compare what no wait has, while the entries stand on the boards."""
        own, last = self.words[self.rank], self.calls
        while last > self._agreed and own[self._entry(last) // 8 + 1] > epoch:
            last -= 1
        for peer in self._peers:
            self._compare(peer, last)

    def _epoch(self, replay: Replay, blocks: list[list[Action]]) -> None:
        if len(blocks) == 1:
            for action in blocks[0]:
                if action() is not None:
                    self.waiter.until(action)
            return
        finished = replay.finished
        finished[:] = [0] * len(blocks)
        pending = [number for number, actions in enumerate(blocks) if actions]

        def attempt() -> list[Blocked] | None:
            return _advance(blocks, finished, pending)

        while pending:
            if attempt() is not None:
                self.waiter.until(attempt)


def _advance(blocks: list[list[Action]], finished: list[int], pending: list[int]) -> list[Blocked] | None:
    """Let each threadblock go as far as it can; None if any moved, else what they wait for."""
    waits: list[Blocked] = []
    moved = False
    for block in tuple(pending):
        actions, at = blocks[block], finished[block]
        blocked = None
        while at < len(actions):
            blocked = actions[at]()
            if blocked is not None:
                break
            at += 1
            finished[block], moved = at, True
        if blocked is None:
            pending.remove(block)
        else:
            waits.extend(blocked)
    return None if moved else waits
