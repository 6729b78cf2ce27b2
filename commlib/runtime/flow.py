"""Which chunk every step moves: one walk through an Algorithm with values that are labels instead of data.

The layout asks this to learn the length of every message and scratch slot. The walk uses unbounded FIFOs and any
order: for a program without races (the verifier's business) each order moves the same chunks.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from functools import lru_cache

from commlib.collectives import Buffer, Collective, Placement
from commlib.errors import ExecutionError
from commlib.ir.algorithm import HAS_DESTINATION, HAS_SOURCE, ONE_SIDED, RECEIVES, REDUCES, SENDS, Algorithm, Op

Label = int | tuple[int, int, int]
Slot = tuple[int, int, int]
"""(rank, space, index): space 0 is the input or the shared span, 1 the output, 2 scratch."""
Labels = tuple[Label, ...]


@dataclass(frozen=True)
class Flow:
    """What a walk found.

    ``moved[s]`` labels the chunks that step s moves; ``combined`` has the pairs of labels that met in a reduction,
    ``stored`` the pairs (label, label of the input or output slot it was written to), both without equal pairs.
    """

    moved: tuple[Labels, ...]
    combined: frozenset[tuple[Label, Label]]
    stored: frozenset[tuple[Label, Label]]


def slot_label(collective: Collective, rank: int, buffer: Buffer, index: int) -> Label:
    """The label of an input or output slot: slots of one label have one length in every layout.

    For alltoallv (sender, receiver, chunk in shard), otherwise the chunk's index in its shard.
    """
    shard, chunk = divmod(index, collective.chunks)
    if collective.name != "alltoallv":
        return chunk
    return (rank, shard, chunk) if buffer is Buffer.INPUT else (shard, rank, chunk)


def address(collective: Collective, placement: Placement, rank: int, buffer: Buffer, index: int) -> Slot:
    """Where a slot lies: in place, input and output share one space."""
    if placement is Placement.OUT or buffer is Buffer.SCRATCH:
        return rank, int(buffer), index
    return rank, 0, index + collective.in_place_offsets(rank)[buffer]


@lru_cache(maxsize=256)
def flow(algorithm: Algorithm, placement: Placement) -> Flow:
    """Walk the algorithm once; O(chunks moved).

    Raises:
        ExecutionError: the program reads a slot that nothing was written to, or cannot finish.
    """
    walk = _Walk(algorithm, placement)
    walk.run()
    return Flow(tuple(walk.moved), frozenset(walk.combined), frozenset(walk.stored))


@dataclass
class _Walk:
    algorithm: Algorithm
    placement: Placement
    moved: list[Labels] = field(default_factory=list)
    combined: set[tuple[Label, Label]] = field(default_factory=set)
    stored: set[tuple[Label, Label]] = field(default_factory=set)

    def __post_init__(self) -> None:
        a, c = self.algorithm, self.algorithm.collective
        self.moved = [()] * a.step_count
        self.fixed: dict[Slot, Label] = {}
        self.values: dict[Slot, Label] = {}
        self.done = [False] * a.step_count
        self.fifos: dict[tuple[int, int, int], deque[Labels]] = {}
        self.signals: defaultdict[tuple[int, int, int], int] = defaultdict(int)
        for rank in range(a.ranks):
            for buffer in (Buffer.INPUT, Buffer.OUTPUT):
                for index in range(a.buffer_chunks(rank, buffer)):
                    slot = address(c, self.placement, rank, buffer, index)
                    self.fixed[slot] = slot_label(c, rank, buffer, index)
                    if buffer is Buffer.INPUT:
                        self.values[slot] = self.fixed[slot]

    def run(self) -> None:
        """Advance threadblocks in turn until none can."""
        a = self.algorithm
        at = [int(start) for start in a.tb_start[:-1]]
        ends = [int(end) for end in a.tb_start[1:]]
        pending = {row for row in range(len(at)) if at[row] < ends[row]}
        while pending:
            before = sum(at)
            for row in sorted(pending):
                while at[row] < ends[row] and self._step(row, at[row]):
                    at[row] += 1
            if sum(at) == before:
                rank, threadblock, step = a.place(at[min(pending)])
                raise ExecutionError(
                    f"{a.name} cannot finish: rank {rank} threadblock {threadblock} waits for ever in step {step}",
                    rank=rank,
                    threadblock=threadblock,
                    step=step,
                )
            pending = {row for row in pending if at[row] < ends[row]}

    def _step(self, row: int, number: int) -> bool:
        a = self.algorithm
        if not all(self.done[dep] for dep in a.dep[a.dep_start[number] : a.dep_start[number + 1]]):
            return False
        rank, channel, op = int(a.tb_rank[row]), int(a.tb_channel[row]), int(a.op[number])
        if ONE_SIDED[op]:
            return self._one_sided(number, rank, channel)
        message: Labels | None = None
        if RECEIVES[op]:
            fifo = self.fifos.get((int(a.tb_recv[row]), rank, channel))
            if not fifo:
                return False
            message = fifo.popleft()
        result = self._result(number, rank, op, message)
        self.moved[number] = result
        if HAS_DESTINATION[op]:
            buffer = Buffer(int(a.destination_buffer[number]))
            self._write(rank, buffer, int(a.destination_index[number]), result)
        if SENDS[op]:
            self.fifos.setdefault((rank, int(a.tb_send[row]), channel), deque()).append(result)
        self.done[number] = True
        return True

    def _one_sided(self, number: int, rank: int, channel: int) -> bool:
        """A wait needs one more signal than there were waits; other steps move at once, for no order moves others."""
        step = self.algorithm.step(number)
        if step.op is Op.SIGNAL and step.peer is not None:
            self.signals[rank, step.peer, channel] += 1
        elif step.op is Op.WAIT and step.peer is not None:
            if not self.signals[step.peer, rank, channel]:
                return False
            self.signals[step.peer, rank, channel] -= 1
        elif step.sources:
            operands = [self._read(number, r.rank, r.span.buffer, r.span.index) for r in step.sources]
            self.moved[number] = operands[0]
            for other in operands[1:]:
                self.combined.update(pair for pair in zip(operands[0], other, strict=True) if pair[0] != pair[1])
            for target in step.destinations:
                self._write(target.rank, target.span.buffer, target.span.index, operands[0])
        self.done[number] = True
        return True

    def _result(self, number: int, rank: int, op: int, message: Labels | None) -> Labels:
        a = self.algorithm
        operands = [] if message is None else [message]
        if HAS_SOURCE[op]:
            operands.append(self._read(number, rank, Buffer(int(a.source_buffer[number])), a.source_index[number]))
        if op == Op.REDUCE:
            buffer = Buffer(int(a.destination_buffer[number]))
            operands.append(self._read(number, rank, buffer, a.destination_index[number]))
        if REDUCES[op]:
            self.combined.update(pair for pair in zip(*operands, strict=True) if pair[0] != pair[1])
        return operands[-1] if operands else ()

    def _read(self, number: int, rank: int, buffer: Buffer, index: int) -> Labels:
        slots = self._slots(rank, buffer, int(index), int(self.algorithm.count[number]))
        missing = [slot for slot in slots if slot not in self.values]
        if missing:
            own, threadblock, step = self.algorithm.place(number)
            slot = f"{buffer.letter}[{int(index) + slots.index(missing[0])}]"
            raise ExecutionError(
                f"{self.algorithm.name}: rank {own} threadblock {threadblock} step {step} reads "
                f"{slot if own == rank else f'{slot} of rank {rank}'}, to which nothing was written",
                rank=own,
                threadblock=threadblock,
                step=step,
            )
        return tuple(self.values[slot] for slot in slots)

    def _write(self, rank: int, buffer: Buffer, index: int, labels: Labels) -> None:
        for slot, label in zip(self._slots(rank, buffer, index, len(labels)), labels, strict=True):
            self.values[slot] = label
            if slot in self.fixed and self.fixed[slot] != label:
                self.stored.add((label, self.fixed[slot]))

    def _slots(self, rank: int, buffer: Buffer, index: int, count: int) -> list[Slot]:
        c = self.algorithm.collective
        return [address(c, self.placement, rank, buffer, i) for i in range(index, index + count)]
