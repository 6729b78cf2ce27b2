"""Order: a dependence level for every instruction, such that following the levels can never deadlock.

Two steps. First every message of a connection gets its place in it: by the depth of its operation when send and
receive are taken as one, then by trace order. Depth grows along every path of dependences, so neither end can need
another order. Then levels are longest paths over hazards, messages, the order of each connection, and the bounded
FIFO: a message of k chunks needs the k slots of its FIFO, so a send comes after the receive that makes room for it.
All threadblocks in level order is then a schedule that completes at this FIFO depth, and by confluence every
schedule completes.

Fused instructions may close a cycle, because one instruction has a place on two connections: those on the cycle are
reported, to be taken apart. Without fusion trace order itself is a schedule, so there is always an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from commlib.compiler.channels import MAX_CHANNELS
from commlib.ir.algorithm import NOTHING, Ints
from commlib.ir.graph import InstructionGraph


@dataclass(frozen=True)
class Order:
    """Graph with channels in, graph out with ``level`` filled, safe at FIFO depth ``fifo_depth`` and above.

    When steps of count > 1 are split into chunks it is safe at every depth from the largest count on. Returns the
    graph and the rows of fused instructions that lie on cycles (then the levels mean nothing). Linear in the edges.
    """

    fifo_depth: int = 1

    def __call__(self, graph: InstructionGraph, hazards: tuple[Ints, Ints]) -> tuple[InstructionGraph, list[int]]:
        """Apply the pass."""
        messages = _connection_order(graph, hazards)
        sender, receiver = graph.message_ends()
        before, after = self._edges(graph, hazards, messages, sender, receiver)
        level, stuck = levels(len(graph), before, after)
        if not len(stuck):
            return graph.with_columns(level=level), []
        on_cycles = _trim(len(graph), before, after, stuck)
        return graph, [row for row in on_cycles.tolist() if graph.recv[row] != NOTHING and graph.send[row] != NOTHING]

    def _edges(
        self, graph: InstructionGraph, hazards: tuple[Ints, Ints], messages: Ints, sender: Ints, receiver: Ints
    ) -> tuple[Ints, Ints]:
        connection = _connections(graph, messages, sender)
        follows = connection[1:] == connection[:-1]
        one, next_one = messages[:-1][follows], messages[1:][follows]
        room_for, room_by = self._capacity(graph, messages, connection, sender)
        before = [hazards[0], sender[messages], sender[one], receiver[one], receiver[room_by]]
        after = [hazards[1], receiver[messages], sender[next_one], receiver[next_one], sender[room_for]]
        return np.concatenate(before), np.concatenate(after)

    def _capacity(self, graph: InstructionGraph, messages: Ints, connection: Ints, sender: Ints) -> tuple[Ints, Ints]:
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


def _connections(graph: InstructionGraph, messages: Ints, sender: Ints) -> Ints:
    """A number for the connection (sender, receiver, channel) of each message."""
    ranks, trace = graph.trace.collective.ranks, graph.trace
    pair = trace.column("src_rank")[messages] * ranks + trace.column("dst_rank")[messages]
    return pair * MAX_CHANNELS + graph.channel[sender[messages]]


def _connection_order(graph: InstructionGraph, hazards: tuple[Ints, Ints]) -> Ints:
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
