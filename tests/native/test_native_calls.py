"""Calls of the native core that wait, fail, or are refused; regions, other processes' memory, rings, records."""

import dataclasses
import gc
import signal
import struct
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_world import StuckError, World, core, needs_core, on_stall
from onesided_cases import one_shot, shared, staged
from runtime_algorithms import chain, ring_allreduce
from timely import wait_until

from commlib.collectives import Placement
from commlib.errors import SpecError
from commlib.ir.algorithm import Algorithm
from commlib.runtime.layout import plan_layout
from commlib.runtime.shm.context import RECORD
from commlib.runtime.shm.control import ALARM, SegmentLayout
from commlib.runtime.table import (
    BLOCK,
    DEPEND,
    MOVE,
    MOVES,
    NONE,
    OPERAND,
    OWN_OUTPUT,
    PEERS,
    SIGNAL,
    STEP,
    WAIT,
    RankTable,
)
from commlib.runtime.tabulate import TableLimits, tabulate

pytestmark = needs_core
LAYOUT = SegmentLayout(2, 4096, 4096, 4, 1000)


def tables_of(algorithm: Algorithm, elements: int = 16, sync: bool = False) -> list[RankTable]:
    layout = plan_layout(algorithm, Placement.OUT, elements)
    limits = TableLimits(4096, 4096, 4, 32)
    return [tabulate(algorithm, layout, rank, 4, "int32", "sum", limits, sync) for rank in range(algorithm.ranks)]


def tensors(value: int = 1, elements: int = 16) -> list[np.ndarray]:
    return [np.full(elements, value + rank, dtype=np.int32) for rank in range(2)]


def planned(world: World, tables, inputs, outputs):
    return [
        context.planned(table, a.ctypes.data, b.ctypes.data)
        for context, table, a, b in zip(world.contexts, tables, inputs, outputs, strict=True)
    ]


def test_planned_calls_are_calls_without_arguments():
    world, inputs, outputs = World("native", LAYOUT), tensors(), tensors(0)
    calls = planned(world, world.take(tables_of(one_shot(2), sync=True)), inputs, outputs)
    for number in range(20):
        inputs[0][:] = number
        world.each(lambda rank: calls[rank]())
        assert all((output == number + 2).all() for output in outputs)
    assert [context.calls for context in world.contexts] == [20, 20]
    with pytest.raises(TypeError, match="no arguments"):
        calls[0](1)


def test_a_late_rank_is_waited_for_and_told_of():
    told = []
    world = World("native", LAYOUT, lambda seconds, waits: told.append((seconds, waits)), 0.01)
    tables, inputs, outputs = world.take(tables_of(one_shot(2))), tensors(), tensors(0)

    def one(rank):
        if rank == 1:
            wait_until(lambda: len(told) >= 3)
        world.contexts[rank].run(tables[rank], inputs[rank].ctypes.data, outputs[rank].ctypes.data, 3.5)

    world.each(one)
    assert all((output == 3).all() for output in outputs)
    assert told[-1][0] >= 0.009 * len(told)
    announced = ((-1, -1, 1, 1, 1), (0, 0, 5, -1, -1))
    assert all(waits == announced for _, waits in told), "the first step waits until rank 1 has announced itself"
    assert [seconds for seconds, _ in told] == sorted(seconds for seconds, _ in told)
    assert told[0][0] >= 0.009
    assert world.contexts[0].timeout == 3.5


def test_the_guard_waits_for_who_is_two_epochs_behind():
    """The root of a broadcast waits for nobody; it must not overwrite scratch that others still work in."""
    told = []
    world = World("native", LAYOUT, lambda _, waits: told.append(waits), 0.01)
    tables, inputs, outputs = world.take(tables_of(chain("broadcast", 2, chunks=1))), tensors(), tensors(0)
    seen = []

    def one(rank):
        if rank == 1:
            wait_until(lambda: told)
        for number in range(4):
            inputs[rank][:] = number
            world.contexts[rank].run(tables[rank], inputs[rank].ctypes.data, outputs[rank].ctypes.data, 3.5)
            seen.append((rank, number, int(outputs[rank][0])))

    world.each(one)
    assert sorted(seen) == [(rank, number, number) for rank in range(2) for number in range(4)]
    assert set(told) == {((-1, -1, 4, 1, -1),)}


