"""Threadblocks: every instruction gets one, each with at most one receive and one send connection.

An instruction goes to the threadblock that owns its connection. Connections that nothing ties together have
threadblocks of their own, so that sending never waits for receiving. A local instruction goes where the content that
it reads was received or made, unless that threadblock passes messages on; then to its rank's local threadblock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from commlib.compiler.accesses import Accesses
from commlib.compiler.channels import FUSED_KEY, MAX_CHANNELS, Connections, hinted_threadblock
from commlib.ir.algorithm import NOTHING, Ints, Op
from commlib.ir.graph import InstructionGraph

_RECV, _SEND, _OWNED, _HINTED, _LOCAL = range(5)


@dataclass(frozen=True)
class Threadblocks:
    """Graph with channels in, graph out with ``block`` filled: numbers are global and dense, in no special order.

    Linearithmic in the instructions.
    """

    def __call__(self, graph: InstructionGraph, owners: Connections, found: Accesses) -> InstructionGraph:
        """Apply the pass."""
        kind, detail = _remote_blocks(graph, owners)
        hinted = hinted_threadblock(graph)
        has_hint = hinted != NOTHING
        kind = np.where(has_hint, _HINTED, kind)
        detail = np.where(has_hint, hinted, detail)
        local = (kind == _LOCAL) & ~has_hint
        channel = np.where((kind == _HINTED) | (kind == _LOCAL), 0, graph.channel)
        detail = np.where(local, graph.trace.column("lane")[graph.operation], detail)
        blocks = _numbered(graph.rank, kind, channel, detail)
        _place_locals(graph, found, blocks, np.flatnonzero(local))
        _, dense = np.unique(blocks, return_inverse=True)
        return graph.with_columns(block=np.asarray(dense, dtype=np.int64))


def _numbered(*columns: Ints) -> Ints:
    """The number of each row among the distinct rows in lexicographic order: one column after the other, as sorting
    whole rows is slow."""
    number = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        distinct, place = np.unique(column, return_inverse=True)
        _, number = np.unique(number * max(len(distinct), 1) + place, return_inverse=True)
    return np.asarray(number, dtype=np.int64)


def _remote_blocks(graph: InstructionGraph, owners: Connections) -> tuple[Ints, Ints]:
    """(kind, detail) of the threadblock that each instruction's connections belong to."""
    kind = np.full(len(graph), _LOCAL, dtype=np.int64)
    detail = np.zeros(len(graph), dtype=np.int64)
    ends = ((_SEND, graph.send, graph.send_peer, owners.send), (_RECV, graph.recv, graph.recv_peer, owners.recv))
    for which, message, peer, owned in ends:
        rows = np.flatnonzero(message != NOTHING)
        code = (graph.rank[rows] * MAX_CHANNELS + graph.channel[rows]) * graph.trace.collective.ranks + peer[rows]
        distinct, inverse = np.unique(code, return_inverse=True)
        keys = np.array([owned.get(c, NOTHING) for c in distinct.tolist()], dtype=np.int64)[inverse]
        kind[rows] = np.where(keys == NOTHING, which, np.where(keys >= FUSED_KEY, _OWNED, _HINTED))
        detail[rows] = np.where(keys == NOTHING, peer[rows], keys)
    return kind, detail


def _place_locals(graph: InstructionGraph, found: Accesses, blocks: Ints, rows: Ints) -> None:
    """Move local instructions, in time order, to the threadblock of the receive or local step that they read from."""
    if not len(rows):
        return
    reads = np.flatnonzero(~found.write & (found.last_write != NOTHING))
    source = np.full(len(graph), NOTHING, dtype=np.int64)
    np.maximum.at(source, found.node[reads], found.node[found.last_write[reads]])
    joins = np.isin(graph.op, (Op.RECV, Op.RECV_REDUCE_COPY, Op.COPY, Op.REDUCE))
    lane = graph.trace.column("lane")[graph.operation]
    passing = np.zeros(int(blocks.max()) + 1, dtype=bool)
    passing[blocks[graph.send != NOTHING]] = True
    for row in rows.tolist():
        writer = int(source[row])
        if writer != NOTHING and joins[writer] and lane[writer] == lane[row] and not passing[blocks[writer]]:
            blocks[row] = blocks[writer]
