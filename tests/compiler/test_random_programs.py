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

from commlib.collectives import Buffer, Placement, custom
from commlib.compiler import PATIENCE, CompileOptions, compile_trace
from commlib.compiler.fuse import Fuse
from commlib.dsl import Program
from commlib.errors import CompileError
from commlib.ir.trace import COLUMNS, Trace, address_map, run_trace
from commlib.verify import FindingKind, verify

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
    "eight ranks": Shape(operations=60, ranks=8, reduces=0.3, local=0.1),
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


def holds(algorithm, placement, table, memory) -> bool:
    """Whether the outputs are what the collective wants."""
    spec, base = algorithm.collective, address_map(algorithm.collective, algorithm.scratch_chunks, placement).base
    return all(
        wanted is None or table.counts(memory[rank][base[rank][Buffer.OUTPUT] + index]) == dict.fromkeys(wanted, 1)
        for rank in range(algorithm.ranks)
        for index in range(spec.output_chunks(rank))
        for wanted in [spec.expected(rank, index)]
    )


def check(trace: Trace, options: CompileOptions, depths, rng: random.Random) -> None:
    algorithm = compile_trace(trace, options)
    factor = algorithm.collective.chunks // trace.collective.chunks
    report = verify(algorithm, trace.placements, fifo_depth=max(int(algorithm.count.max(initial=1)), 1))
    assert {finding.kind for finding in report.findings} <= {FindingKind.POSTCONDITION}, report.text()
    for placement in trace.placements:
        table, expected = run_trace(refined(trace, factor), placement)
        assert (placement in report.proved) == holds(algorithm, placement, table, expected), report.text()
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
    if not trace.collective.can_be_in_place:
        return
    results = {placement: run_trace(trace, placement) for placement in Placement}
    for rank in range(trace.collective.ranks):
        for index in written_outputs(trace, rank):
            seen = []
            for placement, (table, memory) in results.items():
                base = address_map(trace.collective, trace.scratch_chunks, placement).base[rank]
                seen.append(table.counts(memory[rank][base[Buffer.OUTPUT] + index]))
            assert seen[0] == seen[1]
            assert seen[0], "an empty slot was read"


def written_outputs(trace: Trace, rank: int) -> set[int]:
    """The output chunks of a rank that a program writes."""
    return {
        index
        for op in trace.operations()
        if op.dst_rank == rank and op.destination.buffer is Buffer.OUTPUT
        for index in range(op.destination.index, op.destination.index + op.destination.count)
    }


@pytest.mark.parametrize("chunks", [50, 200, 800])
def test_the_number_of_passes_is_bounded(chunks, monkeypatch):
    """Chains of relays that wander over few ranks cannot all stay fused; how often that is tried does not grow."""
    passes = []
    fuse = Fuse.__call__
    monkeypatch.setattr(Fuse, "__call__", lambda self, graph: passes.append(1) or fuse(self, graph))
    rng, ranks = random.Random(1), 6
    program = Program(custom("chains", [chunks] * ranks, [chunks] * ranks, {}), placement="out")
    scratch = program.scratch("s", chunks)
    refs = [program.chunk(rng.randrange(ranks), "input", k) for k in range(chunks)]
    for _ in range(6 * chunks):
        k = rng.randrange(chunks)
        refs[k] = refs[k].copy(rng.choice([rank for rank in range(ranks) if rank != refs[k].rank]), scratch, k)
    algorithm = compile_trace(program.trace())
    assert len(passes) <= 3 * PATIENCE + 2
    assert verify(algorithm, [Placement.OUT]).ok
