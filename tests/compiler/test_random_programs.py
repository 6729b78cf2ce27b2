"""Compiled programs do exactly what their trace says, under any interleaving."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interleaving import Machine
from programs import Shape, random_trace

from commlib.collectives import Buffer, Placement
from commlib.compiler import CompileOptions, compile_trace
from commlib.errors import CompileError
from commlib.ir.contents import EMPTY
from commlib.ir.trace import COLUMNS, Trace, run_trace
from commlib.verify import verify

COUNT = int(os.environ.get("COMMLIB_RANDOM_PROGRAMS", "60"))
SHAPES = {
    "plain": Shape(sizes=(1,)),
    "mixed sizes": Shape(),
    "local": Shape(local=0.7),
    "reduces": Shape(reduces=0.9),
    "in place": Shape(placement="in"),
    "out of place": Shape(placement="out"),
    "hints": Shape(hints=True),
    "interleaved": Shape(instances=2),
    "blocked": Shape(instances=3, blocked=True),
    "parallel": Shape(parallel=True),
    "all": Shape(parallel=True, instances=2, hints=True, blocked=True),
    "many": Shape(operations=40, ranks=4),
    "in place many": Shape(operations=40, ranks=4, placement="in", hints=True),
}


def refined(trace: Trace, factor: int) -> Trace:
    """The same program on chunks cut into ``factor``, without instances: what the compiled one must equal."""
    rows = trace.rows.copy()
    for name in ("src_index", "dst_index", "operand_index", "count"):
        rows[:, COLUMNS.index(name)] *= factor
    rows[:, COLUMNS.index("ways")] = 1
    return replace(
        trace,
        rows=rows,
        collective=trace.collective.refine(factor),
        scratch_chunks=tuple(s * factor for s in trace.scratch_chunks),
        instances=1,
    )


def observable(algorithm, placement, memory, machine):
    """What a caller sees: outputs, and the input where it lies apart."""
    seen = []
    for rank in range(algorithm.ranks):
        base = machine.space.base[rank]
        seen.append(memory[rank][base[1] :][: algorithm.collective.output_chunks(rank)])
        if placement is Placement.OUT:
            seen.append(memory[rank][base[Buffer.INPUT] :][: algorithm.collective.input_chunks(rank)])
    return seen


def check(trace: Trace, options: CompileOptions, depths, rng: random.Random) -> None:
    algorithm = compile_trace(trace, options)
    factor = algorithm.collective.chunks // trace.collective.chunks
    report = verify(algorithm, trace.placements, fifo_depth=max(int(algorithm.count.max(initial=1)), 1))
    assert report.proved == trace.placements, report.text()
    for placement in trace.placements:
        table, expected = run_trace(refined(trace, factor), placement)
        for depth in depths:
            machine = Machine(algorithm, placement, depth, rng, table)
            memory = machine.run()
            assert observable(algorithm, placement, memory, machine) == observable(
                algorithm, placement, expected, machine
            )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_does_what_the_trace_says(shape):
    refused = 0
    for seed in range(COUNT):
        rng = random.Random(f"{shape} {seed}")
        trace = random_trace(rng, SHAPES[shape])
        for fuse in (True, False):
            try:
                check(trace, CompileOptions(fuse=fuse), (1, 1, 2, 2, 8), rng)
                check(trace, CompileOptions(fuse=fuse, fifo_depth=8), (9,), rng)
            except CompileError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"seed {seed}, fuse {fuse}") from error
    assert refused == 0 or SHAPES[shape].hints
    assert refused < COUNT


@settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(SHAPES)), st.booleans())
def test_compiled_does_what_the_trace_says_shrinking(rng, shape, fuse):
    """The same by hypothesis, which shrinks what it finds."""
    trace = random_trace(rng, replace(SHAPES[shape], hints=False, operations=8))
    check(trace, CompileOptions(fuse=fuse), (1, 2), rng)


@pytest.mark.parametrize("seed", range(COUNT))
def test_both_placements_mean_the_same(seed):
    """What the DSL accepts for both placements gives equal outputs in both, and never reads an empty slot."""
    trace = random_trace(random.Random(seed), Shape(operations=30))
    outputs = []
    for placement in Placement:
        table, memory = run_trace(trace, placement)
        size = trace.collective.output_chunks(0)
        start = 0 if placement is Placement.IN else size
        outputs.append([[table.counts(c) for c in row[start : start + size]] for row in memory])
    wrote = [
        [{trace.rows[k, 6] + j for k in range(len(trace)) for j in range(trace.rows[k, 9])
          if trace.rows[k, 4] == rank and trace.rows[k, 5] == 1}]
        for rank in range(3)
    ]  # fmt: skip
    for rank in range(3):
        for slot in wrote[rank][0]:
            assert outputs[0][rank][slot] == outputs[1][rank][slot]
            assert outputs[0][rank][slot], "an empty slot was read"
    assert EMPTY == -1
