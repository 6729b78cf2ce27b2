"""Random DSL programs: any mixture of copies and reduces that the DSL accepts."""

from __future__ import annotations

import random
from dataclasses import dataclass

from commlib.collectives import custom
from commlib.dsl import Chunk, Program
from commlib.errors import CommlibError
from commlib.ir.trace import Trace


@dataclass(frozen=True)
class Shape:
    """What a random program may contain."""

    sizes: tuple[int, ...] = (1, 2, 3)
    local: float = 0.3
    reduces: float = 0.5
    into: float = 0.5
    hints: bool = False
    parallel: bool = False
    instances: int = 1
    blocked: bool = False
    placement: str = "both"
    operations: int = 14
    ranks: int = 3


def random_trace(rng: random.Random, shape: Shape) -> Trace:
    """Record about ``shape.operations`` random operations; those that the DSL refuses are left out."""
    n, size = shape.ranks, rng.randint(3, 6)
    collective = custom("random", [size] * n, [size] * n, {}, [(0, 0)] * n)
    program = Program(
        collective,
        placement=shape.placement,
        instances=shape.instances,
        blocked=shape.blocked,
    )
    scratch = program.scratch("tmp", size)
    buffers = ["input", "output", scratch]
    refs: list[Chunk] = []
    for _ in range(shape.operations * 3):
        try:
            ways = rng.choice((1, 1, 2, 3)) if shape.parallel else 1
            with program.parallelize(ways):
                refs.append(_operate(rng, program, shape, buffers, size, refs))
        except CommlibError:
            continue
        if len(program.trace()) >= shape.operations:
            break
    return program.trace()


def _operate(rng, program, shape, buffers, size, refs) -> Chunk:
    source = _reference(rng, program, shape, buffers, size, refs)
    hints = _hints(rng) if shape.hints else {}
    rank = source.rank if rng.random() < shape.local else rng.randrange(program.ranks)
    if rng.random() >= shape.reduces:
        return source.copy(rank, rng.choice(buffers[1:] if shape.placement != "in" else buffers),
                           rng.randint(0, size - source.count), **hints)  # fmt: skip
    mine = program.chunk(rank, rng.choice(buffers), rng.randint(0, size - source.count), source.count)
    into = (rng.choice(buffers), rng.randint(0, size - source.count)) if rng.random() < shape.into else None
    return mine.reduce(source, into, **hints)


def _reference(rng, program, shape, buffers, size, refs) -> Chunk:
    if refs and rng.random() < 0.6:
        old = rng.choice(refs[-4:])
        if old.count > 1 and rng.random() < 0.3:
            return rng.choice(old.split(old.count))
        return old
    count = rng.choice(shape.sizes)
    return program.chunk(rng.randrange(program.ranks), rng.choice(buffers), rng.randint(0, size - count), count)


def _hints(rng) -> dict[str, int]:
    found = {}
    if rng.random() < 0.4:
        found["channel"] = rng.randrange(3)
    if rng.random() < 0.15:
        found["send_tb"] = rng.randrange(6)
    if rng.random() < 0.15:
        found["recv_tb"] = rng.randrange(6)
    return found
