"""Order: a dependence level for every instruction, such that following the levels can never deadlock.

Three steps. First every message of a connection gets its place in it: by the depth of its operation when send and
receive are taken as one, then by trace order. Depth grows along every path of dependences, so neither end can need
another order. Trace order alone would do as well, and ``keep_order`` asks for it: schedules chose that order. Then
levels are longest paths over hazards, messages, the order of each connection, and the bounded
FIFO: a message of k chunks needs k slots of its FIFO, so it is sent after the receive that makes room for it.
Last, threadblocks in level order are tried: if no cycle is left, that is a schedule which completes at this FIFO
depth, and by confluence every schedule completes.

A fused instruction receives, which frees a slot, and then sends, which may have to wait for one: two events. What
comes after it waits for the second, though it may need the first only; so fusion can close a cycle. Then events are
taken in an order that has no cycles without fusion; the first that cannot have its turn waits for the second event of
a fused instruction that should not be fused: that one is reported, to be taken apart, and the rest goes on as if it
were. Without fusion there is always an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    fused instructions to take apart (then the levels mean nothing). Linear in the edges, but for sorting.
    """

    fifo_depth: int = 1
    keep_order: bool = False

    def __call__(self, graph: InstructionGraph, hazards: Edges) -> tuple[InstructionGraph, list[int]]:
        """Apply the pass."""
        events = Events.of(graph)
        place = np.arange(len(graph.trace)) if self.keep_order else _places(graph, hazards)
        hard, soft = self._edges(graph, hazards, events, place)
        level, refused = settle(events, hard, soft, events.keys(graph, place), set())
        ordered = graph.with_columns(level=level[: len(graph)])
        rows = threadblock_order(ordered)
        follows = graph.block[rows[1:]] == graph.block[rows[:-1]]
        first, second = rows[:-1][follows], rows[1:][follows]
        fused = events.is_fused[first]
        hard = _join(hard, (first[~fused], second[~fused]))
        soft = _join(soft, (first[fused], second[fused]))
        keys = events.keys_by_level(ordered, level)
        if not _has_order(events, hard, soft, keys):
            _, refused = settle(events, hard, soft, keys, refused)
        return (graph, sorted(refused)) if refused else (ordered, [])

    def _edges(self, graph: InstructionGraph, hazards: Edges, events: Events, place: Ints) -> tuple[Edges, Edges]:
        """Edges between events, and "soft" ones (row, event) that leave a fused row's second event."""
        messages = _connection_order(graph, place)
        sender, receiver = graph.message_ends()
        connection = _connections(graph, messages, sender)
        follows = connection[1:] == connection[:-1]
        one, next_one = messages[:-1][follows], messages[1:][follows]
        room_for, room_by = self._capacity(graph, messages, connection, sender)
        sent, own = events.finish[sender], graph.fused
        fused = events.is_fused[hazards[0]]
        before = [hazards[0][~fused], sent[messages], sent[one], receiver[one], receiver[room_by], own]
        after = [
            hazards[1][~fused],
            receiver[messages],
            sent[next_one],
            receiver[next_one],
            sent[room_for],
            events.finish[own],
        ]
        return (np.concatenate(before), np.concatenate(after)), (hazards[0][fused], hazards[1][fused])

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
class Events:
    """Every instruction is one event, numbered as its row; a fused one has a second, its send, ``finish[row]``."""

    count: int
    finish: Ints
    fused: Ints
    is_fused: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, graph: InstructionGraph) -> Events:
        """The events of a graph."""
        fused = graph.fused
        finish = np.arange(len(graph), dtype=np.int64)
        finish[fused] = len(graph) + np.arange(len(fused))
        is_fused = np.zeros(len(graph), dtype=bool)
        is_fused[fused] = True
        return cls(len(graph) + len(fused), finish, fused, is_fused)

    def keys(self, graph: InstructionGraph, place: Ints) -> Ints:
        """A number for each event that grows along every edge but those that leave a fused row's second event.

        ``place`` is the place of each operation in an order that works without fusion.
        """
        receives = graph.recv != NOTHING
        own = 2 * place[np.where(receives, graph.recv, graph.operation)] + receives
        return np.concatenate([own, 2 * place[graph.send[self.fused]]])

    def keys_by_level(self, graph: InstructionGraph, level: Ints) -> Ints:
        """As ``keys``, when edges between neighbours in a threadblock have been added."""
        kind = np.concatenate([graph.recv != NOTHING, np.full(len(self.fused), 2)])
        time = np.concatenate([graph.time, graph.time[self.fused]])
        order = np.lexsort((time, kind, level))
        keys = np.empty(self.count, dtype=np.int64)
        keys[order] = np.arange(self.count)
        return keys


def settle(events: Events, hard: Edges, soft: Edges, keys: Ints, refused: set[int]) -> tuple[Ints, set[int]]:
    """The longest path to each event, and the fused rows that had to be taken apart for all to have their turn.

    ``refused`` rows count as taken apart from the start. Linear in events and edges.
    """
    return _Settling(events, hard, soft, keys, refused).run()


def _has_order(events: Events, hard: Edges, soft: Edges, keys: Ints) -> bool:
    """Whether keys grow along all edges: then all events have their turn, and nothing need be taken apart."""
    second = events.finish[soft[0]]
    return bool((keys[hard[0]] < keys[hard[1]]).all() and (keys[second] < keys[soft[1]]).all())


