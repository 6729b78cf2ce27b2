"""Tables against the reference executor: any size, both placements, tiles, under random interleaving."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onesided_cases import (
    ONE_SIDED,
    both_sides,
    gets,
    one_shot,
    one_way,
    placements_of,
    puts,
    shared,
    shifted,
    staged,
    stores,
)
from programs import Shape, random_trace
from runtime_algorithms import SMALL, direct_alltoall
from table_machine import TableMachine

from commlib.algorithms.direct import ENTRIES
from commlib.algorithms.onesided import DirectEntry
from commlib.collectives import Buffer, Placement, custom
from commlib.compiler import CompileOptions, compile_trace
from commlib.ir.algorithm import Algorithm, Op
from commlib.ir.builder import AlgorithmBuilder
from commlib.runtime.layout import ChunkLayout, chunk_lengths, message_lengths, plan_layout, slot_starts
from commlib.runtime.reference import run_local
from commlib.runtime.table import NOP, OWN_INPUT, OWN_SCRATCH, PEERS, RankTable
from commlib.runtime.tabulate import NotTabulable, TableLimits, cut_launch, tabulate
from commlib.verify import synchronizing

ROOMY = TableLimits(1 << 16, 1 << 16, 8, 32)
TIGHT = TableLimits(64 * 6, 64 * 3, 3, 32)


def tables_of(algorithm: Algorithm, layout: ChunkLayout, limits: TableLimits, sync: bool = False) -> list[RankTable]:
    return [tabulate(algorithm, layout, rank, 4, "int32", "sum", limits, sync) for rank in range(algorithm.ranks)]


def buffers_of(layout: ChunkLayout, inputs: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the program works on, as bytes: in place one span for both, padded where the layout says so."""
    program_inputs, program_outputs = [], []
    for rank, values in enumerate(inputs):
        first, second, size = _span(layout, rank)
        span = np.zeros(size, dtype=np.int32)
        for index, (start, length) in enumerate(layout.user_slots(rank, Buffer.INPUT)):
            at = first + layout.slot(rank, Buffer.INPUT, index)
            span[at : at + length] = values[start : start + length]
        program_inputs.append(span[first : first + _size(layout, rank, Buffer.INPUT)].view(np.uint8))
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
    tables = tables_of(algorithm, layout, limits, synchronizing(algorithm))
    machine = TableMachine(tables, limits.lane_bytes, limits.slot_bytes, limits.depth, seed)
    generator = np.random.default_rng(seed)
    for _ in range(3):
        sizes = [layout.buffer_elements(rank, Buffer.INPUT) for rank in range(algorithm.ranks)]
        inputs = [generator.integers(-50, 50, size).astype(np.int32) for size in sizes]
        wanted = run_local(algorithm, inputs, placement=placement, elements=elements, **options)
        program_inputs, program_outputs = buffers_of(layout, inputs)
        before = [array.tobytes() for array in program_inputs]
        machine.call(program_inputs, program_outputs)
        for rank in range(algorithm.ranks):
            if placement is Placement.OUT:
                assert program_inputs[rank].tobytes() == before[rank], "an input is never written"
            got = user_output(layout, rank, program_outputs[rank])
            np.testing.assert_array_equal(got, wanted[rank], err_msg=f"rank {rank}")
    return tables


