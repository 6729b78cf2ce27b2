"""Operations: what a step can do, as an enum, and as masks over it for columns.

The two-sided operations (``src`` is local, the *message* is what arrives on the receive connection):

    op     reads        writes   sends            meaning
    s      src          -        src              send
    r      message      dst      -                receive
    rcs    message      dst      message          receive, copy, send
    rrc    message,src  dst      -                dst = src + message
    rrs    message,src  -        src + message    as rrc, but passed on and not kept
    rrcs   message,src  dst      src + message    as rrc, and passed on
    cpy    src          dst      -                dst = src
    re     src,dst      dst      -                dst = dst + src
    nop    -            -        -                waits for its dependences only

The one-sided operations, with the meaning that MSCCL++ gives them. They name slots of other ranks themselves, and so
need no connection; their channel is that of their threadblock:

    op     operands                   meaning
    put    local -> one of a peer     write; asynchronous, so its return promises nothing
    get    one of a peer -> local     read; done when the step is done
    signal peer                       add one to the counter (me -> peer, channel), releasing all that was done before
    wait   peer                       the k-th wait on (peer -> me, channel) ends when peer has signalled k times
    flush  peer                       ends when all that the threadblock put or stored at the peer before has arrived
                                      there, so that the sources may be reused
    rr     several -> one local       combine the sources from left to right; done when the step is done
    st     local -> several           write everywhere; the source is read when the step is done, writes to other
                                      ranks are asynchronous
    rrst   several -> several         rr and st in one: sources are read when it is done, writes as in st

What a put or st wrote is there for a peer that has seen (waited for) a later signal to it from the same threadblock
and channel. A signal releases not only the writes of its threadblock, but also what that has waited for itself.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
NOTHING = -1
"""In a column: no peer, no slot. The record views say None."""


class Op(IntEnum):
    """The operation of a step; the module's text has their meaning."""

    SEND = 0
    RECV = 1
    RECV_COPY_SEND = 2
    RECV_REDUCE_COPY = 3
    RECV_REDUCE_SEND = 4
    RECV_REDUCE_COPY_SEND = 5
    COPY = 6
    REDUCE = 7
    NOP = 8
    PUT = 9
    GET = 10
    SIGNAL = 11
    WAIT = 12
    FLUSH = 13
    READ_REDUCE = 14
    STORE = 15
    READ_REDUCE_STORE = 16

    @property
    def short(self) -> str:
        """The operation's name: in MSCCL XML for a two-sided one, in our own forms for all."""
        return _SHORT[self]

    @property
    def receives(self) -> bool:
        """Whether the step takes a message from its receive connection."""
        return bool(RECEIVES[self])

    @property
    def sends(self) -> bool:
        """Whether the step puts a message on its send connection."""
        return bool(SENDS[self])

    @property
    def has_source(self) -> bool:
        """Whether the step reads the local slots of its source columns."""
        return bool(HAS_SOURCE[self])

    @property
    def has_destination(self) -> bool:
        """Whether the step writes the slots of its destination columns."""
        return bool(HAS_DESTINATION[self])

    @property
    def reduces(self) -> bool:
        """Whether the step combines operands."""
        return bool(REDUCES[self])

    @property
    def one_sided(self) -> bool:
        """Whether the step has rows of operands instead of source and destination columns."""
        return bool(ONE_SIDED[self])

    @property
    def synchronizes(self) -> bool:
        """Whether the step names a peer and no slots: signal, wait, flush."""
        return bool(SYNCHRONIZES[self])


_SHORT = (
    *("s", "r", "rcs", "rrc", "rrs", "rrcs", "cpy", "re", "nop"),
    *("put", "get", "signal", "wait", "flush", "rr", "st", "rrst"),
)
OP_OF_SHORT: dict[str, Op] = {short: Op(code) for code, short in enumerate(_SHORT)}
TWO_SIDED: dict[str, Op] = {short: op for short, op in OP_OF_SHORT.items() if op <= Op.NOP}
"""The operations that MSCCL XML has, by name."""

#                            s  r rcs rrc rrs rrcs cpy re nop put get sig wt fl rr st rrst
RECEIVES = np.array([0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], dtype=bool)
SENDS = np.array([1, 0, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], dtype=bool)
HAS_SOURCE = np.array([1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], dtype=bool)
HAS_DESTINATION = np.array([0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], dtype=bool)
REDUCES = np.array([0, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1], dtype=bool)
ONE_SIDED = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1], dtype=bool)
SYNCHRONIZES = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0], dtype=bool)
"""Masks by operation, for columns: ``SENDS[algorithm.op]``."""