def test_an_error_of_on_stall_ends_the_call_and_the_context():
    def give_up(_, waits):
        raise StuckError(waits)

    world = World("native", LAYOUT, give_up, 0.01)
    tables, inputs, outputs = world.take(tables_of(one_shot(2))), tensors(), tensors(0)
    run, told = world.contexts[0].run, []
    world.contexts[0].on_error = told.append
    with pytest.raises(StuckError):
        run(tables[0], inputs[0].ctypes.data, outputs[0].ctypes.data, 1.0)
    assert [type(error) for error in told] == [StuckError]
    with pytest.raises(RuntimeError, match="failed"):
        run(tables[0], inputs[0].ctypes.data, outputs[0].ctypes.data, 1.0)
    (record,) = RECORD.iter_unpack(world.contexts[0].records())
    assert record[0] == 1
    assert record[2] == 2, "the flight record says failed"


def test_signals_of_the_system_end_a_wait():
    """A handler that raises, as that of the interrupt does, ends the call of a rank whose peer does not come."""

    def handler(signum, frame):
        raise StuckError(signum, frame is None)

    def stall(seconds, waits):
        if not armed:  # it waits; before the call the handler would end something else
            armed.append(signal.setitimer(signal.ITIMER_REAL, 0.05))
        on_stall(seconds, waits)

    armed, world = [], World("native", LAYOUT, stall)
    (table, _), (tensor, _) = world.take(tables_of(one_shot(2))), tensors()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        began = time.monotonic()
        with pytest.raises(StuckError):
            world.contexts[0].run(table, tensor.ctypes.data, tensor.ctypes.data, 1.0)
        assert time.monotonic() - began < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_rank_that_waits_burns_no_core():
    world, inputs, outputs = World("native", LAYOUT), tensors(), tensors(0)
    tables, used = world.take(tables_of(one_shot(2))), [0.0, 0.0]

    def one(rank):
        time.sleep(0.5 * rank)
        before = time.thread_time()
        world.contexts[rank].run(tables[rank], inputs[rank].ctypes.data, outputs[rank].ctypes.data, 1.0)
        used[rank] = time.thread_time() - before

    world.each(one)
    assert used[0] < 0.1


def test_memory_is_registered_while_a_call_runs():
    world, inputs, outputs = World("native", LAYOUT), tensors(), tensors(0)
    world.register(inputs)
    world.register(outputs)
    tables = world.take(tables_of(shared(2)), reach=1)

    def one(rank):
        if rank:
            time.sleep(0.1)
            for number in range(100, 400):
                world.contexts[0].region(1, number, outputs[1].ctypes.data, 8)
        world.contexts[rank].run(tables[rank], inputs[rank].ctypes.data, outputs[rank].ctypes.data, 1.0)

    for _ in range(3):
        world.each(one)
    assert all((output == 3).all() for output in outputs)


def test_an_alarm_is_told_before_the_call_begins():
    world = World("native", LAYOUT, lambda seconds, waits: (_ for _ in ()).throw(StuckError(seconds, waits)))
    world.maps[0][ALARM : ALARM + 4] = struct.pack("<I", 1)
    (table, _), inputs = world.take(tables_of(one_shot(2))), tensors()
    with pytest.raises(StuckError, match=r"0\.0, \(\)"):
        world.contexts[0].run(table, inputs[0].ctypes.data, inputs[0].ctypes.data, 1.0)
    assert world.contexts[0].calls == 0


@pytest.mark.parametrize("program", [one_shot(2), ring_allreduce(2)], ids=lambda a: a.name)
def test_other_calls_are_a_mismatch(program):
    world, inputs, outputs = World("native", LAYOUT), tensors(), tensors(0)
    tables = [
        context.table(table, rank, b"", 0) for rank, (context, table) in
        enumerate(zip(world.contexts, tables_of(program), strict=True))
    ]  # fmt: skip
    found = []

    def one(rank):
        context = world.contexts[rank]
        context.on_mismatch = lambda peer: (_ for _ in ()).throw(StuckError("mismatch", peer))
        try:
            context.run(tables[rank], inputs[rank].ctypes.data, outputs[rank].ctypes.data, 1.0)
        except StuckError as error:
            found.append((rank, error.args))

    world.each(one)
    assert sorted(found) == [(0, ("mismatch", 1)), (1, ("mismatch", 0))]


