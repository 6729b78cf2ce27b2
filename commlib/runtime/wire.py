"""The header before each message between processes: it lets a rank find out that a peer does something else."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from commlib.runtime.cause import differing
from commlib.runtime.transport import Bytes

HEADER_BYTES = 128
_MAGIC = b"clb1"
_FORM = struct.Struct("<4sBxxxIQQQ8s84s")


class Kind(IntEnum):
    """What a frame carries: a message, room for more messages, the news that its sender has failed, or nothing."""

    DATA = 0
    CREDIT = 1
    ABORT = 2
    HELLO = 3


@dataclass(frozen=True)
class Call:
    """One launch: its number on this communicator, a fingerprint of all that ranks must agree on, and that as text."""

    number: int
    fingerprint: bytes
    text: str


@dataclass(frozen=True)
class Header:
    """The header of a received frame; ``size`` is the payload in bytes, ``message`` counts on the channel from 0."""

    kind: Kind
    channel: int
    message: int
    size: int
    call: Call


def write_header(memory: Bytes, call: Call, kind: Kind, channel: int, message: int, size: int) -> None:
    """Write a header to the first ``HEADER_BYTES`` of a frame."""
    text = call.text.encode()[:84]
    _FORM.pack_into(memory.data, 0, _MAGIC, kind, channel, message, size, call.number, call.fingerprint, text)


def read_header(memory: Bytes) -> Header | None:
    """The header of a frame; None if it is not one of ours."""
    magic, kind, channel, message, size, number, fingerprint, text = _FORM.unpack_from(memory.data, 0)
    if magic != _MAGIC or kind >= len(Kind):
        return None
    called = Call(number, fingerprint, text.rstrip(b"\0").decode(errors="replace"))
    return Header(Kind(kind), channel, message, size, called)


def other_call(peer: int, header: Header | None, rank: int, call: Call) -> str:
    """That a peer has sent a frame of another call than this rank is in."""
    if header is None:
        return f"rank {peer} sent what is no frame of commlib"
    theirs, ours = header.call, call
    return differing((peer, theirs.number, theirs.text), (rank, ours.number, ours.text))
