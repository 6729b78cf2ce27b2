"""Fusion: a receive whose content is sent on becomes one instruction, where that is provably the same.

    r + s    -> rcs     rrc + s -> rrcs     and rrs where nobody else ever reads what rrcs would keep
    r + re   -> rrc     where the received chunks die in the reduce (done on the trace, before lowering)

A send may join the receive that wrote exactly the span it sends: nothing else precedes it, so doing it at once
changes nothing that it reads. It must be of the same lane with the same channel hint, because a threadblock has one
channel. One send per receive; further ones read the slot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from commlib.compiler.accesses import Accesses, Mask, accesses, start_slots
from commlib.compiler.lower import Lower
from commlib.ir.algorithm import NOTHING, Ints, Op
from commlib.ir.graph import InstructionGraph
from commlib.ir.trace import COLUMNS, Action, Trace


@dataclass(frozen=True)
class ReceiveReduce:
    """Trace in, Trace out: a receive into slots that only one local reduce reads becomes a receiving reduce.

    The reduce then happens when the message arrives, which is the same if nothing touched its destination between.
    Linearithmic in the operations.
    """

    def __call__(self, trace: Trace) -> Trace:
        """Apply the pass."""
        if not np.any(
            (trace.column("action") == Action.REDUCE) & (trace.column("src_rank") == trace.column("dst_rank"))
        ):
            return trace
        graph = Lower()(trace)
        found = accesses(graph)
        writer, reader = _sole_sources(graph, found, Op.REDUCE)
        keep = (graph.op[writer] == Op.RECV) & _same_hints(graph, writer, reader, "recv_tb")
        keep &= _content_dies(found, len(graph))[writer] & _untouched_between(graph, found, writer, reader)
        return _join(trace, graph.operation[writer[keep]], graph.operation[reader[keep]])


def _join(trace: Trace, receives: Ints, reduces: Ints) -> Trace:
    if not len(receives):
        return trace
    rows = trace.rows.copy()
    at = {name: position for position, name in enumerate(COLUMNS)}
    rows[receives, at["action"]] = Action.REDUCE
    for part in ("buffer", "index"):
        target = rows[reduces, at[f"dst_{part}"]]
        rows[receives, at[f"dst_{part}"]] = target
        rows[receives, at[f"operand_{part}"]] = target
    return replace(trace, rows=np.delete(rows, reduces, axis=0))


def _untouched_between(graph: InstructionGraph, found: Accesses, writer: Ints, reader: Ints) -> Mask:
    """Whether no instruction after ``writer`` and before ``reader`` touches the reader's destination."""
    latest = np.full(len(graph), NOTHING, dtype=np.int64)
    own_read = (graph.op[found.node] == Op.REDUCE) & ~found.write
    before = np.flatnonzero(own_read) - 1
    rows = before + 1
    valid = (before >= 0) & (found.slot[np.maximum(before, 0)] == found.slot[rows])
    # Every access of a reduce is looked at; those to its source were judged by _content_dies, so only others count.
    of_source = found.last_write[rows] != NOTHING
    pair = np.full(len(graph), NOTHING, dtype=np.int64)
    pair[reader] = writer
    is_source = of_source & (found.node[found.last_write[rows]] == pair[found.node[rows]])
    use = valid & ~is_source
    np.maximum.at(latest, found.node[rows[use]], found.node[before[use]])
    return latest[reader] < writer


@dataclass(frozen=True)
class Fuse:
    """Graph in, graph out, with sends joined to receives; ``forbidden`` receives (by time) stay as they are.

    Linearithmic in the instructions.
    """

    forbidden: frozenset[int] = frozenset()

    def without(self, graph: InstructionGraph, rows: Ints) -> Fuse:
        """The pass that also leaves apart these fused rows of a graph that it made."""
        return Fuse(self.forbidden | frozenset(graph.time[rows].tolist()))

    def __call__(self, graph: InstructionGraph) -> InstructionGraph:
        """Apply the pass."""
        found = accesses(graph)
        receive, send = _sole_sources(graph, found, Op.SEND)
        keep = np.isin(graph.op[receive], (Op.RECV, Op.RECV_REDUCE_COPY)) & _same_hints(graph, receive, send, "send_tb")
        if self.forbidden:
            keep &= ~np.isin(graph.time[receive], list(self.forbidden))
        receive, send = receive[keep], send[keep]
        receive, first = np.unique(receive, return_index=True)
        return _fuse(graph, found, receive, send[first])


def _fuse(graph: InstructionGraph, found: Accesses, receive: Ints, send: Ints) -> InstructionGraph:
    op, sends = graph.op.copy(), graph.send.copy()
    buffer, index = graph.destination_buffer.copy(), graph.destination_index.copy()
    reduces = op[receive] == Op.RECV_REDUCE_COPY
    op[receive] = np.where(reduces, Op.RECV_REDUCE_COPY_SEND, Op.RECV_COPY_SEND)
    sends[receive] = graph.send[send]
    unread = receive[reduces & _content_dies(found, len(graph))[receive]]
    op[unread] = Op.RECV_REDUCE_SEND
    buffer[unread] = index[unread] = NOTHING
    rest = np.ones(len(graph), dtype=bool)
    rest[send] = False
    fused = graph.with_columns(op=op, send=sends, destination_buffer=buffer, destination_index=index)
    return fused.keep(np.flatnonzero(rest))


def _sole_sources(graph: InstructionGraph, found: Accesses, op: Op) -> tuple[Ints, Ints]:
    """Pairs (writer, reader): reader has this ``op`` and its source is exactly what writer wrote, unchanged."""
    source, destination = start_slots(graph, found.slots)
    reads = ~found.write & (graph.op[found.node] == op)
    offset = found.slot - source[found.node]
    reads &= (offset >= 0) & (offset < graph.count[found.node])
    rows = np.flatnonzero(reads)
    node = found.node[rows]
    last = found.last_write[rows]
    writer = np.where(last == NOTHING, NOTHING, found.node[last])
    low = np.full(len(graph), len(graph), dtype=np.int64)
    high = np.full(len(graph), NOTHING, dtype=np.int64)
    np.minimum.at(low, node, writer)
    np.maximum.at(high, node, writer)
    reader = np.flatnonzero((graph.op == op) & (low == high) & (high != NOTHING))
    one = high[reader]
    exact = (destination[one] == source[reader]) & (graph.count[one] == graph.count[reader])
    return one[exact], reader[exact]


def _same_hints(graph: InstructionGraph, receive: Ints, other: Ints, tb: str) -> Mask:
    """Whether two instructions may be one: same lane, same channel hint, threadblock hints that agree."""
    trace, r, o = graph.trace, graph.operation[receive], graph.operation[other]
    lane, channel = trace.column("lane"), trace.column("channel")
    mine, theirs = trace.column("recv_tb")[r], trace.column(tb)[o]
    tb_agree = (mine == theirs) | (mine == NOTHING) | (theirs == NOTHING)
    same_channel = (channel[r] == channel[o]) if tb == "send_tb" else np.ones(len(r), dtype=bool)
    return np.asarray((lane[r] == lane[o]) & same_channel & tb_agree)


def _content_dies(found: Accesses, size: int) -> Mask:
    """Per instruction, whether each slot it writes is read exactly once and then dies."""
    rows = np.flatnonzero(found.write)
    alive = (found.readers_after()[rows] != 1) | ~found.dies()[rows]
    result = np.ones(size, dtype=bool)
    result[found.node[rows[alive]]] = False
    return result
