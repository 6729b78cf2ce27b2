"""Tables on the native core: right by the reference executor, and to the byte what the Python context leaves behind."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_world import World, needs_core
from onesided_cases import ONE_SIDED, placements_of
from runtime_algorithms import SMALL

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import Algorithm
from commlib.runtime.layout import ChunkLayout, plan_layout
from commlib.runtime.reference import run_local
from commlib.runtime.shm.control import SegmentLayout
from commlib.runtime.tabulate import TableLimits, tabulate

pytestmark = needs_core
LIMITS = {"roomy": TableLimits(1 << 15, 1 << 14, 4, 32), "tight": TableLimits(64 * 6, 64 * 3, 3, 32)}
PROGRAMS = [a for a in (*SMALL, *ONE_SIDED) if a.name not in ("detour", "shifted")]


def layout_of(ranks: int, limits: TableLimits) -> SegmentLayout:
    return SegmentLayout(ranks, limits.lane_bytes, limits.slot_bytes, limits.depth, 4096)


class Case:
    """A program on some size, its tables and tensors; ``run`` makes calls of it on one kind of context."""

    def __init__(self, algorithm: Algorithm, elements: int, limits: TableLimits) -> None:
        self.algorithm, self.limits = algorithm, limits
        placement = Placement.OUT if Placement.OUT in placements_of(algorithm) else Placement.IN
        self.layout = plan_layout(algorithm, placement, elements)
        self.tables = [
            tabulate(algorithm, self.layout, rank, 4, "int32", "sum", limits, False) for rank in range(algorithm.ranks)
        ]
        generator = np.random.default_rng(elements)
        sizes = [self.layout.buffer_elements(rank, Buffer.INPUT) for rank in range(algorithm.ranks)]
        self.values = [generator.integers(-50, 50, size).astype(np.int32) for size in sizes]
        self.wanted = run_local(algorithm, self.values, placement=placement, elements=elements)

    def outputs(self) -> list[np.ndarray]:
        counts = [self.layout.buffer_elements(rank, Buffer.OUTPUT) for rank in range(self.algorithm.ranks)]
        return [np.full(count + 1, -7, dtype=np.int32) for count in counts]

    def run(self, kind: str, calls: int = 3, trace: bool = False) -> tuple[World, list[np.ndarray], dict]:
        world = World(kind, layout_of(self.algorithm.ranks, self.limits))
        inputs = [np.concatenate([values, [np.int32(9)]]) for values in self.values]
        outputs, seen = self.outputs(), defaultdict(list)
        reach = int(self.tables[0].reads_peers or self.tables[0].writes_peers)
        if reach:
            world.register(inputs)
            world.register(outputs)
        if trace:
            for rank, context in enumerate(world.contexts):
                context.trace = lambda block, step, tile, rank=rank: seen[rank, block].append((tile, step))
        tables = world.take(self.tables, reach=reach)
        for _ in range(calls):
            world.call(tables, inputs, outputs)
        return world, outputs, seen

    def check(self, outputs: list[np.ndarray]) -> None:
        for rank, output in enumerate(outputs):
            matters = matters_of(self.layout, rank)
            np.testing.assert_array_equal(output[:-1][matters], self.wanted[rank][matters], err_msg=f"rank {rank}")
            assert output[-1] == -7, "nothing is written past the end"


def matters_of(layout: ChunkLayout, rank: int) -> np.ndarray:
    """Where the output of a rank is specified."""
    matters = np.zeros(layout.buffer_elements(rank, Buffer.OUTPUT), dtype=bool)
    for index, (start, length) in enumerate(layout.user_slots(rank, Buffer.OUTPUT)):
        matters[start : start + length] = layout.collective.expected(rank, index) is not None
    return matters


@pytest.mark.parametrize("algorithm", PROGRAMS, ids=lambda a: f"{a.name}{a.ranks}")
@pytest.mark.parametrize("limits", LIMITS)
def test_the_same_as_python_to_the_byte(algorithm, limits):
    """Outputs, scratch, messages, counters, boards: after three calls all segments are equal."""
    for elements in (1, 24, 397):
        case = Case(algorithm, elements, LIMITS[limits])
        if case.layout.padded:
            continue
        native, outputs, steps = case.run("native", trace=True)
        case.check(outputs)
        python, expected, same_steps = case.run("python", trace=True)
        for mine, theirs in zip(outputs, expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert steps == same_steps
        assert native.memory() == python.memory()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_size_and_limits(data):
    algorithm = data.draw(st.sampled_from(PROGRAMS), label="algorithm")
    chunks = max(algorithm.scratch_chunks) or 1
    limits = TableLimits(
        64 * chunks * data.draw(st.integers(1, 3), label="lines"),
        4 * int(algorithm.count.max()) * data.draw(st.integers(1, 40), label="slot"),
        data.draw(st.integers(3, 8), label="depth"),
        32,
    )
    case = Case(algorithm, data.draw(st.integers(0, 300), label="elements"), limits)
    if not case.layout.padded:
        case.check(case.run("native", calls=2)[1])