def test_errors_of_the_trace_hook_end_the_call():
    world, inputs = World("native", LAYOUT), tensors()
    (table, _) = world.take(tables_of(one_shot(2)))

    def trace(block, step, tile):
        if step == 0:
            raise StuckError(block, step, tile)

    world.contexts[0].trace = trace
    with pytest.raises(StuckError, match="0, 0, 0"):
        world.contexts[0].run(table, inputs[0].ctypes.data, inputs[0].ctypes.data, 1.0)


def test_closed_contexts_and_foreign_tables_are_refused():
    world, inputs = World("native", LAYOUT), tensors()
    first, second = world.take(tables_of(one_shot(2)))
    at = inputs[0].ctypes.data
    with pytest.raises(RuntimeError, match="another context"):
        world.contexts[0].run(second, at, at, 1.0)
    call = world.contexts[0].planned(first, at, at)
    world.contexts[0].close()
    for refused in (call, lambda: world.contexts[0].ring_read(1, at, 1), lambda: world.contexts[0].wait_rings(0.0)):
        with pytest.raises(RuntimeError, match="closed"):
            refused()


def test_two_threads_cannot_call_at_once():
    world, inputs = World("native", LAYOUT), tensors()
    tables = world.take(tables_of(one_shot(2)))
    refusals = []

    def one(_):
        try:
            world.contexts[0].run(tables[0], inputs[0].ctypes.data, inputs[0].ctypes.data, 1.0)
        except RuntimeError as error:
            refusals.append(str(error))
            world.contexts[1].run(tables[1], inputs[1].ctypes.data, inputs[1].ctypes.data, 1.0)

    world.each(one)
    assert len(refusals) == 1
    assert "another thread" in refusals[0]


def test_tensors_of_others_must_be_registered():
    def impatient(seconds, waits):
        if seconds > 0.3:
            raise StuckError(waits)

    world, inputs, outputs = World("native", LAYOUT, impatient), tensors(), tensors(0)
    with pytest.raises(ValueError, match="out of range"):
        world.take(tables_of(shared(2)), reach=0)
    tables = world.take(tables_of(shared(2)), reach=1)
    world.register(inputs)
    world.register(outputs)
    world.call(tables, inputs, outputs)
    assert all((output == 3).all() for output in outputs)
    for context in world.contexts:
        context.region(0, 0, 0, 0)  # rank 0 gives its input back
    with pytest.raises(SpecError, match="input of rank 0 is not in registered memory"):
        world.call(tables, inputs, outputs)


def test_reading_through_the_system():
    """reach 2: words on the board are addresses, other ranks' inputs come by process_vm_readv."""
    world, inputs, outputs = World("native", LAYOUT), tensors(1, 100_000), tensors(0, 100_000)
    tables = world.take([reads_only(rank) for rank in range(2)], reach=2)
    inputs[0][:] = np.arange(100_000)
    try:
        world.call(tables, inputs, outputs)
    except OSError as error:
        pytest.skip(f"not allowed here: {error}")
    assert all((output == np.arange(100_000) + 2).all() for output in outputs)


def reads_only(rank: int) -> RankTable:
    """Barrier, output = input of rank 0 + input of rank 1, barrier."""
    steps = np.zeros(5, STEP)
    steps["kind"], steps["peer"], steps["move_high"] = [SIGNAL, WAIT, MOVE, SIGNAL, WAIT], 1 - rank, [0, 0, 1, 0, 0]
    steps["receive"] = steps["send"] = NONE
    moves, operands = np.zeros(1, MOVES), np.zeros(3, OPERAND)
    moves["destination_low"], moves["high"], moves["length"] = 2, 3, 100_000
    operands["base"] = [PEERS, PEERS + 3, OWN_OUTPUT]
    arrays = {"steps": steps, "moves": moves, "operands": operands, "blocks": np.array([(0, 5)], BLOCK)}
    table = tables_of(shared(2), 100_000)[rank]
    return dataclasses.replace(table, **arrays, depends=np.zeros(0, DEPEND), writes_peers=False, threadblocks=(0,))


def test_rings_carry_any_bytes():
    world = World("native", LAYOUT)
    data = np.random.default_rng(3).integers(0, 256, 100_000, dtype=np.uint8)
    got = np.zeros_like(data)

    def one(rank):
        context, array = world.contexts[rank], (data, got)[rank]
        move, at = (context.ring_write, context.ring_read)[rank], 0
        while at < len(array):
            moved = move(1 - rank, array.ctypes.data + at, min(len(array) - at, 1 + 7 * at % 1500))
            if not moved:
                context.wait_rings(5.0)
            at += moved

    world.each(one)
    np.testing.assert_array_equal(got, data)
    world.contexts[0].wait_rings(0.0)  # sees that all has been read
    began = time.monotonic()
    assert not world.contexts[0].wait_rings(0.05)
    assert 0.04 < time.monotonic() - began < 20
    with pytest.raises(ValueError, match="no peer"):
        world.contexts[0].ring_write(0, data.ctypes.data, 1)


