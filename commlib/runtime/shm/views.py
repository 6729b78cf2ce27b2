"""What ranks say of themselves in their control areas: words in, values out, and the few words that a failure writes.

Nothing here waits, sleeps or asks the system: a ``bytearray`` is as good a control area as shared memory.
"""

from __future__ import annotations

import ctypes
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from commlib.runtime.cause import Cause, CauseKind
from commlib.runtime.shm.control import (
    AFTER_BOARD,
    ALARM,
    BOARD,
    BOARD_ENTRY,
    BOARD_TEXT,
    CALLS,
    DONE,
    ENTERED,
    FAILURE,
    FAILURE_BYTES,
    HEADER,
    STALL,
    STALL_RANKS,
    STATE,
    STATES,
    WHERE,
)

KINDS: tuple[CauseKind | None, ...] = (None, "gone", "stopped", "absent", "failed", "mismatch", "deadline")
"""Kinds of causes by the number that stands in FAILURE."""

_HEADER = struct.Struct("<QIIIIQQ")
_WHERE = struct.Struct("<Qiiiiii")
_ENTRY = struct.Struct("<QQQQQ")
_FAILURE = struct.Struct("<IiQiI")
_WORD = struct.Struct("<Q")
_HALF = struct.Struct("<I")
_TEXT = FAILURE_BYTES - _FAILURE.size - 1
_BITS = (STALL_RANKS + 1) // 8


@dataclass(frozen=True)
class Said:
    """A board entry: a call's number, its fingerprint, and in words what is called."""

    call: int
    fingerprint: int
    text: str


@dataclass(frozen=True)
class Where:
    """What a rank waits for; ``kind`` 0: for nothing."""

    call: int = 0
    threadblock: int = 0
    step: int = 0
    peer: int = 0
    channel: int = 0
    kind: int = 0
    tile: int = 0


@dataclass(frozen=True)
class Failure:
    """A cause that a rank has published, and the call that it was in."""

    cause: Cause
    call: int


@dataclass(frozen=True)
class View:
    """A rank's control area at one moment.

    ``failure`` in another state than ``failed``: what has failed in another group of the rank's process.
    ``entered``: calls begun; ``done``: epochs finished; ``stalled_at``: CLOCK_MONOTONIC in ns when it last found that
    it makes no progress, and ``stalled_on`` the peers that it then waited for, if ``outside`` not in a call.
    """

    pid: int = 0
    start: int = 0
    entered: int = 0
    done: int = 0
    state: str = STATES[0]
    alarm: bool = False
    where: Where = Where()
    failure: Failure | None = None
    stalled_at: int = 0
    stalled_on: tuple[int, ...] = ()
    outside: bool = False
    board: tuple[Said, ...] = ()

    def said(self, call: int) -> Said | None:
        """The board entry of a call, if it is (still) there."""
        return next((entry for entry in self.board if entry.call == call and 0 < call <= self.entered), None)

    def waits_for(self, recent: int, outside: bool) -> tuple[int, ...]:
        """The ranks that this one waits for: all of them if it said so after ``recent`` ns, else the one in WHERE.

        ``outside``: also what it waits for outside of calls, of which it does not say when it has come.
        """
        fresh = self.stalled_at >= recent
        if not self.where.kind:
            return self.stalled_on if fresh and self.outside and outside else ()
        return self.stalled_on if fresh and self.where.peer in self.stalled_on else (self.where.peer,)


def control_at(address: int) -> memoryview:
    """The control area up to the end of the board, of a segment that is mapped at ``address`` and stays mapped."""
    return memoryview((ctypes.c_ubyte * AFTER_BOARD).from_address(address)).cast("B")


def read_view(control: memoryview) -> View:
    """What stands in a control area. Reads 2 KB."""
    words = bytes(control[:AFTER_BOARD])
    peers = _peers(words)
    _, _, _, _, pid, start, _ = _HEADER.unpack_from(words, HEADER)
    state = _HALF.unpack_from(words, STATE)[0]
    return View(
        pid=pid,
        start=start,
        entered=_WORD.unpack_from(words, ENTERED)[0],
        done=_WORD.unpack_from(words, DONE)[0],
        state=STATES[state] if state < len(STATES) else STATES[0],
        alarm=alarmed(control),
        where=Where(*_WHERE.unpack_from(words, WHERE)),
        failure=_failure(words),
        stalled_at=_WORD.unpack_from(words, STALL)[0],
        stalled_on=tuple(peer for peer in peers if peer < STALL_RANKS),
        outside=STALL_RANKS in peers,
        board=tuple(_entry(words, BOARD + number * BOARD_ENTRY) for number in range(CALLS)),
    )


def _entry(words: bytes, at: int) -> Said:
    call, _, fingerprint, _, _ = _ENTRY.unpack_from(words, at)
    return Said(call, fingerprint, _text(words[at + _ENTRY.size : at + _ENTRY.size + BOARD_TEXT]))


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace")


def _peers(words: bytes) -> tuple[int, ...]:
    bits = int.from_bytes(words[STALL + 8 : STALL + 8 + _BITS], "little")
    return tuple(rank for rank in range(bits.bit_length()) if bits >> rank & 1)


def _failure(words: bytes) -> Failure | None:
    kind, root, call, noticed_by, crc = _FAILURE.unpack_from(words, FAILURE)
    if not 0 < kind < len(KINDS):
        return None
    text = words[FAILURE + _FAILURE.size : FAILURE + FAILURE_BYTES].split(b"\0", 1)[0]
    if crc != _crc(kind, root, call, noticed_by, text):
        return None
    name = KINDS[kind]
    return None if name is None else Failure(Cause(name, root, text.decode(errors="replace"), noticed_by), call)


def _crc(kind: int, root: int, call: int, noticed_by: int, text: bytes) -> int:
    return zlib.crc32(_FAILURE.pack(kind, root, call, noticed_by, 0) + text)


def write_failure(control: memoryview, cause: Cause, call: int) -> None:
    """Publish a cause in the own control area, and then the state ``failed``; a long text is cut."""
    write_trouble(control, cause, call)
    write_state(control, "failed")


def write_trouble(control: memoryview, cause: Cause, call: int) -> None:
    """Leave word in the own control area of what has failed elsewhere; this rank goes on."""
    text = cause.text.encode()[:_TEXT]
    kind = KINDS.index(cause.kind)
    crc = _crc(kind, cause.rank, call, cause.noticed_by, text)
    record = _FAILURE.pack(kind, cause.rank, call, cause.noticed_by, crc) + text + b"\0"
    control[FAILURE : FAILURE + len(record)] = record


def write_state(control: memoryview, state: str) -> None:
    """Set the own STATE."""
    _HALF.pack_into(control, STATE, STATES.index(state))


def write_stall(control: memoryview, now: int, peers: Iterable[int], outside: bool = False) -> None:
    """Say in the own control area that nothing moves, at ``now`` ns, and which peers are waited for."""
    bits = outside << STALL_RANKS
    for peer in peers:
        bits |= 1 << peer if 0 <= peer < STALL_RANKS else 0
    control[STALL + 8 : STALL + 8 + _BITS] = bits.to_bytes(_BITS, "little")
    _WORD.pack_into(control, STALL, now)


def alarmed(control: memoryview) -> bool:
    """Whether some rank of the group has failed."""
    return bool(_HALF.unpack_from(control, ALARM)[0])


def raise_alarm(control: memoryview) -> None:
    """Let the owner of a control area refuse its next call."""
    _HALF.pack_into(control, ALARM, 1)
