"""Random DSL programs: any mixture of copies and reduces that the DSL accepts."""

from __future__ import annotations

import random
from dataclasses import dataclass

from commlib.collectives import Collective, collective, custom
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
    collective = _collective(rng, shape)
    program = Program(
        collective,
        placement=shape.placement,
        instances=shape.instances,
        blocked=shape.blocked,
    )
    buffers = ["input", "output", *(program.scratch(name, rng.randint(3, 6)) for name in ("tmp", "more"))]
    refs: list[Chunk] = []
    for _ in range(shape.operations * 4):
        try:
            ways = rng.choice((1, 1, 2, 3)) if shape.parallel else 1
            with program.parallelize(ways):
                refs.append(_operate(rng, program, shape, buffers, refs))
        except CommlibError:
            continue
        if len(program.trace()) >= shape.operations:
            break
    return program.trace()


def _collective(rng: random.Random, shape: Shape) -> Collective:
    """A custom collective, whose buffers meet anywhere in place, or a standard one with room for spans.

    Blocked instances number the chunks of a shard anew, which a program that is no right algorithm notices: so there
    the shards are single chunks, those of a custom collective.
    """
    n, size = shape.ranks, rng.randint(3, 6)
    if not shape.blocked and rng.random() < 0.4:
        name = rng.choice(("allgather", "reducescatter", "alltoall", "allreduce", "gather", "scatter", "broadcast"))
        return collective(name, n, size if name in ("allreduce", "broadcast") else 2)
    offsets = [rng.choice(((0, 0), (rng.randint(0, size), 0), (0, rng.randint(0, size)))) for _ in range(n)]
    return custom("random", [size] * n, [size] * n, {}, offsets)


def _operate(rng, program, shape, buffers, refs) -> Chunk:
    source = _reference(rng, program, shape, buffers, refs)
    hints = _hints(rng) if shape.hints else {}
    rank = source.rank if rng.random() < shape.local else rng.randrange(program.ranks)
    if rng.random() >= shape.reduces:
        target = rng.choice(buffers[1:] if shape.placement != "in" else buffers)
        return source.copy(rank, target, rng.randint(0, 6), **hints)
    mine = program.chunk(rank, rng.choice(buffers), rng.randint(0, 5), source.count)
    into = (rng.choice(buffers), rng.randint(0, 5)) if rng.random() < shape.into else None
    return mine.reduce(source, into, **hints)


def _reference(rng, program, shape, buffers, refs) -> Chunk:
    if refs and rng.random() < 0.6:
        old = rng.choice(refs[-4:])
        if old.count > 1 and rng.random() < 0.3:
            return rng.choice(old.split(old.count))
        if rng.random() < 0.3:
            return _grouped(rng, refs, old)
        return old
    return program.chunk(rng.randrange(program.ranks), rng.choice(buffers), rng.randint(0, 5), rng.choice(shape.sizes))


def _grouped(rng, refs, chunk) -> Chunk:
    """The chunk with a neighbour that was made before, if there is one (and not too large)."""
    for other in rng.sample(refs, len(refs)):
        near = other.index + other.count == chunk.index or chunk.index + chunk.count == other.index
        if near and (other.rank, other.buffer) == (chunk.rank, chunk.buffer) and other.count + chunk.count <= 4:
            return chunk.group(other)
    return chunk


def _hints(rng) -> dict[str, int]:
    found = {}
    if rng.random() < 0.4:
        found["channel"] = rng.randrange(3)
    if rng.random() < 0.15:
        found["send_tb"] = rng.randrange(6)
    if rng.random() < 0.15:
        found["recv_tb"] = rng.randrange(6)
    return found
