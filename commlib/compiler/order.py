"""Order: a dependence level for every instruction, such that following the levels can never deadlock.

Three steps. First every message of a connection gets its place in it: by the depth of its operation when send and
receive are taken as one, then by trace order. Depth grows along every path of dependences, so neither end can need
another order. Then levels are longest paths over hazards, messages, the order of each connection, and the bounded
FIFO: a message of k chunks needs k slots of its FIFO, so it is sent after the receive that makes room for it.
Last, threadblocks in level order are tried: if no cycle is left, that is a schedule which completes at this FIFO
depth, and by confluence every schedule completes.

A fused instruction receives, which frees a slot, and then sends, which may have to wait for one: two events. It has
a place on two connections, so it may close a cycle: those on a cycle are reported, to be taken apart. Without fusion
trace order itself is a schedule, so there is always an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from commlib.compiler.channels import MAX_CHANNELS
from commlib.errors import CompileError
from commlib.ir.algorithm import NOTHING, Ints
from commlib.ir.graph import InstructionGraph

Edges = tuple[Ints, Ints]
"""Pairs (before, after)."""


@dataclass(frozen=True)
class Order:
    """Graph with channels and blocks in, graph out with ``level`` filled, safe at FIFO depth ``fifo_depth`` and above.

    When steps of count > 1 are split into chunks it is safe at every depth from the largest count on. A runtime in
    which a fused step holds its receive slot until it has sent needs one slot more. Returns the graph and the rows of
    fused instructions that lie on cycles (then the levels mean nothing). Linear in the edges, but for sorting.
    """

    fifo_depth: int = 1

    def __call__(self, graph: InstructionGraph, hazards: Edges) -> tuple[InstructionGraph, list[int]]:
        """Apply the pass."""
        events = _Events.of(graph)
        before, after = self._edges(graph, hazards, events)
        level, stuck = levels(events.count, before, after)
        if not len(stuck):
            ordered = graph.with_columns(level=level[: len(graph)])
            rows = threadblock_order(ordered)
            follows = graph.block[rows[1:]] == graph.block[rows[:-1]]
            before = np.concatenate([before, events.finish[rows[:-1][follows]]])
            after = np.concatenate([after, rows[1:][follows]])
            _, stuck = levels(events.count, before, after)
            if not len(stuck):
                return ordered, []
        culprits = events.fused_among(_trim(events.count, before, after, stuck))
        if not culprits:
            raise CompileError(f"{graph.trace.name}: a cycle without fused steps; this is a defect of the compiler")
        return graph, culprits

    def _edges(self, graph: InstructionGraph, hazards: Edges, events: _Events) -> Edges:
        messages = _connection_order(graph, hazards)
        sender, receiver = graph.message_ends()
        connection = _connections(graph, messages, sender)
        follows = connection[1:] == connection[:-1]
        one, next_one = messages[:-1][follows], messages[1:][follows]
        room_for, room_by = self._capacity(graph, messages, connection, sender)
        sent = events.finish[sender]
        own = graph.fused
        before = [events.finish[hazards[0]], sent[messages], sent[one], receiver[one], receiver[room_by], own]
        after = [hazards[1], receiver[messages], sent[next_one], receiver[next_one], sent[room_for], events.finish[own]]
        return np.concatenate(before), np.concatenate(after)

    def _capacity(self, graph: InstructionGraph, messages: Ints, connection: Ints, sender: Ints) -> Edges:
        """Pairs (message, earlier message of its connection that must be received before there is room for it)."""
        if not len(messages):
            return messages, messages
        size = graph.count[sender[messages]]
        total = np.cumsum(size)
        place = np.arange(len(messages))
        first = np.searchsorted(connection, connection)
        base = total[first] - size[first]
        wanted = total - self.fifo_depth
        freed_by = np.minimum(np.searchsorted(total, wanted, side="left"), place - 1)
        needed = (wanted > base) & (freed_by >= first)
        return messages[needed], messages[freed_by[needed]]


@dataclass(frozen=True)
class _Events:
    """Every instruction is one event, numbered as its row; a fused one has a second, its send, ``finish[row]``."""

    count: int
    finish: Ints
    fused: Ints

    @classmethod
    def of(cls, graph: InstructionGraph) -> _Events:
        fused = graph.fused
        finish = np.arange(len(graph), dtype=np.int64)
        finish[fused] = len(graph) + np.arange(len(fused))
        return cls(len(graph) + len(fused), finish, fused)

    def fused_among(self, events: Ints) -> list[int]:
        """The rows of the fused instructions that have an event among these."""
        found: list[int] = self.fused[np.isin(self.fused, events) | np.isin(self.finish[self.fused], events)].tolist()
        return found


def threadblock_order(graph: InstructionGraph) -> Ints:
    """All rows by threadblock and, within it, level; sends before receives; then trace order."""
    return np.lexsort((graph.time, graph.recv != NOTHING, graph.level, graph.block))


def _connections(graph: InstructionGraph, messages: Ints, sender: Ints) -> Ints:
    """A number for the connection (sender, receiver, channel) of each message."""
    ranks, trace = graph.trace.collective.ranks, graph.trace
    pair = trace.column("src_rank")[messages] * ranks + trace.column("dst_rank")[messages]
    return pair * MAX_CHANNELS + graph.channel[sender[messages]]


def _connection_order(graph: InstructionGraph, hazards: Edges) -> Ints:
    """All messages, by connection and within it by (depth as a rendezvous, trace order)."""
    operation, fused = graph.operation, graph.fused
    before = np.concatenate([operation[hazards[0]], graph.recv[fused]])
    after = np.concatenate([operation[hazards[1]], graph.send[fused]])
    proper = before != after
    depth, _ = levels(len(graph.trace), before[proper], after[proper])
    messages = np.flatnonzero(graph.trace.column("src_rank") != graph.trace.column("dst_rank"))
    connection = _connections(graph, messages, graph.message_ends()[0])
    return messages[np.lexsort((messages, depth[messages], connection))]


def levels(size: int, before: Ints, after: Ints) -> tuple[Ints, Ints]:
    """The longest path to each of ``size`` nodes over the edges, and the nodes that a cycle keeps from having one.

    Linear in nodes and edges (Kahn's algorithm).
    """
    order = np.argsort(before, kind="stable")
    targets = after[order].tolist()
    starts = np.searchsorted(before[order], np.arange(size + 1)).tolist()
    waits_for = np.bincount(after, minlength=size)
    ready = np.flatnonzero(waits_for == 0).tolist()
    missing = waits_for.tolist()
    level = [0] * size
    for node in ready:
        next_level = level[node] + 1
        for target in targets[starts[node] : starts[node + 1]]:
            if level[target] < next_level:
                level[target] = next_level
            missing[target] -= 1
            if not missing[target]:
                ready.append(target)
    stuck = np.flatnonzero(np.array(missing, dtype=np.int64))
    return np.array(level, dtype=np.int64), stuck


def _trim(size: int, before: Ints, after: Ints, stuck: Ints) -> Ints:
    """Of the stuck nodes, those on a cycle or between two: the rest only waits for them."""
    inside = np.zeros(size, dtype=bool)
    inside[stuck] = True
    both = inside[before] & inside[after]
    _, still = levels(size, after[both], before[both])
    return still