class _Settling:
    """Kahn's algorithm with a way out of cycles."""

    def __init__(self, events: Events, hard: Edges, soft: Edges, keys: Ints, refused: set[int]) -> None:
        self._keys, self._soft_edges, self._count = keys, soft, events.count
        self._targets, self._starts = _adjacency(hard, events.count)
        self._soft, self._soft_starts = _adjacency(soft, len(events.finish))
        missing = np.bincount(hard[1], minlength=events.count) + np.bincount(soft[1], minlength=events.count)
        self._ready = np.flatnonzero(missing == 0).tolist()
        self._missing = missing.tolist()
        self._level = [0] * events.count
        # Per event: the fused row that it finishes; -2 - row if it starts one; -1 for all others.
        role = np.full(events.count, -1, dtype=np.int64)
        role[events.fused], role[events.finish[events.fused]] = -2 - events.fused, events.fused
        self._role = role.tolist()
        self._started, self._released = bytearray(len(events.finish)), bytearray(len(events.finish))
        self._apart = set(refused)

    def run(self) -> tuple[Ints, set[int]]:
        """Give every event its turn."""
        done = self._drain(0)
        if done < self._count:
            waits_for, starts = _adjacency((self._soft_edges[1], self._soft_edges[0]), self._count)
            for event in np.argsort(self._keys, kind="stable").tolist():
                if self._missing[event] > 0:
                    self._take_apart(waits_for[starts[event] : starts[event + 1]])
                    done = self._drain(done)
        if done < self._count:
            raise CompileError("a cycle without fused steps: this is a defect of the compiler")
        return np.array(self._level, dtype=np.int64), self._apart

    def _take_apart(self, rows: list[int]) -> None:
        """Let what waits for these rows' second events go on after their first."""
        for row in rows:
            if not self._released[row]:
                self._apart.add(row)
                if self._started[row]:
                    self._release(row, self._level[row] + 1)

    def _release(self, row: int, level: int) -> None:
        """Let go what follows a fused row."""
        self._released[row] = 1
        for target in self._soft[self._soft_starts[row] : self._soft_starts[row + 1]]:
            if self._level[target] < level:
                self._level[target] = level
            self._missing[target] -= 1
            if not self._missing[target]:
                self._ready.append(target)

    def _drain(self, done: int) -> int:
        """Process all ready events from number ``done`` of the queue on; how many were processed in all."""
        ready, starts, targets, missing, level = self._ready, self._starts, self._targets, self._missing, self._level
        while done < len(ready):
            event = ready[done]
            done += 1
            next_level = level[event] + 1
            for target in targets[starts[event] : starts[event + 1]]:
                if level[target] < next_level:
                    level[target] = next_level
                missing[target] -= 1
                if not missing[target]:
                    ready.append(target)
            role = self._role[event]
            if role >= 0:
                if not self._released[role]:
                    self._release(role, next_level)
            elif role < -1:
                self._started[-2 - role] = 1
                if -2 - role in self._apart:
                    self._release(-2 - role, next_level)
        return done


def threadblock_order(graph: InstructionGraph) -> Ints:
    """All rows by threadblock and, within it, level; sends before receives; then trace order."""
    return np.lexsort((graph.time, graph.recv != NOTHING, graph.level, graph.block))


def _connections(graph: InstructionGraph, messages: Ints, sender: Ints) -> Ints:
    """A number for the connection (sender, receiver, channel) of each message."""
    ranks, trace = graph.trace.collective.ranks, graph.trace
    pair = trace.column("src_rank")[messages] * ranks + trace.column("dst_rank")[messages]
    return pair * MAX_CHANNELS + graph.channel[sender[messages]]


def _places(graph: InstructionGraph, hazards: Edges) -> Ints:
    """Per operation, its place in an order by depth, with send and receive taken as one, then by trace order."""
    operation, fused = graph.operation, graph.fused
    before = np.concatenate([operation[hazards[0]], graph.recv[fused]])
    after = np.concatenate([operation[hazards[1]], graph.send[fused]])
    proper = before != after
    depth = _depths(len(graph.trace), before[proper], after[proper])
    place = np.empty(len(depth), dtype=np.int64)
    place[np.argsort(depth, kind="stable")] = np.arange(len(depth))
    return place


def _connection_order(graph: InstructionGraph, place: Ints) -> Ints:
    """All messages, by connection and within it by place."""
    messages = np.flatnonzero(graph.trace.column("src_rank") != graph.trace.column("dst_rank"))
    connection = _connections(graph, messages, graph.message_ends()[0])
    return messages[np.lexsort((place[messages], connection))]


def _depths(size: int, before: Ints, after: Ints) -> Ints:
    """The longest path to each of ``size`` nodes over edges that all go from a lower number to a higher."""
    targets, starts = _adjacency((before, after), size)
    depth = [0] * size
    for node in range(size):
        below = depth[node] + 1
        for target in targets[starts[node] : starts[node + 1]]:
            if depth[target] < below:
                depth[target] = below
    return np.array(depth, dtype=np.int64)


def _adjacency(edges: Edges, size: int) -> tuple[list[int], list[int]]:
    """(targets, starts): the targets of node n are ``targets[starts[n]:starts[n + 1]]``."""
    order = np.argsort(edges[0], kind="stable")
    return edges[1][order].tolist(), np.searchsorted(edges[0][order], np.arange(size + 1)).tolist()


def _join(one: Edges, other: Edges) -> Edges:
    return np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