def test_the_flight_ring_holds_the_last_calls():
    world, inputs, outputs = World("native", LAYOUT), tensors(), tensors(0)
    world.take(tables_of(staged(2)))
    tables = world.take(tables_of(one_shot(2)))
    for _ in range(11):
        world.call(tables, inputs, outputs)
    records = list(RECORD.iter_unpack(world.contexts[1].records()))
    assert [record[0] for record in records] == list(range(4, 12)), "8 are kept, the oldest first"
    assert {record[1:4] for record in records} == {(1, 1, 64 + 64)}, "table 1, done, bytes to scratch and output"
    assert all(began < ended for *_, began, ended in records)


def test_contexts_go_with_their_owners():
    class Owner:
        def __init__(self):
            self.world = World("native", LAYOUT, self.on_stall)
            (table, _), (tensor, _) = self.world.take(tables_of(one_shot(2))), tensors()
            self.call = self.world.contexts[0].planned(table, tensor.ctypes.data, tensor.ctypes.data)

        def on_stall(self, _, waits):
            raise StuckError(waits)

    gone = weakref.ref(Owner())
    gc.collect()
    assert gone() is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_table_leads_out_of_its_memory(data):
    """A table with a number changed anywhere is refused, or stays within the lane and the slots."""
    world, table = World("native", LAYOUT), tables_of(data.draw(st.sampled_from([staged(2), ring_allreduce(2)])))[0]
    rows = data.draw(st.sampled_from(["steps", "moves", "operands", "depends", "blocks", "sends", "receives"]))
    array = getattr(table, rows).copy()
    if not len(array):
        return
    field = data.draw(st.sampled_from([name for name in array.dtype.names if name not in ("zero", "index")]))
    row = data.draw(st.integers(0, len(array) - 1))
    array[field][row] = data.draw(st.sampled_from([-(1 << 31), -2, -1, 0, 1, 2, 9, 1 << 20, (1 << 31) - 1]))
    try:
        core_table = world.contexts[0].table(dataclasses.replace(table, **{rows: array}), 1, b"", 0)
    except ValueError:
        return
    assert isinstance(core_table, core.Table)
    moves, operands = (array if rows == name else getattr(table, name) for name in ("moves", "operands"))
    for move in moves:
        for operand in operands[move["source_low"] : move["high"]]:
            assert operand["offset"] >= 0
            limit = {2: LAYOUT.lane, 3: LAYOUT.slot, 4: LAYOUT.slot, PEERS + 5: LAYOUT.lane}.get(int(operand["base"]))
            assert limit is None or operand["offset"] + 4 * int(move["length"]) <= limit


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("instructions", ["generic", "avx2", "avx512"])
def test_outputs_beyond_the_cache(in_place, instructions):
    """Large outputs are written past the caches: odd sizes and addresses, sums and copies; nothing beyond the end."""
    try:
        core.use_instructions(instructions)
    except ValueError:
        pytest.skip(f"this machine has no {instructions}")
    elements, world = 10_000_003, World("native", SegmentLayout(2, 1 << 18, 4096, 4, 1000))
    memory = [np.full((2, elements + 32), 1, dtype=np.int32) for _ in range(2)]
    inputs = [rows[0, 1 : elements + 1] for rows in memory]
    outputs = inputs if in_place else [rows[1, 3 : elements + 3] for rows in memory]
    layout = plan_layout(staged(2), Placement.IN if in_place else Placement.OUT, elements)
    limits = TableLimits(1 << 18, 4096, 4, 32)
    tables = world.take([tabulate(staged(2), layout, rank, 4, "int32", "sum", limits, False) for rank in range(2)])
    core.use_instructions(None)
    inputs[0][::1000] = np.arange(0, elements, 1000)
    wanted = inputs[0] + inputs[1]
    world.call(tables, inputs, outputs)
    for output, rows in zip(outputs, memory, strict=True):
        np.testing.assert_array_equal(output, wanted)
        assert (rows[:, elements + 3 :] == 1).all()
        assert (rows[:, 0] == 1).all()
