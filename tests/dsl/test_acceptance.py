"""The language refuses what has no meaning, and only that: compared with a model that knows nothing of it."""

from __future__ import annotations

import random

import pytest

from commlib.collectives import custom
from commlib.dsl import Program
from commlib.errors import CommlibError

RANKS, SIZE = 2, 4


class Model:
    """Per (rank, buffer, index): how often it was written, or None if never. In place, i and o are the same."""

    def __init__(self, placement: str) -> None:
        self.placement = placement
        self.written: dict[tuple[int, str, int], int] = {}
        for rank in range(RANKS):
            for index in range(SIZE):
                self.written[self.key(rank, "input", index)] = 0

    def key(self, rank: int, buffer: str, index: int) -> tuple[int, str, int]:
        shared = self.placement == "in" and buffer == "output"
        return (rank, "input" if shared else buffer, index)

    def span(self, rank: int, buffer: str, index: int, count: int) -> list[tuple[int, str, int]] | None:
        if not (0 <= rank < RANKS and index >= 0 and count >= 1 and index + count <= SIZE):
            return None
        return [self.key(rank, buffer, k) for k in range(index, index + count)]

    def take(self, *place: object) -> dict | None:
        span = self.span(*place)
        if span is None or any(key not in self.written for key in span):
            return None
        return {key: self.written[key] for key in span}

    def fresh(self, taken: dict) -> bool:
        return all(self.written[key] == stamp for key, stamp in taken.items())

    def write(self, *place: object) -> bool:
        span = self.span(*place)
        if span is None or (self.placement == "out" and place[1] == "input"):
            return False
        for key in span:
            self.written[key] = self.written.get(key, 0) + 1
        return True


@pytest.mark.parametrize("placement", ["in", "out"])
@pytest.mark.parametrize("seed", range(60))
def test_acceptance(placement, seed):
    rng, model = random.Random(seed), Model(placement)
    program = Program(custom("c", [SIZE] * RANKS, [SIZE] * RANKS, {}, [(0, 0)] * RANKS), placement=placement)
    program.scratch("tmp", SIZE)
    refs: list[tuple] = []
    for _ in range(60):
        place = (rng.randrange(RANKS), rng.choice(("input", "output", "tmp")), rng.randint(0, 3), rng.randint(1, 3))
        taken = model.take(*place)
        try:
            chunk = program.chunk(*place)
        except CommlibError:
            assert taken is None, place
        else:
            assert taken is not None, place
            refs.append((chunk, taken, place))
        if not refs:
            continue
        chunk, taken, origin = rng.choice(refs)
        target = (rng.randrange(RANKS), rng.choice(("input", "output", "tmp")), rng.randint(0, 3))
        itself = model.key(*target) == model.key(*origin[:3])
        ok = model.fresh(taken) and model.span(*target, chunk.count) is not None
        ok = ok and not (placement == "out" and target[1] == "input")
        try:
            made = chunk.copy(*target)
        except CommlibError:
            assert not ok, (origin, target)
        else:
            assert ok, (origin, target)
            if not itself:
                model.write(*target, chunk.count)
            refs.append((made, model.take(*target, chunk.count), (*target, chunk.count)))