@pytest.mark.parametrize("algorithm", [*SMALL, *ONE_SIDED], ids=lambda a: f"{a.name}{a.ranks}")
@pytest.mark.parametrize("limits", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("elements", [0, 24, 397])
def test_tables_do_what_the_reference_does(algorithm: Algorithm, limits: TableLimits, elements: int) -> None:
    for placement in _placements(algorithm):
        tables = check_tables(algorithm, elements, placement, limits, seed=elements)
        assert tables[0].tiles == 1 or limits is TIGHT
        if limits is TIGHT and elements == 397 and (any(algorithm.scratch_chunks) or algorithm in SMALL):
            assert tables[0].tiles > 1


def _placements(algorithm: Algorithm) -> list[Placement]:
    if algorithm in SMALL:
        return [Placement.OUT] if algorithm.name in ("detour", "ring_allgather") else list(Placement)
    return placements_of(algorithm)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_size_limits_and_order(data: st.DataObject) -> None:
    algorithm = data.draw(st.sampled_from([*SMALL, *ONE_SIDED]), label="algorithm")
    placement = data.draw(st.sampled_from(_placements(algorithm)), label="placement")
    chunks = max(algorithm.scratch_chunks) or 1
    limits = TableLimits(
        64 * chunks * data.draw(st.integers(1, 3), label="lines"),
        4 * int(algorithm.count.max()) * data.draw(st.integers(1, 40), label="slot"),
        data.draw(st.integers(3, 8), label="depth"),
        4,
        data.draw(st.sampled_from([0, 128, 1000]), label="tile_bytes"),
        data.draw(st.sampled_from([0, 100, 2000]), label="cache_bytes"),
    )
    elements, seed = data.draw(st.integers(0, 120), label="elements"), data.draw(st.integers(0, 99), label="seed")
    check_tables(algorithm, elements, placement, limits, seed)


SHAPES = (
    Shape(),
    Shape(local=0.7, instances=2),
    Shape(placement="in", hints=True),
    Shape(instances=3, blocked=True, parallel=True),
)


@pytest.mark.parametrize("seed", range(16))
def test_compiled_programs_at_random(seed: int) -> None:
    rng = random.Random(seed)
    algorithm = compile_trace(random_trace(rng, SHAPES[seed % len(SHAPES)]), CompileOptions())
    lane, slot = 64 * max(1, *algorithm.scratch_chunks), 4 * int(algorithm.count.max(initial=1))
    limits = TableLimits(lane * rng.randint(1, 3), slot * rng.randint(1, 40), 8, 32)
    for placement in algorithm.placements:
        check_tables(algorithm, rng.choice((1, 2, 5, 17, 64, 131)), placement, limits, seed)


SIZES = [[5, 0, 33], [1, 2, 3], [40, 0, 7]]
SYMMETRIC = [[5, 1, 40], [1, 2, 0], [40, 0, 7]]


@pytest.mark.parametrize("limits", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize(
    "algorithm", [puts(3, 2, "alltoallv"), direct_alltoall(3, 2, "alltoallv")], ids=["puts", "sends"]
)
def test_sizes_of_alltoallv(algorithm: Algorithm, limits: TableLimits) -> None:
    check_tables(algorithm, 0, Placement.OUT, limits, sizes=SIZES)
    if algorithm.name == "puts":
        check_tables(algorithm, 0, Placement.IN, limits, sizes=SYMMETRIC)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.full_name)
def test_the_direct_programs_of_the_library(entry: DirectEntry) -> None:
    for ranks, limits in ((1, TIGHT), (2, ROOMY), (4, TableLimits(64 * 5, 64, 3, 8))):
        algorithm = entry.algorithm(ranks)
        for placement in entry.placements:
            for elements in (0, 3, 131):
                check_tables(algorithm, elements, placement, limits, seed=elements, **_sizes(entry, elements, ranks))


def _sizes(entry: DirectEntry, elements: int, ranks: int) -> dict:
    if entry.collective != "alltoallv":
        return {}
    return {"sizes": [[elements * (s + d) % 200 for d in range(ranks)] for s in range(ranks)]}


def test_only_the_guard_keeps_the_root_from_running_ahead() -> None:
    assert not synchronizing(one_way(2))
    layout = plan_layout(one_way(2), Placement.OUT, 400)
    values, limits, wrong = np.arange(400, dtype=np.int32), TableLimits(128, 64, 3, 8), {True: 0, False: 0}
    for guarded in (True, False):
        tables = tables_of(one_way(2), layout, limits, sync=not guarded)
        for seed in range(10):
            machine = TableMachine(tables, limits.lane_bytes, limits.slot_bytes, limits.depth, seed)
            outputs = [np.zeros(1600, dtype=np.uint8) for _ in range(2)]
            machine.call([values.view(np.uint8), np.zeros(0, dtype=np.uint8)], outputs)
            wrong[guarded] += not np.array_equal(outputs[1].view(np.int32), values)
    assert wrong[True] == 0
    assert wrong[False] > 0


def test_moves_of_neighbours_are_joined_in_one_tile_only() -> None:
    layout = plan_layout(one_shot(3, 2), Placement.OUT, 64)
    table = tables_of(one_shot(3, 2), layout, ROOMY)[0]
    assert table.moves["length"].tolist() == [64, 64, 64]
    assert (table.tiles, table.width) == (1, 64)
    cut = tables_of(one_shot(3, 2), layout, TIGHT)[0]
    assert cut.moves["length"].tolist() == [32] * 6
    assert (cut.tiles, cut.width) == (2, 16)
    assert cut.operands["stride"].tolist()[:4] == [64, 0, 64, 0]


def test_steps_are_not_joined_to_each_other() -> None:
    b = AlgorithmBuilder("copies", custom("mine", [2], [2], {}), [0])
    b.threadblock(0)
    b.step(Op.COPY, (Buffer.INPUT, 0), (Buffer.OUTPUT, 0))
    b.step(Op.COPY, (Buffer.INPUT, 1), (Buffer.OUTPUT, 1))
    (table,) = tables_of(b.build(), plan_layout(b.build(), Placement.OUT, 8), ROOMY)
    assert table.moves["length"].tolist() == [8, 8]
    assert [table.steps[name].tolist() for name in ("move_low", "move_high")] == [[0, 1], [1, 2]]


def test_sources_keep_their_order() -> None:
    tables = tables_of(one_shot(3), plan_layout(one_shot(3), Placement.OUT, 16), ROOMY)
    last = [table.moves[-1] for table in tables]
    sources = [
        [(int(row["base"]), int(row["offset"])) for row in table.operands[move["source_low"] : move["destination_low"]]]
        for table, move in zip(tables, last, strict=True)
    ]
    assert sources == [
        [(OWN_INPUT, 0), (OWN_SCRATCH, 64), (OWN_SCRATCH, 128)],
        [(OWN_SCRATCH, 0), (OWN_INPUT, 0), (OWN_SCRATCH, 128)],
        [(OWN_SCRATCH, 0), (OWN_SCRATCH, 64), (OWN_INPUT, 0)],
    ]


@pytest.mark.parametrize(
    ("limits", "cut"),
    [
        (TableLimits(1 << 20, 1 << 20, 8, 8), (1, 1000, 4032)),
        (TableLimits(3 * 1999, 1 << 20, 8, 8), (3, 336, 1344)),
        (TableLimits(1 << 20, 2 * 1000, 8, 8), (5, 208, 832)),
        (TableLimits(1 << 20, 2 * 40, 8, 8), (100, 10, 64)),
        (TableLimits(1 << 20, 1 << 20, 8, 8, 2 * 2048), (2, 512, 2048)),
        (TableLimits(1 << 20, 1 << 20, 8, 8, 1), (63, 16, 64)),
    ],
)
def test_tiles_are_as_wide_as_fits_and_even(limits: TableLimits, cut: tuple) -> None:
    b = AlgorithmBuilder("needy", custom("mine", [2, 2], [2, 2], {}), [1, 3])
    b.threadblock(0, 1)
    b.step(Op.SEND, (Buffer.INPUT, 0), None, 2)
    b.threadblock(1, None, 0)
    b.step(Op.RECV, None, (Buffer.OUTPUT, 0), 2)
    assert cut_launch(b.build(), plan_layout(b.build(), Placement.OUT, 1000), 4, limits) == cut
    unbounded = shared(3)
    assert cut_launch(unbounded, plan_layout(unbounded, Placement.OUT, 3000), 4, limits).tiles == 1


@pytest.mark.parametrize(
    ("cache_bytes", "width"),
    [
        (0, 1 << 20),
        (12 << 20, 1 << 20),
        (12 << 18, 1 << 18),
        (12 << 15, 32 << 10),
        (12 << 12, 32 << 10),
        (4 << 10, 4 << 10),
    ],
)
def test_tiles_of_all_ranks_fit_the_cache(cache_bytes: int, width: int) -> None:
    algorithm = staged(3)
    assert sum(algorithm.scratch_chunks) == 12
    limits = TableLimits(1 << 30, 1 << 20, 8, 8, 0, cache_bytes)
    cut = cut_launch(algorithm, plan_layout(algorithm, Placement.IN, 3 << 20), 1, limits)
    assert cut.width == width
    assert cut.tiles == (1 << 20) // width


@pytest.mark.parametrize("algorithm", [*SMALL, *ONE_SIDED], ids=lambda a: f"{a.name}{a.ranks}")
def test_columns_of_a_layout_are_its_slots_and_lengths(algorithm: Algorithm) -> None:
    for elements in (5, 12):
        layout = plan_layout(algorithm, Placement.OUT, elements)
        slots = [(r, b, i) for (r, b) in layout._user_slots for i in range(len(layout.user_slots(r, b)))]
        ranks, buffers, indices = np.array(slots, dtype=np.int64).reshape(-1, 3).T
        assert slot_starts(layout, ranks, buffers, indices).tolist() == [layout.slot(*slot) for slot in slots]
        pairs = [(step, k) for step in range(algorithm.step_count) for k in range(int(algorithm.count[step]))]
        steps, chunks = np.array(pairs, dtype=np.int64).T
        wanted = [message_lengths(algorithm, layout, step)[k] for step, k in pairs]
        assert chunk_lengths(algorithm, layout, steps, chunks).tolist() == wanted


def test_waiting_for_a_threadblock_with_nothing_to_do_is_no_wait() -> None:
    b = AlgorithmBuilder("idle", custom("mine", [1, 1], [1, 1], {}), [0, 0])
    b.threadblock(0)
    b.step(Op.FLUSH, None, None, 0, peer=1)
    b.threadblock(0)
    b.step(Op.COPY, (Buffer.INPUT, 0), (Buffer.OUTPUT, 0), depends=[(0, 0)])
    table = tables_of(b.build(), plan_layout(b.build(), Placement.OUT, 8), ROOMY)[0]
    assert (table.threadblocks, len(table.depends), len(table.steps)) == ((1,), 0, 1)


def test_what_does_nothing_has_no_row() -> None:
    algorithm = gets(3, 2)
    rows = [
        len(tables_of(algorithm, plan_layout(algorithm, placement, 8), ROOMY)[1].steps)
        for placement in (Placement.OUT, Placement.IN)
    ]
    assert rows == [11, 10], "in place the own shard is where it belongs"
    table = tables_of(staged(4), plan_layout(staged(4), Placement.OUT, 8), ROOMY)[0]
    assert sum(table.steps["kind"] == NOP) == 1, "what waits for other threadblocks stays, what flushes does not"


def test_slots_and_messages_begin_where_the_specification_says() -> None:
    table = tables_of(puts(3, 1), plan_layout(puts(3, 1), Placement.OUT, 17), ROOMY)[1]
    first = table.operands[: table.moves["high"][0]].tolist()
    assert first == [(OWN_INPUT, 0, 2 * 17 * 4, 68), (PEERS + 3 * 2 + OWN_SCRATCH, 0, 1 * 128, 0)]
    sends = tables_of(direct_alltoall(3, 3), plan_layout(direct_alltoall(3, 3), Placement.OUT, 52), ROOMY)[0]
    assert sends.steps["message"].tolist() == [0, 208, 208, 208, 208]


def test_tables_know_what_they_touch_of_others() -> None:
    touched = {a.name: tables_of(a, plan_layout(a, Placement.OUT, 12), ROOMY)[0] for a in (gets(3, 2), *ONE_SIDED)}
    assert {name for name, table in touched.items() if table.reads_peers} == {"gets", "shared"}
    assert {name for name, table in touched.items() if table.writes_peers} == {"shared", "stores", "crossed"}
    assert touched["gets"].combine is None
    assert touched["shared"].combine == "sum"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (TableLimits(64, 64, 8, 32), r"scratch of 5 chunks and messages of 1 do not fit 64 and 64 bytes"),
        (TableLimits(1 << 16, 3, 8, 32), r"do not fit 65536 and 3 bytes even at one element a chunk"),
        (TableLimits(1 << 16, 1 << 16, 8, 2), r"both_sides uses channel 3; this transport has 2 channels"),
    ],
    ids=["lane", "slot", "channels"],
)
def test_what_does_not_fit_is_refused(limits: TableLimits, message: str) -> None:
    algorithm = both_sides()
    with pytest.raises(NotTabulable, match=message):
        tables_of(algorithm, plan_layout(algorithm, Placement.OUT, 600), limits)


