"""Where chunks lie: exact spans, the choice of a padded copy, and the proof."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_algorithms import SMALL, detour, direct_alltoall, ring_allreduce

from commlib import collectives
from commlib.collectives import Buffer, Placement
from commlib.errors import SpecError
from commlib.ir.algorithm import Op
from commlib.ir.builder import AlgorithmBuilder
from commlib.runtime import plan_layout, prove_layout
from commlib.runtime.layout import message_lengths
from commlib.runtime.plan import plan_rank, tiling


@pytest.mark.parametrize(
    ("elements", "spans"),
    [
        (8, ((0, 2), (2, 2), (4, 2), (6, 2))),
        (7, ((0, 2), (2, 2), (4, 2), (6, 1))),
        (5, ((0, 2), (2, 2), (4, 1), (5, 0))),
        (1, ((0, 1), (1, 0), (1, 0), (1, 0))),
        (0, ((0, 0), (0, 0), (0, 0), (0, 0))),
    ],
)
def test_spans_of_a_shard(elements: int, spans: tuple) -> None:
    layout = plan_layout(ring_allreduce(4), Placement.OUT, elements)
    assert layout.user_slots(2, Buffer.INPUT) == spans
    assert not layout.padded


def test_alltoallv_spans_follow_the_matrix() -> None:
    sizes = [[1, 2, 3], [4, 5, 6], [7, 8, 0]]
    layout = plan_layout(direct_alltoall(3, 2, "alltoallv"), Placement.OUT, 0, sizes)
    assert layout.user_slots(1, Buffer.INPUT) == ((0, 2), (2, 2), (4, 3), (7, 2), (9, 3), (12, 3))
    assert layout.user_slots(2, Buffer.OUTPUT) == ((0, 2), (2, 1), (3, 3), (6, 3), (9, 0), (9, 0))
    assert layout.nominal == 4
    prove_layout(direct_alltoall(3, 2, "alltoallv"), layout)


def test_in_place_span_of_allgather_and_reducescatter() -> None:
    for index, offsets in ((6, (10, 0, 20)), (7, (0, 10, 20))):
        layout = plan_layout(SMALL[index], Placement.IN, 5)
        assert layout.span(2) == offsets


def test_long_chunk_in_a_short_slot_asks_for_padding() -> None:
    assert plan_layout(detour(), Placement.OUT, 5).padded
    assert not plan_layout(detour(), Placement.OUT, 6).padded


def test_chunks_of_different_length_combined_ask_for_padding() -> None:
    b = AlgorithmBuilder("mixed", collectives.allreduce(1, 2), [0])
    b.threadblock(0)
    b.step(Op.COPY, (Buffer.INPUT, 0), (Buffer.OUTPUT, 0), 2)
    b.step(Op.REDUCE, (Buffer.INPUT, 0), (Buffer.OUTPUT, 1))
    assert plan_layout(b.build(), Placement.OUT, 5).padded
    assert not plan_layout(b.build(), Placement.OUT, 4).padded


@given(st.sampled_from(SMALL), st.integers(0, 40), st.sampled_from([8, 24, 64, 1 << 20]))
@settings(max_examples=60, deadline=None)
def test_layouts_are_proved_and_both_ends_cut_alike(algorithm, elements: int, tile_bytes: int) -> None:
    layout = plan_layout(algorithm, Placement.OUT, elements)
    prove_layout(algorithm, layout)
    plans = [plan_rank(algorithm, layout, rank, 8, tile_bytes) for rank in range(algorithm.ranks)]
    sent = {(p.rank, link.peer, link.channel): link.messages for p in plans for link in p.sends}
    received = {(link.peer, p.rank, link.channel): link.messages for p in plans for link in p.receives}
    assert sent == received
    for step in range(algorithm.step_count):
        assert max(message_lengths(algorithm, layout, step), default=0) <= layout.nominal


def test_tiles_cover_a_chunk_once() -> None:
    algorithm = ring_allreduce(2)
    layout = plan_layout(algorithm, Placement.OUT, 101)
    cut = tiling(algorithm, layout, 8, 64)
    assert cut == (7, 8)
    step = plan_rank(algorithm, layout, 0, 8, 64).blocks[0].steps[0]
    assert [move.source for moves in step.tiles for move in moves] == [0, 8, 16, 24, 32, 40, 48]
    assert sum(step.sizes) == 51


def test_messages_of_many_chunks_fit_the_tile() -> None:
    algorithm = direct_alltoall(2, chunks=5)
    layout = plan_layout(algorithm, Placement.OUT, 20)
    plan = plan_rank(algorithm, layout, 0, 8, 64)
    assert [link.messages for link in plan.sends] == [4], "one message a tile: it is never cut"
    assert plan.message_elements == 5
    whole = plan_rank(algorithm, layout, 0, 8, 1 << 20)
    assert [link.messages for link in whole.sends] == [1]
    assert len(whole.blocks[1].steps[0].tiles[0]) == 1, "neighbouring chunks are one move"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ring_allreduce(2), Placement.OUT, -1), "a shard of -1 elements"),
        ((ring_allreduce(2), Placement.OUT, 0, [[1]]), "allreduce takes no sizes"),
        ((direct_alltoall(2, 1, "alltoallv"), Placement.OUT, 0, [[1, 2]]), "takes a 2 x 2 matrix"),
        ((direct_alltoall(2, 1, "alltoallv"), Placement.OUT, 0, [[1, 2], [3, -4]]), "cannot be negative"),
        ((direct_alltoall(2, 1, "alltoallv"), Placement.IN, 0, [[1, 2], [3, 4]]), "symmetric matrix"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan_layout(*arguments)
