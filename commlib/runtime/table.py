"""RankTable: all that one rank does in a launch, as flat tables with every offset resolved; made once, replayed often.

An Algorithm says *which chunk*; a table says *which bytes*. It is what the native core and its reference in Python
execute over shared memory. Rows are numpy records whose C layout the native core reads as they stand.

A launch runs the whole table once per tile: in tile t a move of ``length`` elements moves
``clamp(length - t * width, 0, width)`` of them, and an operand lies at ``offset + t * stride`` bytes from its base.
Operands in scratch and in messages have stride 0: each tile uses the same room again.

Bases: an operand's memory is its base's address, which each call (and, for scratch, each epoch) sets anew:

    0 own input    1 own output    2 own scratch    3 the message that came    4 the message to send
    8 + 3 p + b    buffer b (0 input, 1 output, 2 scratch) of rank p

An *epoch* is one run of the table for one tile, counted over all calls of a group. Scratch has two lanes: epoch e
works in lane e % 2, so that a rank may start e + 1 while others still read what it left in e.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.void]

OWN_INPUT, OWN_OUTPUT, OWN_SCRATCH, MESSAGE_IN, MESSAGE_OUT, PEERS = 0, 1, 2, 3, 4, 8

MOVE, SIGNAL, WAIT, NOP = 0, 1, 2, 3
"""Kinds of steps. MOVE: destinations = combine(sources), element by element, sources from left to right."""

NONE = -1

STEP = np.dtype(
    [
        ("kind", "<i4"),
        ("index", "<i4"),  # the step's number in its threadblock, in the Algorithm: for messages
        ("receive", "<i4"),  # the link that a message is taken from first, or NONE
        ("send", "<i4"),  # the link that a message is sent on at the end, or NONE
        ("peer", "<i4"),  # of SIGNAL and WAIT
        ("channel", "<i4"),  # of SIGNAL and WAIT
        ("move_low", "<i4"),
        ("move_high", "<i4"),
        ("depend_low", "<i4"),
        ("depend_high", "<i4"),
        ("message", "<i8"),  # bytes of the slot that a message of this step takes
    ]
)
MOVES = np.dtype(
    [
        ("source_low", "<i4"),  # sources are operands[source_low : destination_low]
        ("destination_low", "<i4"),  # destinations are operands[destination_low : high]
        ("high", "<i4"),
        ("zero", "<i4"),  # always 0
        ("length", "<i8"),  # elements over all tiles
    ]
)
OPERAND = np.dtype([("base", "<i4"), ("zero", "<i4"), ("offset", "<i8"), ("stride", "<i8")])
DEPEND = np.dtype([("block", "<i4"), ("steps", "<i4")])
"""The step begins when ``block`` has finished its first ``steps`` steps (rows) of this tile."""
BLOCK = np.dtype([("low", "<i4"), ("high", "<i4")])
"""The rows of a threadblock in the steps."""
LINK = np.dtype([("peer", "<i4"), ("channel", "<i4")])


@dataclass(frozen=True, eq=False)
class RankTable:
    """One rank's launch. Arrays are of the record types above.

    ``width``: elements of a chunk in a full tile; in a launch of one tile, of the longest move. ``dtype`` and
    ``combine`` are names (``DTYPES`` of ``tensors``, ``Combine``); a table that combines nothing has ``combine``
    None. ``reads_peers`` and ``writes_peers``: some rank reads or writes the input or output of another, not only
    scratch: those tensors must be reachable (equal on all ranks).
    ``synchronizing``: no rank ends before every rank has begun (proved by the verifier), so that the next epoch
    needs no further care for scratch. ``threadblocks[i]`` is the threadblock of block row i, for messages.
    """

    rank: int
    ranks: int
    steps: Rows
    moves: Rows
    operands: Rows
    depends: Rows
    blocks: Rows
    sends: Rows
    receives: Rows
    width: int
    tiles: int
    itemsize: int
    dtype: str
    combine: str | None
    reads_peers: bool
    writes_peers: bool
    synchronizing: bool
    threadblocks: tuple[int, ...]
