"""The control area of a segment: which word lies where, who writes it, and why the order of memory is right.

Each rank has one segment: control area, scratch (two lanes), FIFOs, and rings for send and recv. Everyone maps all
of them. Every word below has one writer, but for the bell and the alarm; counters grow and are never reset.

    owner writes    header, entered, done, board, where, stall, state, failure, credit[channel][receiver]
    others write    signal[channel][sender], tail[channel][sender], bell, alarm

Order. A sender writes data, then the counter with release; a receiver reads the counter with acquire, then the data.
On x86-64 both are plain moves, because loads are not reordered with loads nor stores with stores; on 64-bit Arm they
are stlr and ldar. Only sleeping needs more (see ``BELL``): "set my flag, then read your counter" against "set my
counter, then read your flag" is a store followed by a load of another address, which both machines reorder, so that
both sides have a full fence between.
"""

from __future__ import annotations

from dataclasses import dataclass

LINE = 64
"""Bytes of a cache line: words of different writers never share one."""
PAGE = 4096
MAGIC = 0x636F6D6D6C696234
VERSION = 1

CHANNELS = 32
"""Channels of signals and FIFOs that a program over shared memory may use."""
CALLS = 8
"""Board entries: a rank reads those of its call and of the two before, and no rank has begun more than two calls after
that; so an entry is not written while it is read."""

HEADER = 0
"""magic u64, version u32, rank u32, ranks u32, pid u32, start time of the process u64, whole size u64."""
READY = HEADER + 48
"""u32: 1 once the owner needs the store no more at which the ranks met."""
ENTERED = 1 * LINE
"""u64: calls that the owner has begun. Released after the board entry of the call."""
CORE = ENTERED + 16
"""u32: 1 + the core on which the owner last gave way in a wait; 0 where it says nothing. Only the native core does: for
Python's ranks it was tried, and won nothing (8 ranks on 2 cores, allreduce of 1 KB to 64 MB)."""
DONE = 2 * LINE
"""u64: epochs that the owner has finished; u32 at + 8: how many ranks sleep until this grows."""
BELL = 3 * LINE
"""u32: grows when someone rings; the futex that the owner sleeps on. u32 at + 4: 1 while the owner sleeps or is
about to. The owner sets it, fences, looks at all it waits for once more, then sleeps if the bell is as before; who
writes one of its counters fences, reads it, and if it is 1 adds to the bell and wakes."""
WHERE = 4 * LINE
"""What the owner waits for, written before it sleeps: call u64, i32 threadblock, step, peer, channel, kind (a
``WAITS`` index), tile. All 0 but call when it does not wait."""
STATE = 5 * LINE
"""u32: a ``STATES`` index."""
ALARM = STATE + 4
"""u32: 1 once any rank of the group has failed, so that the owner refuses its next call; any rank may set it."""
FAILURE = 6 * LINE
"""u32 kind (0: none), i32 root rank, u64 call, i32 noticed_by, u32 CRC-32 of all of it with the CRC as 0, then text,
UTF-8 with a zero at its end. Written before STATE becomes failed; who reads it half written sees that by the CRC."""
FAILURE_BYTES = 9 * LINE
STALL = 15 * LINE
"""u64 CLOCK_MONOTONIC in ns when the owner was last told that it makes no progress, then a bit for each peer (of the
first ``STALL_RANKS``) that any of its threadblocks waits for: WHERE has only one of them. The last bit says that it
waits outside of calls, to send or receive."""
STALL_RANKS = (LINE - 8) * 8 - 1
BOARD = 16 * LINE
BOARD_ENTRY = 3 * LINE
"""call u64, first epoch u64, fingerprint u64, input u64, output u64 (addresses or region << 48 | offset), then
``BOARD_TEXT`` bytes of text: what the owner calls, in words. Entry call % CALLS."""
BOARD_TEXT = BOARD_ENTRY - 40
AFTER_BOARD = BOARD + CALLS * BOARD_ENTRY

STATES = ("running", "failed", "closed")
WAITS = ("nothing", "signal", "message", "room", "guard", "other")
"""Kinds of waits in WHERE: for a signal, for a message, for room to send, for a rank to finish an epoch."""


@dataclass(frozen=True)
class SegmentLayout:
    """Offsets in the segment of one rank; equal on all ranks of a group.

    ``lane``: bytes of one lane of scratch; ``slot``: bytes of one FIFO slot, ``depth`` slots a connection; ``ring``:
    bytes of the ring that one peer's sends to this rank go through.
    """

    ranks: int
    lane: int
    slot: int
    depth: int
    ring: int

    def _table(self, number: int) -> int:
        return -(-AFTER_BOARD // PAGE) * PAGE + number * CHANNELS * self.ranks * LINE

    def signal(self, channel: int, sender: int) -> int:
        """The counter of signals from ``sender``."""
        return self._table(0) + (channel * self.ranks + sender) * LINE

    def tail(self, channel: int, sender: int) -> int:
        """The counter of messages that ``sender`` has put into the FIFO here."""
        return self._table(1) + (channel * self.ranks + sender) * LINE

    def credit(self, channel: int, sender: int) -> int:
        """The counter of messages from ``sender`` that the owner has taken out of the FIFO."""
        return self._table(2) + (channel * self.ranks + sender) * LINE

    def ring_words(self, sender: int) -> int:
        """The ring from ``sender``: bytes written u64; on the next line, written by the owner, bytes read u64."""
        return self._table(3) + sender * 2 * LINE

    @property
    def control_end(self) -> int:
        """The end of the control area, on a page."""
        return -(-(self._table(3) + self.ranks * 2 * LINE) // PAGE) * PAGE

    def scratch(self, lane: int) -> int:
        """Where a lane of scratch begins."""
        return self.control_end + lane * self.lane

    def fifo(self, channel: int, sender: int) -> int:
        """Where the ``depth`` slots of messages from ``sender`` begin."""
        return self.control_end + 2 * self.lane + (channel * self.ranks + sender) * self.depth * self.slot

    def ring_bytes(self, sender: int) -> int:
        """Where the bytes of the ring from ``sender`` begin."""
        return self.fifo(CHANNELS, 0) + sender * self.ring

    @property
    def size(self) -> int:
        """Bytes of a segment: address space; memory is taken only for pages that are written."""
        return self.ring_bytes(self.ranks)
