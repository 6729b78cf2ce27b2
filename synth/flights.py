"""Flights: what is in the air when, of a result or of any algorithm on a topology; what pictures are drawn from.

An algorithm's flights are those of the cost model: every step as soon as its threadblock, its dependences and its
message allow, a send when its link and the resources that it takes are free too. Local steps take no time.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from commlib.collectives import Buffer
from commlib.errors import SpecError, TopologyError
from commlib.ir.algorithm import Algorithm, Span, Step
from commlib.ir.trace import address_map
from commlib.topology import Topology, cost_table
from synth.moves import Moves, Parcel
from synth.retiming import Prices

Content = frozenset[tuple[int, int]]
"""Contributions (rank, chunk) that are combined in a slot; empty: nobody knows."""


class Flight(NamedTuple):
    """``what`` is on its way from ``source`` to ``target`` from ``start`` to ``arrival`` (seconds)."""

    start: float
    arrival: float
    source: int
    target: int
    what: str


def flights_of_moves(moves: Moves) -> list[Flight]:
    """The flights of a schedule, by start."""
    names = [_parcel_name(parcel) for parcel in moves.parcels]
    seconds = moves.costs.seconds
    times = zip(moves.start.tolist(), moves.arrival.tolist(), moves.rows(), strict=True)
    return [
        Flight(seconds(start), seconds(arrival), move.source, move.target, names[move.parcel])
        for start, arrival, move in times
    ]


def _parcel_name(parcel: Parcel) -> str:
    return content_name(frozenset((rank, index) for rank, indices in parcel.sources.items() for index in indices))


def content_name(content: Content, summed: bool = False) -> str:
    """ "chunk 2 of rank 0"; a sum, or what will be part of one (``summed``), by its chunks: "sum of chunk 2"."""
    if len(content) == 1 and not summed:
        ((rank, index),) = content
        return f"chunk {index} of rank {rank}"
    indices = sorted({index for _, index in content})
    return f"sum of chunk {', '.join(map(str, indices[:4]))}{', ...' * (len(indices) > 4)}" if indices else "unknown"


def flights_of_algorithm(algorithm: Algorithm, topology: Topology, chunk_bytes: float) -> list[Flight]:
    """The flights of an algorithm whose chunks have ``chunk_bytes`` bytes, by start. O(steps log steps x chunks).

    Raises:
        TopologyError: another number of ranks, or a message over a link that the topology lacks.
        SpecError: one-sided steps, which cross no link that the cost model knows.
    """
    if algorithm.one_sided:
        message = f"{algorithm.name} has one-sided steps, of ranks that share memory; a topology's links carry none"
        raise SpecError(message, algorithm=algorithm.name)
    if topology.ranks != algorithm.ranks:
        message = f"{topology.name} has {topology.ranks} ranks and {algorithm.name} {algorithm.ranks}"
        raise TopologyError(message, ranks=topology.ranks)
    return _Run(algorithm, topology, chunk_bytes).flights()


@dataclass
class _Message:
    """What a send gave to its connection."""

    arrival: int
    values: list[Content]


@dataclass
class _Run:
    """An algorithm being run in simulated time, with what its slots hold."""

    algorithm: Algorithm
    topology: Topology
    chunk_bytes: float
    _found: list[Flight] = field(default_factory=list)

    def __post_init__(self) -> None:
        a = self.algorithm
        counts = sorted(set(a.count.tolist()) | {1})
        self._costs = cost_table(self.topology, [count * self.chunk_bytes for count in counts])
        self._size_of = {count: place for place, count in enumerate(counts)}
        self._prices = Prices.of(self._costs)
        self._free: dict[int, int] = {}
        self._done: dict[int, int] = {}
        self._messages: dict[int, _Message] = {}
        self._source_of = _pairs(a)
        self._map = address_map(a.collective, a.scratch_chunks, sorted(a.placements, key=lambda p: p.value)[-1])
        self._memory: list[list[Content]] = [[frozenset()] * span for span in self._map.span]
        for rank in range(a.ranks):
            first = self._map.base[rank][Buffer.INPUT]
            for index in range(a.collective.input_chunks(rank)):
                self._memory[rank][first + index] = frozenset({(rank, index)})

    def flights(self) -> list[Flight]:
        """Run everything."""
        steps, waits, after = list(self.algorithm.steps()), *_precedence(self.algorithm, self._source_of)
        ready = [0] * len(steps)
        queue = [(0, number) for number in range(len(steps)) if not waits[number]]
        heapq.heapify(queue)
        while queue:
            at, number = heapq.heappop(queue)
            possible = max(at, self._when(number, steps[number], ready[number]))
            if possible > at:
                heapq.heappush(queue, (possible, number))
                continue
            finished = self._execute(number, steps[number], at)
            for follower in after[number]:
                message = self._messages.get(number) if self._source_of.get(follower) == number else None
                ready[follower] = max(ready[follower], finished if message is None else message.arrival)
                waits[follower] -= 1
                if not waits[follower]:
                    heapq.heappush(queue, (ready[follower], follower))
        return sorted(self._found)

    def _uses(self, number: int, step: Step) -> tuple[int, list[tuple[int, int]]]:
        """(latency, uses) of the message that a step sends."""
        row = int(self.algorithm.step_threadblock[number])
        source, target = int(self.algorithm.tb_rank[row]), int(self.algorithm.tb_send[row])
        link = self._prices.number.get((source, target))
        if link is None:
            message = f"{self.topology.name} has no link {source} -> {target}, which {self.algorithm.name} uses"
            raise TopologyError(message, link=(source, target))
        size = self._size_of[step.count]
        return self._prices.latency[size][link], self._prices.uses[size][link]

    def _when(self, number: int, step: Step, ready: int) -> int:
        if not step.op.sends:
            return ready
        return max([ready, *(self._free.get(slot, 0) for slot, _ in self._uses(number, step)[1])])

    def _execute(self, number: int, step: Step, at: int) -> int:
        """Do a step; when its threadblock can go on."""
        rank = int(self.algorithm.step_rank[number])
        source = self._source_of.get(number)
        values = self._messages[source].values if source is not None else []
        if step.op.has_source and step.source is not None:
            values = _together(values, self._load(rank, step.source))
        if step.op.has_destination and step.destination is not None:
            held = self._load(rank, step.destination) if step.op.short == "re" else []
            self._store(rank, step.destination, _together(held, values))
        if step.op.sends:
            self._send(number, step, at, rank, values)
        return at

    def _send(self, number: int, step: Step, at: int, rank: int, values: list[Content]) -> None:
        latency, uses = self._uses(number, step)
        self._free.update((slot, at + ticks) for slot, ticks in uses)
        self._messages[number] = _Message(at + latency, values)
        target = int(self.algorithm.tb_send[int(self.algorithm.step_threadblock[number])])
        seconds = self._costs.seconds
        for content in values:
            self._found.append(
                Flight(
                    seconds(at),
                    seconds(at + latency),
                    rank,
                    target,
                    content_name(content, self.algorithm.collective.reduces),
                )
            )

    def _load(self, rank: int, span: Span) -> list[Content]:
        first = self._map.base[rank][span.buffer] + span.index
        return self._memory[rank][first : first + span.count]

    def _store(self, rank: int, span: Span, values: Sequence[Content]) -> None:
        first = self._map.base[rank][span.buffer] + span.index
        self._memory[rank][first : first + span.count] = values


def _together(one: Sequence[Content], other: Sequence[Content]) -> list[Content]:
    if not one or not other:
        return list(one or other)
    return [a | b for a, b in zip(one, other, strict=True)]


def _pairs(algorithm: Algorithm) -> dict[int, int]:
    """For each step that receives, the step that sends its message: the k-th received is the k-th sent."""
    sent: dict[tuple[int, int, int], list[int]] = {}
    received: dict[tuple[int, int, int], list[int]] = {}
    rows = algorithm.step_threadblock.tolist()
    for number, row in enumerate(rows):
        op, rank, channel = algorithm.step(number).op, int(algorithm.tb_rank[row]), int(algorithm.tb_channel[row])
        if op.sends:
            sent.setdefault((rank, int(algorithm.tb_send[row]), channel), []).append(number)
        if op.receives:
            received.setdefault((int(algorithm.tb_recv[row]), rank, channel), []).append(number)
    return {
        receiver: sender
        for connection, numbers in received.items()
        for receiver, sender in zip(numbers, sent.get(connection, ()), strict=False)
    }


def _precedence(algorithm: Algorithm, source_of: dict[int, int]) -> tuple[list[int], list[list[int]]]:
    """(how many steps each waits for, which steps wait for each)."""
    steps = algorithm.step_count
    waits, after = [0] * steps, list[list[int]]([] for _ in range(steps))
    rows, starts, deps = algorithm.step_threadblock.tolist(), algorithm.dep_start.tolist(), algorithm.dep.tolist()
    for number in range(steps):
        before = deps[starts[number] : starts[number + 1]]
        before += [number - 1] if number and rows[number - 1] == rows[number] else []
        before += [source_of[number]] if number in source_of else []
        waits[number] = len(before)
        for earlier in before:
            after[earlier].append(number)
    return waits, after
