"""Algorithms with one-sided steps as plans: lists of threadblocks that a test can change and build."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

from commlib.collectives import Collective
from commlib.errors import AlgorithmError
from commlib.ir.algorithm import Algorithm, Op
from commlib.ir.builder import AlgorithmBuilder, Slot


@dataclass
class Row:
    op: Op
    count: int
    depends: list[tuple[int, int]]
    peer: int | None
    sources: list[Slot]
    destinations: list[Slot]


@dataclass
class Block:
    rank: int
    send: int | None
    recv: int | None
    channel: int
    rows: list[Row] = field(default_factory=list)


@dataclass
class Plan:
    """An Algorithm that can be changed."""

    name: str
    collective: Collective
    scratch: tuple[int, ...]
    blocks: list[Block]

    @staticmethod
    def of(algorithm: Algorithm) -> Plan:
        plan = Plan(algorithm.name, algorithm.collective, algorithm.scratch_chunks, [])
        for rank in range(algorithm.ranks):
            for tb in algorithm.threadblocks(rank):
                plan.blocks.append(Block(rank, tb.send, tb.recv, tb.channel))
                for step in map(algorithm.step, tb.steps):
                    slots = [
                        [(span.rank, span.span.buffer, span.span.index) for span in spans]
                        for spans in (step.sources, step.destinations)
                    ]
                    peer = step.peer if step.op.synchronizes else None
                    plan.blocks[-1].rows.append(Row(step.op, step.count, list(step.depends), peer, *slots))
        return plan

    def build(self) -> Algorithm | None:
        """The Algorithm, or None where there can be none (a slot outside its buffer, no such step, ...)."""
        builder = AlgorithmBuilder(self.name, self.collective, self.scratch)
        try:
            for block in self.blocks:
                builder.threadblock(block.rank, block.send, block.recv, block.channel)
                for row in block.rows:
                    self._step(builder, block.rank, row)
            return builder.build()
        except AlgorithmError:
            return None

    def _step(self, builder: AlgorithmBuilder, rank: int, row: Row) -> None:
        if row.op.one_sided:
            slots = {"sources": row.sources, "destinations": row.destinations}
            builder.step(row.op, None, None, row.count, row.depends, peer=row.peer, **slots)
            return
        if any(slot[0] != rank for slot in row.sources + row.destinations):
            raise AlgorithmError("a two-sided step has no slots of others")
        ends = [(slots[0][1], slots[0][2]) if slots else None for slots in (row.sources, row.destinations)]
        builder.step(row.op, *ends, row.count, row.depends)

    def changed(self, change: Callable[[Plan], object]) -> Plan:
        other = copy.deepcopy(self)
        change(other)
        return other

    def index(self, block: int) -> int:
        return [other.rank for other in self.blocks[:block]].count(self.blocks[block].rank)

    def drop(self, block: int, at: int) -> None:
        """Drop a step; dependences on it go, and later steps of its threadblock move up."""
        index, rank = self.index(block), self.blocks[block].rank
        del self.blocks[block].rows[at]
        for row in (row for other in self.blocks if other.rank == rank for row in other.rows):
            kept = [dep for dep in row.depends if dep != (index, at)]
            row.depends = [(tb, step - (tb == index and step > at)) for tb, step in kept]
