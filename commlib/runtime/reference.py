"""The definition: a slow and obvious executor of an Algorithm, all ranks in one process, in any order you like.

A slot holds an array, a message is the arrays of a step's chunks, a threadblock is a coroutine that yields what it
waits for, and a schedule picks who goes next. There is no plan here: every shard is padded with zeros to whole
chunks, and what was padded is cut off the outputs. The engine and its transports are tested against this.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from commlib.collectives import Buffer, Placement
from commlib.errors import DeadlineError, ExecutionError, PeerFailedError, SpecError
from commlib.ir.algorithm import Algorithm, Op, Span, Step, Threadblock
from commlib.reductions import Combine, Reduction, reduction
from commlib.runtime.faults import Fault
from commlib.runtime.flow import Slot, address
from commlib.runtime.kernels import NUMPY_COMBINES, truncated
from commlib.runtime.layout import ChunkLayout, plan_layout

Array = npt.NDArray[Any]
Condition = Callable[[], bool]


def _at_once() -> bool:
    return True


@dataclass(eq=False)
class Thread:
    """A threadblock at work: ``ready`` says whether it may go on, ``where`` what it is doing."""

    rank: int
    threadblock: int
    program: Iterator[Condition]
    ready: Condition = field(default_factory=lambda: _at_once)
    where: str = ""

    def go(self) -> bool:
        """Go on to the next thing to wait for; False at the end."""
        following = next(self.program, None)
        if following is not None:
            self.ready = following
        return following is not None


Schedule = Callable[[list[Thread]], int]
"""Given the threads that may go on, in (rank, threadblock) order, the index of the one that does."""


def random_order(seed: int) -> Schedule:
    """Any thread that may go on, at random."""
    generator = random.Random(seed)
    return lambda threads: generator.randrange(len(threads))


def first_first(_threads: list[Thread]) -> int:
    """The first threadblock of the first rank."""
    return 0


def last_first(threads: list[Thread]) -> int:
    """The last threadblock of the last rank."""
    return len(threads) - 1


def rank_first(rank: int) -> Schedule:
    """This rank whenever it may go on, otherwise the others in order."""
    return lambda threads: next((index for index, thread in enumerate(threads) if thread.rank == rank), 0)


@dataclass(frozen=True)
class Outcome:
    """What became of each rank: its output, or the error that it ended with. ``seconds`` is virtual time."""

    outputs: tuple[Array | None, ...]
    errors: tuple[ExecutionError | None, ...]
    seconds: float


def run_local(
    algorithm: Algorithm,
    inputs: Sequence[Array],
    op: str = "sum",
    placement: Placement = Placement.OUT,
    **options: Any,
) -> list[Array]:
    """Run an algorithm on flat arrays, one per rank (empty where a rank has no input); the outputs, flat.

    The options are those of ``simulate_run``.

    Raises:
        SpecError: sizes that do not fit. ExecutionError: the first rank's that failed.
    """
    outcome = simulate_run(algorithm, inputs, op, placement, **options)
    for error in outcome.errors:
        if error is not None:
            raise error
    return [output for output in outcome.outputs if output is not None]


def simulate_run(
    algorithm: Algorithm,
    inputs: Sequence[Array],
    op: str = "sum",
    placement: Placement = Placement.OUT,
    *,
    elements: int | None = None,
    sizes: Sequence[Sequence[int]] | None = None,
    factor: float = 1.0,
    fifo_depth: int = 8,
    schedule: Schedule = first_first,
    tiles: int = 1,
    faults: Sequence[Fault] = (),
    timeout: float = 30.0,
) -> Outcome:
    """As ``run_local``, but what became of every rank is the result. O(chunks moved x threads): it is slow.

    ``elements`` is the size of a shard (by default taken from the inputs), ``tiles`` how often the program repeats,
    ``timeout`` in virtual seconds.
    """
    rule = reduction(op)
    layout = plan_layout(algorithm, placement, _elements(algorithm, inputs, elements), sizes)
    machine = _Machine(algorithm, layout, rule.combine, fifo_depth, tiles, tuple(faults))
    machine.load([_prepare(rule, array, factor) for array in inputs])
    errors = machine.run(schedule, timeout)
    dtype = np.result_type(*inputs)
    outputs = tuple(
        None if error is not None else _finish(rule, machine.output(rank, dtype), algorithm.ranks)
        for rank, error in enumerate(errors)
    )
    return Outcome(outputs, errors, machine.clock)


def _elements(algorithm: Algorithm, inputs: Sequence[Array], elements: int | None) -> int:
    if len(inputs) != algorithm.ranks:
        raise SpecError(f"{algorithm.name}: inputs of {len(inputs)} ranks, not of {algorithm.ranks}")
    if elements is not None:
        return elements
    c = algorithm.collective
    for rank in range(algorithm.ranks):
        if c.input_chunks(rank):
            return len(inputs[rank]) * c.chunks // c.input_chunks(rank)
    return 0


def _prepare(reduce: Reduction, array: Array, factor: float) -> Array:
    if reduce.prepare != "scale":
        return array
    number = np.asarray(int(factor)).astype(array.dtype) if array.dtype.kind in "iu" else factor
    return np.asarray(array * number).astype(array.dtype)


def _finish(reduce: Reduction, array: Array, ranks: int) -> Array:
    if reduce.finish != "divide":
        return array
    divided: Array = truncated(array, ranks) if array.dtype.kind in "iu" else array / ranks
    return divided.astype(array.dtype)


@dataclass
class _Machine:
    algorithm: Algorithm
    layout: ChunkLayout
    combine: Combine
    fifo_depth: int
    tiles: int
    faults: tuple[Fault, ...]
    clock: float = 0.0
    slots: dict[tuple[Slot, int], Array] = field(default_factory=dict)
    fifos: dict[tuple[int, int, int], deque[list[Array]]] = field(default_factory=dict)
    signals: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    done: set[tuple[int, int]] = field(default_factory=set)
    dead: dict[int, str] = field(default_factory=dict)

    def load(self, inputs: Sequence[Array]) -> None:
        """Put each input chunk, padded to the nominal length and cut in tiles, into its slot."""
        for rank, array in enumerate(inputs):
            for index, (start, length) in enumerate(self.layout.user_slots(rank, Buffer.INPUT)):
                chunk = np.zeros(self.layout.nominal, dtype=array.dtype)
                chunk[:length] = array[start : start + length]
                for tile, part in enumerate(np.array_split(chunk, self.tiles)):
                    self.slots[self._slot(rank, Buffer.INPUT, index), tile] = part

    def output(self, rank: int, dtype: np.dtype[Any]) -> Array:
        """The output of a rank without its padding; slots never written are zeros."""
        parts = [np.zeros(0, dtype=dtype)]
        empty = np.array_split(np.zeros(self.layout.nominal, dtype=dtype), self.tiles)
        for index, (_, length) in enumerate(self.layout.user_slots(rank, Buffer.OUTPUT)):
            slot = self._slot(rank, Buffer.OUTPUT, index)
            parts.append(np.concatenate([self.slots.get((slot, t), empty[t]) for t in range(self.tiles)])[:length])
        return np.concatenate(parts)

    def run(self, schedule: Schedule, timeout: float) -> tuple[ExecutionError | None, ...]:
        """Let threads go on until none can; then say what became of the ranks."""
        count = len(self.algorithm.tb_rank)
        threads = [self._thread(self.algorithm.threadblock(row)) for row in range(count)]
        threads = [thread for thread in threads if thread.go()]
        while threads and self.clock <= timeout:
            able = [thread for thread in threads if thread.rank not in self.dead and thread.ready()]
            if able:
                chosen = able[schedule(able)]
                if not chosen.go():
                    threads.remove(chosen)
            elif not self._wake():
                self.clock = timeout
                break
        return tuple(self._error(rank, threads) for rank in range(self.algorithm.ranks))

    def _thread(self, block: Threadblock) -> Thread:
        thread = Thread(block.rank, block.index, iter(()))
        thread.program = self._program(block, thread)
        return thread

    def _program(self, block: Threadblock, thread: Thread) -> Iterator[Condition]:
        begun = self._begun
        for tile in range(self.tiles):
            for number in block.steps:
                step = self.algorithm.step(number)
                thread.where = f"threadblock {block.index} step {step.index} ({step})"
                waits = {int(dep) for dep in self._dependences(number)}
                yield lambda waits=waits, tile=tile: all((dep, tile) in self.done for dep in waits)  # type: ignore[misc]
                resume = self._strike(block.rank, begun.setdefault(block.rank, 0))
                begun[block.rank] += 1
                yield lambda resume=resume: self.clock >= resume  # type: ignore[misc]
                yield from self._do(block, step, tile)
                self.done.add((number, tile))

    def _do(self, block: Threadblock, step: Step, tile: int) -> Iterator[Condition]:
        """One step: all sources are read first; then take a message, combine, keep, pass on."""
        if step.op.one_sided:
            yield from self._do_one_sided(block, step, tile)
            return
        into, out = (self._fifo(block.recv, block.rank, block), self._fifo(block.rank, block.send, block))
        sources = [self.slots[slot, tile] for slot in self._span(block.rank, step.source)]
        targets = self._span(block.rank, step.destination)
        if step.op is Op.REDUCE:
            sources = [self._add(self.slots[slot, tile], source) for slot, source in zip(targets, sources, strict=True)]
        if step.op.receives:
            yield lambda: len(into) > 0
            message = into.popleft()
            sources = list(map(self._add, sources, message)) if step.op.has_source else message
        if step.op.has_destination:
            self.slots.update({(slot, tile): value for slot, value in zip(targets, sources, strict=True)})
        if step.op.sends:
            yield lambda: len(out) < self.fifo_depth
            out.append(sources)

    def _do_one_sided(self, block: Threadblock, step: Step, tile: int) -> Iterator[Condition]:
        """A step on slots of any rank. Writes are done with the step: one order among those that are allowed."""
        if step.op is Op.SIGNAL and step.peer is not None:
            self.signals[block.rank, step.peer, block.channel] += 1
        elif step.op is Op.WAIT and step.peer is not None:
            connection = (step.peer, block.rank, block.channel)
            yield lambda: self.signals[connection] > 0
            self.signals[connection] -= 1
        elif step.sources:
            operands = [[self.slots[slot, tile] for slot in self._span(r.rank, r.span)] for r in step.sources]
            values = [reduce(self._add, column) for column in zip(*operands, strict=True)]
            for target in step.destinations:
                slots = self._span(target.rank, target.span)
                self.slots.update({(slot, tile): value for slot, value in zip(slots, values, strict=True)})

    def _add(self, left: Array, right: Array) -> Array:
        with np.errstate(all="ignore"):
            combined: Array = NUMPY_COMBINES[self.combine](left, right)
        return combined

    def _fifo(self, sender: int | None, receiver: int | None, block: Threadblock) -> deque[list[Array]]:
        if sender is None or receiver is None:
            return deque()
        return self.fifos.setdefault((sender, receiver, block.channel), deque())

    def _span(self, rank: int, span: Span | None) -> list[Slot]:
        if span is None:
            return []
        return [self._slot(rank, span.buffer, span.index + k) for k in range(span.count)]

    def _slot(self, rank: int, buffer: Buffer, index: int) -> Slot:
        return address(self.algorithm.collective, self.layout.placement, rank, buffer, index)

    def _dependences(self, number: int) -> Sequence[int]:
        starts = self.algorithm.dep_start
        return [int(dep) for dep in self.algorithm.dep[starts[number] : starts[number + 1]]]

    def __post_init__(self) -> None:
        self._begun: dict[int, int] = {}
        self._resumes: list[float] = []

    def _strike(self, rank: int, step: int) -> float:
        """Do what the script says to a rank that begins its ``step``-th step; the time at which it goes on."""
        for fault in self.faults:
            if (fault.rank, fault.step) == (rank, step):
                if fault.action == "delay":
                    self._resumes.append(self.clock + fault.seconds)
                    return self._resumes[-1]
                self.dead[rank] = f"rank {rank} was scripted to {fault.action} at its step {step}"
        return self.clock

    def _wake(self) -> bool:
        """Let time pass until the next delayed rank goes on, if there is one."""
        later = [time for time in self._resumes if time > self.clock]
        self.clock = min(later, default=self.clock)
        return bool(later)

    def _error(self, rank: int, threads: list[Thread]) -> ExecutionError | None:
        waiting = [thread for thread in threads if thread.rank == rank]
        if rank in self.dead:
            return ExecutionError(self.dead[rank], rank=rank)
        if not waiting:
            return None
        where = f"rank {rank} waits in {waiting[0].where}"
        if self.dead:
            return PeerFailedError(f"{where}: {'; '.join(self.dead.values())}", rank=rank, root=min(self.dead))
        return DeadlineError(f"{where} past its deadline", rank=rank, threadblock=waiting[0].threadblock)
