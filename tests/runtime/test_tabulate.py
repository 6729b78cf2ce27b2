"""Tables against the reference executor: any size, both placements, tiles, under random interleaving."""

import numpy as np
import pytest
from runtime_algorithms import SMALL
from table_machine import TableMachine

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import Algorithm
from commlib.runtime.layout import ChunkLayout, plan_layout
from commlib.runtime.reference import run_local
from commlib.runtime.table import RankTable
from commlib.runtime.tabulate import TableLimits, tabulate

ROOMY = TableLimits(1 << 16, 1 << 16, 8, 32)
TIGHT = TableLimits(64 * 6, 64 * 3, 3, 32)


def tables_of(algorithm: Algorithm, layout: ChunkLayout, limits: TableLimits, sync: bool = False) -> list[RankTable]:
    return [tabulate(algorithm, layout, rank, 4, "int32", "sum", limits, sync) for rank in range(algorithm.ranks)]


def buffers_of(layout: ChunkLayout, inputs: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the program works on, as bytes: in place one span for both, padded where the layout says so."""
    program_inputs, program_outputs = [], []
    for rank, values in enumerate(inputs):
        first, second, size = _span(layout, rank)
        span = np.full(size, -7, dtype=np.int32)
        for index, (start, length) in enumerate(layout.user_slots(rank, Buffer.INPUT)):
            at = first + layout.slot(rank, Buffer.INPUT, index)
            span[at : at + length] = values[start : start + length]
        program_inputs.append(span[first:].view(np.uint8))
        program_outputs.append(span[second:].view(np.uint8))
    return program_inputs, program_outputs


def _span(layout: ChunkLayout, rank: int) -> tuple[int, int, int]:
    c = layout.collective
    sizes = [_size(layout, rank, buffer) for buffer in (Buffer.INPUT, Buffer.OUTPUT)]
    starts = [0, sizes[0]]
    if layout.placement is Placement.IN:
        shard = layout.nominal * c.chunks if layout.padded else layout.elements
        starts = [offset // c.chunks * shard for offset in c.in_place_offsets(rank)]
    return starts[0], starts[1], max(start + size for start, size in zip(starts, sizes, strict=True))


def _size(layout: ChunkLayout, rank: int, buffer: Buffer) -> int:
    if layout.padded:
        return len(layout.user_slots(rank, buffer)) * layout.nominal
    return layout.buffer_elements(rank, buffer)


def user_output(layout: ChunkLayout, rank: int, output: np.ndarray) -> np.ndarray:
    values, parts = output.view(np.int32), [np.zeros(0, dtype=np.int32)]
    for index, (_, length) in enumerate(layout.user_slots(rank, Buffer.OUTPUT)):
        at = layout.slot(rank, Buffer.OUTPUT, index)
        parts.append(values[at : at + length])
    return np.concatenate(parts)


def check_tables(
    algorithm: Algorithm, elements: int, placement: Placement, limits: TableLimits, seed: int = 0, **options
) -> list[RankTable]:
    """Three calls of the tables do what the reference executor does."""
    layout = plan_layout(algorithm, placement, elements, **options)
    tables = tables_of(algorithm, layout, limits)
    machine = TableMachine(tables, limits.lane_bytes, limits.slot_bytes, limits.depth, seed)
    generator = np.random.default_rng(seed)
    for _ in range(3):
        sizes = [layout.buffer_elements(rank, Buffer.INPUT) for rank in range(algorithm.ranks)]
        inputs = [generator.integers(-50, 50, size).astype(np.int32) for size in sizes]
        wanted = run_local(algorithm, inputs, placement=placement, elements=elements, **options)
        program_inputs, program_outputs = buffers_of(layout, inputs)
        machine.call(program_inputs, program_outputs)
        for rank in range(algorithm.ranks):
            got, matters = user_output(layout, rank, program_outputs[rank]), matters_of(layout, rank)
            np.testing.assert_array_equal(got[matters], wanted[rank][matters], err_msg=f"rank {rank}")
    return tables


def matters_of(layout: ChunkLayout, rank: int) -> np.ndarray:
    """Where the output of a rank is specified."""
    matters = np.zeros(layout.buffer_elements(rank, Buffer.OUTPUT), dtype=bool)
    for index, (start, length) in enumerate(layout.user_slots(rank, Buffer.OUTPUT)):
        matters[start : start + length] = layout.collective.expected(rank, index) is not None
    return matters


@pytest.mark.parametrize("algorithm", SMALL, ids=lambda a: f"{a.name}{a.ranks}")
@pytest.mark.parametrize("limits", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("elements", [0, 1, 24, 35, 397])
def test_tables_do_what_the_reference_does(algorithm: Algorithm, limits: TableLimits, elements: int) -> None:
    tables = check_tables(algorithm, elements, Placement.OUT, limits, seed=elements)
    assert tables[0].tiles == 1 or limits is TIGHT
    if algorithm.name not in ("detour", "ring_allgather"):
        check_tables(algorithm, elements, Placement.IN, limits, seed=elements)
