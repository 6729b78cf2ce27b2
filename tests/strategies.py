"""Hypothesis strategies for values that several packages' tests need."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from hypothesis import strategies as st

from commlib.collectives import COLLECTIVES, ROOTED, Buffer, Collective, Placement, custom
from commlib.ir.algorithm import HAS_DESTINATION, HAS_SOURCE, Algorithm, Op
from commlib.ir.builder import AlgorithmBuilder

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\ufffe\uffff", min_codepoint=32), max_size=12)


@st.composite
def standard_collectives(draw: st.DrawFn, max_ranks: int = 4, max_chunks: int = 3) -> Collective:
    """Any standard collective."""
    name, ranks = draw(st.sampled_from(COLLECTIVES)), draw(st.integers(1, max_ranks))
    root = draw(st.integers(0, ranks - 1)) if name in ROOTED else None
    return Collective(name, ranks, draw(st.integers(1, max_chunks)), root)


@st.composite
def custom_collectives(draw: st.DrawFn, max_ranks: int = 3, max_chunks: int = 3) -> Collective:
    """A user's own collective, specified or not, with or without an in-place form, of one or two chunks a shard."""
    ranks = draw(st.integers(1, max_ranks))
    sizes = st.lists(st.integers(0, max_chunks), min_size=ranks, max_size=ranks)
    inputs, outputs = draw(sizes), draw(sizes)
    contributions = [(r, k) for r in range(ranks) for k in range(inputs[r])]
    wanted = st.frozensets(st.sampled_from(contributions), max_size=3) if contributions else st.just(frozenset())
    slots = [(r, k) for r in range(ranks) for k in range(outputs[r])]
    sources = {slot: draw(wanted) for slot in slots if draw(st.booleans())}
    offsets = [(draw(st.integers(0, min(2, size))), 0) for size in outputs] if draw(st.booleans()) else None
    made = custom("mine", inputs, outputs, sources, offsets)
    conditions = replace(made.custom, specified=draw(st.booleans())) if made.custom else None
    return replace(made, custom=conditions, chunks=draw(st.integers(1, 2)))


@dataclass
class _Block:
    rank: int
    index: int
    send: int | None
    recv: int | None
    channel: int
    rows: list[tuple[Op, tuple[Buffer, int] | None, tuple[Buffer, int] | None, int, list[tuple[int, int]]]] = field(
        default_factory=list
    )


@st.composite
def algorithms(
    draw: st.DrawFn, collectives: st.SearchStrategy[Collective], nops: bool = False, max_steps: int = 16
) -> Algorithm:
    """A well-formed Algorithm that means nothing: random steps, dependences free of circles, lists sorted."""
    collective, random = draw(collectives), draw(st.randoms(use_true_random=False))
    scratch = [random.randint(0, 3) for _ in range(collective.ranks)]
    blocks = [b for rank in range(collective.ranks) for b in _blocks(random, rank, collective.ranks)]
    for _ in range(random.randint(0, max_steps) if blocks else 0):
        _add_step(random, collective, scratch, blocks, nops)
    placements = draw(st.sampled_from([{Placement.IN}, {Placement.OUT}, set(Placement)]))
    protocol = draw(st.sampled_from(["Simple", "LL", "LL128"]))
    builder = AlgorithmBuilder(draw(NAMES), collective, scratch, frozenset(placements), protocol)
    for block in blocks:
        builder.threadblock(block.rank, block.send, block.recv, block.channel)
        for line, row in enumerate(block.rows, 1):
            builder.step(*row, line=line)
    return builder.build(draw(st.sampled_from([None, "source.py"])))


def _blocks(random: Random, rank: int, ranks: int) -> list[_Block]:
    peers = [None, *(peer for peer in range(ranks) if peer != rank)]
    count = random.randint(0, 3)
    return [_Block(rank, i, random.choice(peers), random.choice(peers), random.randint(0, 2)) for i in range(count)]


def _add_step(random: Random, c: Collective, scratch: list[int], blocks: list[_Block], nops: bool) -> None:
    block = random.choice(blocks)
    ops = [op for op in Op if not op.one_sided and (op is not Op.NOP or nops)]
    ops = [op for op in ops if (not op.sends or block.send is not None) and (not op.receives or block.recv is not None)]
    sizes = dict(
        zip(Buffer, (c.input_chunks(block.rank), c.output_chunks(block.rank), scratch[block.rank]), strict=True)
    )
    places = [(buffer, index) for buffer, size in sizes.items() for index in range(size)]
    op = random.choice(ops)
    if op is not Op.NOP and not places:
        return
    source = random.choice(places) if HAS_SOURCE[op] else None
    destination = random.choice(places) if HAS_DESTINATION[op] else None
    room = [sizes[slot[0]] - slot[1] for slot in (source, destination) if slot is not None]
    before = [(b.index, i) for b in blocks if b.rank == block.rank for i in range(len(b.rows))]
    depends = sorted(set(random.choices(before, k=random.randint(0, 3)))) if before and random.random() < 0.6 else []
    block.rows.append((op, source, destination, random.randint(1, min(room)) if room else 0, depends))
