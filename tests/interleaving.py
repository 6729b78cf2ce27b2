"""The slow and obvious machine for Algorithms, on contents, under any interleaving and FIFO depth.

A step that receives and sends either holds the message in hand while it waits for room (then it frees the slot it
took the message from first), or, ``atomic``, does both at once, as NCCL does; that needs one slot more.

It knows nothing of the verifier or the runtimes: one step at a time, chosen by a random generator among those that
can run now. Reading an empty slot gives EMPTY, as in run_trace.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import Algorithm, Step
from commlib.ir.contents import EMPTY, ContentTable
from commlib.ir.trace import address_map


class DeadlockError(Exception):
    """No step can run, but some are left."""


class Machine:
    """One run of an Algorithm. ``policy`` picks among the runnable threadblocks."""

    def __init__(self, algorithm: Algorithm, placement: Placement, depth: int, rng: random.Random, table: ContentTable):
        self.algorithm, self.depth, self.rng, self.table = algorithm, depth, rng, table
        self.atomic = depth > 1 and rng.random() < 0.5
        self.in_hand: dict[int, list[int]] = {}
        self.space = address_map(algorithm.collective, algorithm.scratch_chunks, placement)
        self.memory = [[EMPTY] * span for span in self.space.span]
        for rank in range(algorithm.ranks):
            first = self.space.base[rank][Buffer.INPUT]
            for index in range(algorithm.collective.input_chunks(rank)):
                self.memory[rank][first + index] = table.initial(rank, index)
        self.blocks = [(r, tb) for r in range(algorithm.ranks) for tb in algorithm.threadblocks(r)]
        self.steps = [[algorithm.step(n) for n in tb.steps] for _, tb in self.blocks]
        self.at = [0] * len(self.blocks)
        self.done: set[tuple[int, int, int]] = set()
        self.fifo: dict[tuple[int, int, int], deque[list[int]]] = defaultdict(deque)

    def run(self) -> list[list[int]]:
        """Run to the end; returns each rank's memory by address."""
        policy = self.rng.choice(["random", "first", "last", "sticky"])
        last = 0
        while True:
            ready = [b for b in range(len(self.blocks)) if self._can_run(b)]
            if not ready:
                break
            if policy == "sticky" and last in ready:
                pick = last
            else:
                pick = {"first": ready[0], "last": ready[-1]}.get(policy, self.rng.choice(ready))
            last = pick
            self._run(pick)
        if any(at < len(steps) for at, steps in zip(self.at, self.steps, strict=True)):
            raise DeadlockError([str(s[a]) for a, s in zip(self.at, self.steps, strict=True) if a < len(s)])
        return self.memory

    def _can_run(self, block: int) -> bool:
        if self.at[block] == len(self.steps[block]):
            return False
        rank, tb = self.blocks[block]
        step = self.steps[block][self.at[block]]
        if any((rank, other, index) not in self.done for other, index in step.depends):
            return False
        if block in self.in_hand:
            return len(self.fifo[(rank, tb.send, tb.channel)]) < self.depth
        if step.op.receives and not self.fifo[(tb.recv, rank, tb.channel)]:
            return False
        full = step.op.sends and len(self.fifo[(rank, tb.send, tb.channel)]) >= self.depth
        return not full or (step.op.receives and not self.atomic)

    def _run(self, block: int) -> None:
        rank, tb = self.blocks[block]
        step = self.steps[block][self.at[block]]
        if block in self.in_hand:
            self.fifo[(rank, tb.send, tb.channel)].append(self.in_hand.pop(block))
        elif not self._begin(block, rank, tb, step):
            return
        self.done.add((rank, tb.index, self.at[block]))
        self.at[block] += 1

    def _begin(self, block: int, rank: int, tb, step: Step) -> bool:
        """Do a step; False if its message is in hand and waits for room in the FIFO."""
        message = self.fifo[(tb.recv, rank, tb.channel)].popleft() if step.op.receives else None
        value = self._result(rank, step, message)
        if step.destination is not None:
            start = self.space.base[rank][step.destination.buffer] + step.destination.index
            self.memory[rank][start : start + step.count] = value
        if step.op.sends and message is not None and not self.atomic:
            self.in_hand[block] = value
            return False
        if step.op.sends:
            self.fifo[(rank, tb.send, tb.channel)].append(value)
        return True

    def _result(self, rank: int, step: Step, message: list[int] | None) -> list[int]:
        def load(span) -> list[int]:
            start = self.space.base[rank][span.buffer] + span.index
            return self.memory[rank][start : start + span.count]

        operands = [message] if message is not None else []
        if step.source is not None:
            operands.append(load(step.source))
        if step.op.short == "re":
            operands.append(load(step.destination))
        if not step.op.reduces:
            return operands[0] if operands else []
        return [EMPTY if EMPTY in (a, b) else self.table.add(a, b) for a, b in zip(*operands, strict=True)]