def test_channels_of_signals_count() -> None:
    algorithm = stores(3, 2, 0)
    with pytest.raises(NotTabulable, match="stores uses channel 1; this transport has 1 channels"):
        tables_of(algorithm, plan_layout(algorithm, Placement.OUT, 8), TableLimits(1 << 16, 1 << 16, 8, 1))


def test_operands_that_overlap_in_place_are_refused() -> None:
    algorithm = replace(shifted(), placements=frozenset(Placement))
    with pytest.raises(NotTabulable, match=r"rank 0 threadblock 0 step 0 \(rr i\[0:2\] -> o\[0:2\]\) has operands"):
        tables_of(algorithm, plan_layout(algorithm, Placement.IN, 8), ROOMY)


@pytest.mark.parametrize("placement", list(Placement))
def test_two_sided_steps_that_overlap_themselves_move_in_a_safe_order(placement: Placement) -> None:
    sources = {(rank, slot): frozenset({(rank, slot)}) for rank in range(2) for slot in range(2)}
    for offsets in ((0, 1), (1, 0)):
        b = AlgorithmBuilder("shifted", custom("mine", [2, 2], [2, 2], sources, [offsets] * 2), [0, 0])
        for rank in range(2):
            b.threadblock(rank)
            b.step(Op.COPY, (Buffer.INPUT, 0), (Buffer.OUTPUT, 0), 2)
        check_tables(b.build(), 9, placement, ROOMY)
