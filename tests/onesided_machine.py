"""The slow and obvious machine for one-sided Algorithms: whole numbers as data, any interleaving, late puts.

It knows nothing of the verifier. Everything that can happen is an actor: a threadblock, a write that is in flight, a
signal on its way, a user who calls or comes back. Actors go in small stages (one slot read, one slot written), and
between two stages any other may go. A write in flight reads and writes when it likes, until a flush or the arrival of
a later signal needs it. Users fill their tensors with rubbish until they call and as soon as they are back, so that
whoever reads too early or too late gets that, and whoever writes then destroys what is theirs.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import Algorithm, Op, Step, Threadblock

Ready = Callable[[], bool] | None
Stages = Iterator[Ready]
Cell = tuple[int, str, int]
PEERLESS = -1


class Actor:
    """Something that goes on by itself; ``ready`` says whether it can now."""

    def __init__(self, stages: Stages, urgency: float) -> None:
        self.stages, self.urgency, self.over = stages, urgency, False
        self.ready: Ready = None

    def can_go(self) -> bool:
        return not self.over and (self.ready is None or self.ready())

    def go(self) -> None:
        try:
            self.ready = next(self.stages)
        except StopIteration:
            self.over = True


class Machine:
    """One run. ``right`` says afterwards whether it ended, with right results and nobody's tensors spoilt."""

    def __init__(self, algorithm: Algorithm, placement: Placement, rng: random.Random, depth: int = 3) -> None:
        self.algorithm, self.placement, self.rng, self.depth = algorithm, placement, rng, depth
        self.by_urgency = rng.random() < 0.7
        self.inputs = {
            (rank, index): self.rubbish()
            for rank in range(algorithm.ranks)
            for index in range(algorithm.collective.input_chunks(rank))
        }
        self.memory: dict[Cell, int] = defaultdict(self.rubbish)
        self.entered: set[int] = set()
        self.done: set[tuple[int, int, int]] = set()
        self.running = Counter({rank: len(list(algorithm.threadblocks(rank))) for rank in range(algorithm.ranks)})
        self.fifos: dict[tuple[int | None, int | None, int], deque[list[int]]] = defaultdict(deque)
        self.given: Counter[tuple[int, int, int]] = Counter()
        self.taken: Counter[tuple[int, int, int]] = Counter()
        self.sent: dict[tuple[int, int, int], list[Actor]] = defaultdict(list)
        self.in_flight: dict[tuple[int, int, int], list[Actor]] = defaultdict(list)
        self.results: dict[int, bool] = {}
        self.outputs: dict[tuple[int, int], int] = {}
        self.left_behind: dict[Cell, int] = {}
        self.actors: list[Actor] = []
        for rank in range(algorithm.ranks):
            self.start(self.user(rank))
            for block in algorithm.threadblocks(rank):
                self.start(self.threadblock(block))

    def rubbish(self) -> int:
        return self.rng.getrandbits(60)

    def start(self, stages: Stages) -> Actor:
        self.actors.append(Actor(stages, self.rng.random()))
        return self.actors[-1]

    def run(self) -> Machine:
        while able := [actor for actor in self.actors if actor.can_go()]:
            (min(able, key=lambda actor: actor.urgency) if self.by_urgency else self.rng.choice(able)).go()
            self.actors = [actor for actor in self.actors if not actor.over]
        return self

    @property
    def ended(self) -> bool:
        return not self.actors

    @property
    def right(self) -> bool:
        return (
            self.ended
            and all(self.results.values())
            and self.given == self.taken
            and not any(self.fifos.values())
            and all(self.memory[cell] == value for cell, value in self.left_behind.items())
        )

    def cell(self, rank: int, buffer: Buffer, index: int) -> Cell:
        if buffer is Buffer.SCRATCH or self.placement is Placement.OUT:
            return rank, buffer.letter, index
        return rank, "tensor", index + self.algorithm.collective.in_place_offsets(rank)[buffer]

    def cells(self, rank: int, buffer: Buffer) -> list[Cell]:
        size = self.algorithm.buffer_chunks(rank, buffer)
        return [self.cell(rank, buffer, index) for index in range(size)]

    def user(self, rank: int) -> Stages:
        """Fill the input, call, come back, look at the result, use the tensors for something else."""
        tensors = [*self.cells(rank, Buffer.INPUT), *self.cells(rank, Buffer.OUTPUT)]
        yield None
        self.memory |= {cell: self.rubbish() for cell in tensors}
        self.memory |= {cell: self.inputs[rank, i] for i, cell in enumerate(self.cells(rank, Buffer.INPUT))}
        self.entered.add(rank)
        yield lambda: not self.running[rank]
        self.outputs |= {(rank, i): self.memory[cell] for i, cell in enumerate(self.cells(rank, Buffer.OUTPUT))}
        self.results[rank] = self.is_right(rank)
        self.left_behind |= {cell: self.rubbish() for cell in tensors}
        self.memory |= self.left_behind

    def is_right(self, rank: int) -> bool:
        for index, cell in enumerate(self.cells(rank, Buffer.OUTPUT)):
            wanted = self.algorithm.collective.expected(rank, index)
            if wanted is not None and self.memory[cell] != sum(self.inputs[one] for one in wanted):
                return False
        kept = [self.memory[cell] == self.inputs[rank, i] for i, cell in enumerate(self.cells(rank, Buffer.INPUT))]
        return self.placement is Placement.IN or all(kept)

    def threadblock(self, block: Threadblock) -> Stages:
        yield lambda: block.rank in self.entered
        for step in map(self.algorithm.step, block.steps):
            yield lambda step=step: all((step.rank, *dep) in self.done for dep in step.depends)
            if step.op.synchronizes:
                yield from self.synchronize(step, block.channel)
            else:
                yield from self.move(step, block)
            self.done.add((block.rank, block.index, step.index))
        self.running[block.rank] -= 1

    def synchronize(self, step: Step, channel: int) -> Stages:
        peer = step.peer if step.peer is not None else PEERLESS
        mine = (step.rank, step.threadblock, peer)
        if step.op is Op.FLUSH:
            yield lambda: all(write.over for write in self.in_flight[mine])
        elif step.op is Op.SIGNAL:
            counter = (step.rank, peer, channel)
            ahead = [*self.in_flight[mine], *self.sent[counter]]
            self.sent[counter].append(self.start(self.signal(counter, ahead)))
        else:
            counter = (peer, step.rank, channel)
            yield lambda: self.given[counter] > self.taken[counter]
            self.taken[counter] += 1

    def signal(self, counter: tuple[int, int, int], ahead: list[Actor]) -> Stages:
        yield lambda: all(one.over for one in ahead)
        self.given[counter] += 1

    def move(self, step: Step, block: Threadblock) -> Stages:
        sources = [self.spread(span.rank, span.span.buffer, span.span.index, step.count) for span in step.sources]
        targets = [self.spread(span.rank, span.span.buffer, span.span.index, step.count) for span in step.destinations]
        if step.op is Op.PUT:
            self.fly(step, targets[0][0][0], self.late_put(sources[0], targets[0]))
            return
        values = [0] * step.count
        if step.op.receives:
            incoming = self.fifos[block.recv, step.rank, block.channel]
            yield lambda: bool(incoming)
            values = incoming.popleft()
            if len(values) != step.count:
                return
        for cells in sources + (targets if step.op is Op.REDUCE else []):
            for i, cell in enumerate(cells):
                values[i] += self.memory[cell]
            yield None
        for cells in targets:
            if cells[0][0] != step.rank:
                self.fly(step, cells[0][0], self.late_write(cells, values))
                continue
            for cell, value in zip(cells, values, strict=True):
                self.memory[cell] = value
            yield None
        if step.op.sends:
            outgoing = self.fifos[step.rank, block.send, block.channel]
            yield lambda: len(outgoing) < self.depth
            outgoing.append(values)

    def spread(self, rank: int, buffer: Buffer, index: int, count: int) -> list[Cell]:
        return [self.cell(rank, buffer, index + i) for i in range(count)]

    def fly(self, step: Step, peer: int, stages: Stages) -> None:
        self.in_flight[step.rank, step.threadblock, peer].append(self.start(stages))

    def late_put(self, source: list[Cell], target: list[Cell]) -> Stages:
        yield None
        values = [self.memory[cell] for cell in source]
        yield None
        self.memory |= dict(zip(target, values, strict=True))

    def late_write(self, target: list[Cell], values: list[int]) -> Stages:
        yield None
        self.memory |= dict(zip(target, values, strict=True))


def runs(
    algorithm: Algorithm,
    placement: Placement,
    seed: int,
    number: int,
    judge: Callable[[Machine], bool] = lambda machine: machine.right,
) -> Iterator[bool]:
    """Whether the algorithm is right, in one run after another."""
    for run in range(number):
        yield judge(Machine(algorithm, placement, random.Random(seed * 100_003 + run)).run())
