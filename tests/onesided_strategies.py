"""Hypothesis strategy for well-formed one-sided algorithms that mean nothing: any operations, operands, dependences."""

from __future__ import annotations

from random import Random

from hypothesis import strategies as st
from strategies import NAMES, custom_collectives, standard_collectives

from commlib.collectives import Buffer, Collective, Placement
from commlib.ir.algorithm import HAS_DESTINATION, HAS_SOURCE, Algorithm, Op
from commlib.ir.builder import AlgorithmBuilder, Slot


@st.composite
def one_sided_algorithms(draw: st.DrawFn, max_steps: int = 16) -> Algorithm:
    """A mix of one- and two-sided steps; each refers to slots that exist, and waits for steps before it."""
    collective = draw(standard_collectives() | custom_collectives())
    made = _Maker(collective, draw(st.randoms(use_true_random=False)))
    placements = draw(st.sampled_from([{Placement.IN}, {Placement.OUT}, set(Placement)]))
    builder = AlgorithmBuilder(draw(NAMES), collective, made.scratch, frozenset(placements), "Simple")
    for rank in range(collective.ranks):
        made.rank(builder, rank, max_steps)
    return builder.build(draw(st.sampled_from([None, "source.py"])))


class _Maker:
    def __init__(self, collective: Collective, random: Random) -> None:
        self.collective, self.random = collective, random
        self.scratch = [random.randint(2, 4) for _ in range(collective.ranks)]

    def rank(self, builder: AlgorithmBuilder, rank: int, max_steps: int) -> None:
        others = [peer for peer in range(self.collective.ranks) if peer != rank]
        before: list[tuple[int, int]] = []
        for _ in range(self.random.randint(0, 3)):
            send, recv = (self.random.choice([None, *others]) for _ in range(2))
            block = builder.threadblock(rank, send, recv, self.random.randint(0, 2))
            for step in range(self.random.randint(0, max_steps // 3)):
                ops = [op for op in Op if (send is not None or not op.sends) and (recv is not None or not op.receives)]
                remote = (Op.PUT, Op.GET, Op.SIGNAL, Op.WAIT, Op.FLUSH)
                op = self.random.choice([op for op in ops if others or op not in remote])
                depends = sorted(set(self.random.choices(before, k=self.random.randint(0, 2)))) if before else []
                self.step(builder, rank, op, others, depends, line=step)
                before.append((block, step))

    def step(
        self,
        builder: AlgorithmBuilder,
        rank: int,
        op: Op,
        others: list[int],
        depends: list[tuple[int, int]],
        line: int,
    ) -> None:
        if op.synchronizes:
            builder.step(op, None, None, 0, depends, line, peer=self.random.choice(others))
        elif op.one_sided:
            sources, destinations, count = self.operands(op, rank, others)
            builder.step(op, None, None, count, depends, line, sources=sources, destinations=destinations)
        else:
            slots = [self.slots([rank], 1, 1)[0][1:] if has[op] else None for has in (HAS_SOURCE, HAS_DESTINATION)]
            builder.step(op, *slots, 0 if op is Op.NOP else 1, depends, line)

    def operands(self, op: Op, rank: int, others: list[int]) -> tuple[list[Slot], list[Slot], int]:
        everyone = [rank, *others]
        readers = {Op.PUT: [rank], Op.STORE: [rank], Op.GET: others}.get(op, everyone)
        writers = {Op.PUT: others, Op.GET: [rank], Op.READ_REDUCE: [rank]}.get(op, everyone)
        reads = self.random.randint(1, 4) if op in (Op.READ_REDUCE, Op.READ_REDUCE_STORE) else 1
        writes = self.random.randint(1, 4) if op in (Op.STORE, Op.READ_REDUCE_STORE) else 1
        count = self.random.choice([1, 1, 2])
        sources = self.slots(readers, reads, count)
        destinations = list(dict.fromkeys(self.slots(writers, writes, count)))
        if count > 1 and _overlap(sources, destinations, count):
            count = 1
        return sources, destinations, count

    def slots(self, ranks: list[int], number: int, count: int) -> list[Slot]:
        c = self.collective
        sizes = {(r, b): c.buffer_chunks(r, b, self.scratch) for r in ranks for b in Buffer}
        places = self.random.choices([place for place, size in sizes.items() if size >= count], k=number)
        return [(rank, buffer, self.random.randint(0, sizes[rank, buffer] - count)) for rank, buffer in places]


def _overlap(sources: list[Slot], destinations: list[Slot], count: int) -> bool:
    return any(a[:2] == b[:2] and 0 < abs(a[2] - b[2]) < count for a in (*sources, *destinations) for b in destinations)
