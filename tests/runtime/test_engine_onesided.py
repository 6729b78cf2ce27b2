"""One-sided steps in the engine, over threads, against the reference executor; and what refuses them."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from onesided_cases import ONE_SIDED, crossed, gets, one_shot, placements_of, puts, shared, shifted, window

from commlib.collectives import Buffer, Placement
from commlib.errors import DeadlineError, ExecutionError, SpecError
from commlib.ir.algorithm import Algorithm, Op
from commlib.ir.builder import AlgorithmBuilder
from commlib.reductions import DtypeKind
from commlib.runtime.engine import execute
from commlib.runtime.expected import FACTOR, Case
from commlib.runtime.flow import flow
from commlib.runtime.kernels import numpy_kernels
from commlib.runtime.layout import ChunkLayout, message_lengths, plan_layout
from commlib.runtime.local import LocalEndpoint, LocalNetwork
from commlib.runtime.onesided import peers_of, refuse_unreachable
from commlib.runtime.operations import transfer
from commlib.runtime.plan import plan_rank
from commlib.runtime.reference import first_first, last_first, random_order, run_local, simulate_run
from commlib.verify import require

KERNELS = numpy_kernels(np.dtype(np.int64), "sum")


def run_threads(algorithm: Algorithm, inputs: list, layout: ChunkLayout, tile_bytes: int) -> list:
    """All ranks of a launch as threads, out of place or in place (then on spans)."""
    network, launches, outputs = LocalNetwork(algorithm.ranks, 4), [], []
    for rank in range(algorithm.ranks):
        plan = plan_rank(algorithm, layout, rank, 8, tile_bytes)
        sizes = [layout.buffer_elements(rank, buffer) for buffer in (Buffer.INPUT, Buffer.OUTPUT)]
        first, second, size = (0, sizes[0], sum(sizes))
        if layout.placement is Placement.IN:
            first, second, size = layout.span(rank)
        span = np.full(size, -1, dtype=np.int64)
        buffers = {
            Buffer.INPUT: span[first : first + sizes[0]],
            Buffer.OUTPUT: span[second : second + sizes[1]],
            Buffer.SCRATCH: np.full(plan.scratch_elements, -1, dtype=np.int64),
        }
        buffers[Buffer.INPUT][:] = inputs[rank]
        outputs.append(buffers[Buffer.OUTPUT])
        network.memory.update({(rank, buffer): array.view(np.uint8) for buffer, array in buffers.items()})
        launches.append((plan, buffers))
    deadline = time.monotonic() + 20
    threads = [
        threading.Thread(target=execute, args=(plan, buffers, LocalEndpoint(network, plan), KERNELS, deadline))
        for plan, buffers in launches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if layout.placement is Placement.OUT:
        for (_, buffers), values in zip(launches, inputs, strict=True):
            np.testing.assert_array_equal(buffers[Buffer.INPUT], values)
    return outputs


@pytest.mark.parametrize("algorithm", ONE_SIDED, ids=lambda a: f"{a.name}{a.ranks}")
@pytest.mark.parametrize(("elements", "tile_bytes"), [(0, 64), (1, 8), (24, 1 << 20), (36, 40)])
def test_engine_does_what_the_reference_does(algorithm: Algorithm, elements: int, tile_bytes: int) -> None:
    for placement in placements_of(algorithm):
        layout = plan_layout(algorithm, placement, elements)
        if layout.padded:
            continue
        case = Case(algorithm.collective, elements, DtypeKind.INTEGER, "sum")
        inputs = [case.input(rank) for rank in range(algorithm.ranks)]
        wanted = run_local(algorithm, inputs, placement=placement, elements=elements)
        for rank, got in enumerate(run_threads(algorithm, inputs, layout, tile_bytes)):
            _, matters = case.output(rank)
            np.testing.assert_array_equal(got[matters], wanted[rank][matters], err_msg=f"rank {rank} {placement}")


@pytest.mark.parametrize("algorithm", ONE_SIDED, ids=lambda a: f"{a.name}{a.ranks}")
@pytest.mark.parametrize("order", [first_first, last_first, random_order(5), random_order(6)])
def test_reference_gives_the_expected_outputs(algorithm: Algorithm, order) -> None:
    for placement in placements_of(algorithm):
        case = Case(algorithm.collective, 13, DtypeKind.INTEGER, "sum")
        inputs = [case.input(rank) for rank in range(algorithm.ranks)]
        outputs = run_local(algorithm, inputs, placement=placement, elements=13, factor=FACTOR, schedule=order, tiles=2)
        for rank, output in enumerate(outputs):
            wanted, matters = case.output(rank)
            np.testing.assert_array_equal(output[matters], wanted[matters], err_msg=f"rank {rank} {placement}")


@pytest.mark.parametrize("algorithm", ONE_SIDED, ids=lambda a: f"{a.name}{a.ranks}")
def test_the_cases_are_proved(algorithm: Algorithm) -> None:
    for placement in placements_of(algorithm):
        require(algorithm, placement, 3, whole_messages=True)


def test_sources_are_combined_from_left_to_right() -> None:
    huge = [np.array([1e16]), np.array([1.0]), np.array([-1e16])]
    assert [out.tolist() for out in run_local(one_shot(3), huge)] == [[0.0]] * 3


def test_the_engine_combines_from_left_to_right_and_keeps_its_inputs() -> None:
    layout = plan_layout(one_shot(3), Placement.OUT, 1)
    plan = plan_rank(one_shot(3), layout, 0, 8, 64)
    step = next(step for step in plan.blocks[0].steps if step.op is Op.READ_REDUCE)
    arrays = [np.array([1e16]), np.array([0.0, 1.0, -1e16]), np.array([0.0, 1.0, -1e16]), np.array([7.0])]
    transfer(numpy_kernels(np.dtype(np.float64), "sum"), step.one_sided, 0, step.overlaps, arrays)
    assert [array.tolist() for array in arrays] == [[1e16], [0.0, 1.0, -1e16], [0.0, 1.0, -1e16], [0.0]]


def test_a_step_that_overlaps_itself_reads_before_it_writes() -> None:
    algorithm = replace(shifted(), placements=frozenset(Placement))
    layout = plan_layout(algorithm, Placement.IN, 2)
    plan = plan_rank(algorithm, layout, 0, 8, 1 << 10)
    span = np.arange(6)
    buffers = {Buffer.INPUT: span, Buffer.OUTPUT: span[2:], Buffer.SCRATCH: span[:0]}
    execute(plan, buffers, LocalEndpoint(LocalNetwork(2), plan), KERNELS, time.monotonic() + 5)
    assert span.tolist() == [0, 1, 0, 1, 2, 3]


def test_alltoallv_by_puts() -> None:
    sizes = [[5, 0, 9], [1, 2, 3], [4, 0, 7]]
    algorithm = puts(3, 2, "alltoallv")
    layout = plan_layout(algorithm, Placement.OUT, 0, sizes)
    inputs = [np.arange(sum(row)) + 100 * rank for rank, row in enumerate(sizes)]
    wanted = run_local(algorithm, inputs, sizes=sizes)
    for got, want in zip(run_threads(algorithm, inputs, layout, 24), wanted, strict=True):
        np.testing.assert_array_equal(got, want)


def test_labels_follow_puts_and_gets() -> None:
    found = flow(puts(2, 2), Placement.OUT)
    assert set(found.moved) == {(0, 1), ()}
    assert found.stored == frozenset()
    assert flow(crossed(), Placement.OUT).stored == {(0, 1), (1, 0)}
    assert plan_layout(crossed(), Placement.OUT, 5).padded
    assert not plan_layout(crossed(), Placement.OUT, 6).padded
    layout = plan_layout(puts(2, 2), Placement.OUT, 5)
    assert message_lengths(puts(2, 2), layout, 0) == (3, 2)


def test_sources_of_different_length_ask_for_padding() -> None:
    algorithm = _alone([(0, Buffer.INPUT, 0), (0, Buffer.INPUT, 1)], [(0, Buffer.OUTPUT, 0)])
    assert flow(algorithm, Placement.OUT).combined == {(0, 1)}
    assert plan_layout(algorithm, Placement.OUT, 5).padded
    assert not plan_layout(algorithm, Placement.OUT, 6).padded


def _alone(sources: list, destinations: list) -> Algorithm:
    collective = one_shot(2, 2).collective
    b = AlgorithmBuilder("alone", collective, [1, 1])
    b.threadblock(0, channel=3)
    b.step(Op.READ_REDUCE_STORE, sources=sources, destinations=destinations)
    return b.build()


def test_reading_a_slot_of_a_peer_that_nobody_wrote_is_named() -> None:
    algorithm = _alone([(0, Buffer.INPUT, 0), (1, Buffer.SCRATCH, 0)], [(0, Buffer.OUTPUT, 0)])
    with pytest.raises(ExecutionError, match=r"rank 0 threadblock 0 step 0 reads s\[0\] of rank 1, to which nothing"):
        flow(algorithm, Placement.OUT)


def _without_signals(algorithm: Algorithm, rank: int) -> Algorithm:
    b = AlgorithmBuilder("silent", algorithm.collective, algorithm.scratch_chunks)
    for block in (block for owner in range(algorithm.ranks) for block in algorithm.threadblocks(owner)):
        b.threadblock(block.rank, block.send, block.recv, block.channel)
        for step in (algorithm.step(number) for number in block.steps):
            if block.rank == rank and step.op is Op.SIGNAL:
                continue
            slots = [
                [(r.rank, r.span.buffer, r.span.index) for r in spans] for spans in (step.sources, step.destinations)
            ]
            peer = step.peer if step.op.synchronizes else None
            b.step(step.op, None, None, step.count, sources=slots[0], destinations=slots[1], peer=peer)
    return b.build()


def test_a_wait_without_its_signal_is_named() -> None:
    algorithm = _without_signals(window(2), 1)
    with pytest.raises(ExecutionError, match="rank 0 threadblock 0 waits for ever in step 2"):
        flow(algorithm, Placement.OUT)
    inputs = [np.arange(4), np.arange(4)]
    outcome = simulate_run(algorithm, inputs)
    assert isinstance(outcome.errors[0], DeadlineError)
    assert "rank 0 waits in threadblock 0 step 2 (wait 1)" in outcome.errors[0].message
    layout = plan_layout(algorithm, Placement.OUT, 4)
    plan = plan_rank(algorithm, layout, 0, 8, 64)
    network = LocalNetwork(2)
    network.memory[1, Buffer.SCRATCH] = np.zeros(64, dtype=np.uint8)
    buffers = {Buffer.INPUT: np.arange(4), Buffer.OUTPUT: np.zeros(0, int), Buffer.SCRATCH: np.zeros(0, int)}
    with pytest.raises(DeadlineError, match="step 2 waits for a signal from rank 1 on channel 0 past the deadline"):
        execute(plan, buffers, LocalEndpoint(network, plan), KERNELS, time.monotonic() + 0.05)


def test_a_transport_without_peers_memory_refuses_the_first_one_sided_step() -> None:
    message = r"shared: rank 0 threadblock 0 step 0 \(signal 1\) is one-sided, and gloo does not let rank 0 reach the"
    with pytest.raises(SpecError, match=message) as caught:
        refuse_unreachable(shared(3), lambda rank, peer: False, "gloo")
    assert (caught.value.fields["step"], caught.value.fields["peer"]) == (0, 1)
    refuse_unreachable(shared(3), lambda rank, peer: True, "gloo")
    with pytest.raises(SpecError, match="reach the memory of rank 2"):
        refuse_unreachable(shared(3), lambda rank, peer: 2 not in (rank, peer), "gloo")


class _MessagesOnly:
    """An endpoint that has messages only, and never any."""

    def __getattr__(self, name: str):
        if name in ("try_send", "try_recv", "commit", "release", "wait_any"):
            return lambda *arguments: None
        raise AttributeError(name)


@pytest.mark.parametrize("algorithm", [gets(2, 1), one_shot(2)], ids=["signal", "put"])
def test_the_engine_refuses_a_one_sided_step_too(algorithm: Algorithm) -> None:
    plan = plan_rank(algorithm, plan_layout(algorithm, Placement.OUT, 4), 1, 8, 64)
    buffers = dict.fromkeys(Buffer, np.zeros(8, dtype=np.int64))
    with pytest.raises(SpecError, match=r"rank 1 threadblock 0 step 0 .* _MessagesOnly does not let rank 1 reach") as e:
        execute(plan, buffers, _MessagesOnly(), KERNELS, time.monotonic() + 1)
    assert e.value.fields["peer"] == 0


def test_peers_of_a_step() -> None:
    steps = list(shared(3).steps())
    assert peers_of(steps[0]) == (1,)
    assert [peers_of(step) for step in steps if step.op is Op.READ_REDUCE_STORE] == [(1, 2), (0, 2), (0, 1)]
