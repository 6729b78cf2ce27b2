"""The slow, obvious interpreter on contents: runs an Algorithm's records action by action in an order that the caller
picks. It shares no code with the fast checks, which are tested against it; it also is a quick way to see what an
algorithm does under one interleaving."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from commlib.collectives import Buffer, Contribution, Placement
from commlib.errors import AlgorithmError
from commlib.ir.algorithm import Algorithm, Op, Span, Step, Threadblock

Content = Counter[Contribution] | None
"""What a slot holds; None: nothing that was ever written."""
Pick = Callable[[list[tuple[int, int]]], tuple[int, int]]
"""Given the (rank, threadblock) that can move, at least one, which of them does: ``random.Random(seed).choice`` for a
random interleaving, ``min`` or ``max`` for a fixed one."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``stuck`` are the (rank, threadblock, step) that could not finish; ``mismatch`` says that a
    message was received with another count than sent, or never."""

    slots: dict[tuple[int, Buffer, int], Content]
    stuck: tuple[tuple[int, int, int], ...]
    mismatch: bool

    def is_right(self, algorithm: Algorithm, placement: Placement) -> bool:
        """Whether it ended, the postcondition holds, and the input is as before when out of place."""
        if self.stuck or self.mismatch:
            return False
        for (rank, buffer, index), content in self.slots.items():
            if buffer is Buffer.OUTPUT:
                wanted = algorithm.collective.expected(rank, index)
                if wanted is not None and content != Counter(wanted):
                    return False
            if buffer is Buffer.INPUT and placement is Placement.OUT and content != Counter([(rank, index)]):
                return False
        return True


def interpret(algorithm: Algorithm, placement: Placement, pick: Pick, fifo_depth: int = 1, cut: bool = True) -> Outcome:
    """Run the algorithm once. ``cut``: every step of count k moves k messages of one chunk, one after another.

    O(steps * threadblocks).

    Raises:
        AlgorithmError: it has one-sided steps, of which one interleaving shows little: their effects have times too.
    """
    if algorithm.one_sided:
        raise AlgorithmError(f"{algorithm.name} has one-sided steps; verify or execute it", algorithm=algorithm.name)
    machine = _Machine(algorithm, placement, fifo_depth, cut)
    blocks = [_Block(list(map(algorithm.step, tb.steps)), tb.send, tb.recv, tb.channel) for tb in _all(algorithm)]
    while movable := {(b.step.rank, b.step.threadblock): b for b in blocks if machine.can_move(b)}:
        machine.move(movable[pick(list(movable))])
    stuck = tuple((b.step.rank, b.step.threadblock, b.step.index) for b in blocks if b.at < len(b.steps))
    slots = {
        (rank, buffer, index): machine.memory.get(machine.address(rank, buffer, index))
        for rank in range(algorithm.ranks)
        for buffer in Buffer
        for index in range(algorithm.buffer_chunks(rank, buffer))
    }
    return Outcome(slots, stuck, machine.mismatch or any(machine.fifos.values()))


def _all(algorithm: Algorithm) -> Iterator[Threadblock]:
    return (tb for rank in range(algorithm.ranks) for tb in algorithm.threadblocks(rank))


@dataclass
class _Block:
    steps: list[Step]
    send: int | None
    recv: int | None
    channel: int
    at: int = 0
    chunk: int = 0
    outgoing: list[Content] | None = None

    @property
    def step(self) -> Step:
        """The step that the threadblock is at."""
        return self.steps[self.at]


@dataclass
class _Machine:
    algorithm: Algorithm
    placement: Placement
    depth: int
    cut: bool
    memory: dict[tuple[int, str, int], Content] = field(default_factory=dict)
    fifos: dict[tuple[int | None, int | None, int], deque[list[Content]]] = field(default_factory=dict)
    finished: set[tuple[int, int, int]] = field(default_factory=set)
    mismatch: bool = False

    def __post_init__(self) -> None:
        for rank in range(self.algorithm.ranks):
            for index in range(self.algorithm.collective.input_chunks(rank)):
                self.memory[self.address(rank, Buffer.INPUT, index)] = Counter([(rank, index)])

    def address(self, rank: int, buffer: Buffer, index: int) -> tuple[int, str, int]:
        """Where a slot lies: input and output are one area when in place."""
        if buffer is Buffer.SCRATCH or self.placement is Placement.OUT:
            return rank, buffer.letter, index
        return rank, "io", index + self.algorithm.collective.in_place_offsets(rank)[buffer]

    def _fifo(self, sender: int | None, receiver: int | None, channel: int) -> deque[list[Content]]:
        return self.fifos.setdefault((sender, receiver, channel), deque())

    def _incoming(self, block: _Block) -> deque[list[Content]]:
        return self._fifo(block.recv, block.step.rank, block.channel)

    def _outgoing(self, block: _Block) -> deque[list[Content]]:
        return self._fifo(block.step.rank, block.send, block.channel)

    def can_move(self, block: _Block) -> bool:
        """Whether the threadblock's next action is possible now."""
        if block.at == len(block.steps):
            return False
        step = block.step
        if block.outgoing is not None:
            return len(self._outgoing(block)) < self.depth
        if any((step.rank, *dep) not in self.finished for dep in step.depends):
            return False
        return not step.op.receives or bool(self._incoming(block))

    def move(self, block: _Block) -> None:
        """Do the next action: receive, compute and write; or send."""
        step = block.step
        size = 1 if self.cut and (step.op.receives or step.op.sends) else step.count
        if block.outgoing is None:
            values = self._compute(block, block.chunk, size)
            if step.op.sends:
                block.outgoing = values
                return
        else:
            self._outgoing(block).append(block.outgoing)
            block.outgoing = None
        block.chunk += size
        if block.chunk >= step.count:
            self.finished.add((step.rank, step.threadblock, step.index))
            block.at, block.chunk = block.at + 1, 0

    def _compute(self, block: _Block, first: int, size: int) -> list[Content]:
        step = block.step
        values = self._read(step.rank, step.source, first, size)
        if step.op.receives:
            message = self._incoming(block).popleft()
            if len(message) != size:
                self.mismatch = True
                message = (message + [None] * size)[:size]
            values = message if step.source is None else list(map(_plus, values, message))
        if step.op is Op.REDUCE:
            values = list(map(_plus, values, self._read(step.rank, step.destination, first, size)))
        if step.destination is not None:
            for i, value in enumerate(values):
                at = self.address(step.rank, step.destination.buffer, step.destination.index + first + i)
                self.memory[at] = value
        return values

    def _read(self, rank: int, span: Span | None, first: int, size: int) -> list[Content]:
        if span is None:
            return []
        indices = range(span.index + first, span.index + first + size)
        return [self.memory.get(self.address(rank, span.buffer, index)) for index in indices]


def _plus(left: Content, right: Content) -> Content:
    return None if left is None or right is None else left + right
