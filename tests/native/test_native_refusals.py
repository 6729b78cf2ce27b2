"""What a context refuses: calls while another is about to begin, tables whose numbers overflow, absurd layouts."""

import dataclasses
import struct
import threading

import numpy as np
import pytest
from native_world import World, core, needs_core

from commlib.runtime.shm.control import ALARM, SegmentLayout
from commlib.runtime.shm.interface import RefusedError
from commlib.runtime.table import (
    BLOCK,
    DEPEND,
    LINK,
    MOVE,
    MOVES,
    OPERAND,
    OWN_INPUT,
    OWN_SCRATCH,
    STEP,
    WAIT,
    RankTable,
)

LAYOUT = SegmentLayout(2, 4096, 4096, 4, 1000)


def table(steps, moves=(), operands=(), width=8, tiles=1):
    links = np.zeros(0, LINK)
    rows = [
        np.array(list(given), kind)
        for given, kind in ((steps, STEP), (moves, MOVES), (operands, OPERAND), ((), DEPEND), ([(0, 1)], BLOCK))
    ]
    return RankTable(0, 2, *rows, links, links, width, tiles, 1, "uint8", None, False, False, True, (0,))


WAITING = table([(WAIT, 0, -1, -1, 1, 0, 0, 0, 0, 0, 0)])


@needs_core
def test_no_call_begins_while_an_alarm_is_being_told():
    inside, go, seen = threading.Event(), threading.Event(), []

    def stall(_seconds, waits):
        if waits:
            raise KeyError("enough")
        inside.set()
        go.wait(5)

    context = (world := World("native", LAYOUT, stall)).contexts[0]
    world.maps[0][ALARM : ALARM + 4] = struct.pack("<I", 1)
    (taken,) = [context.table(WAITING, 1, b"", 0)]

    def first():
        with pytest.raises(KeyError):
            context.run(taken, 0, 0, 1.0)
        seen.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(5)
    world.maps[0][ALARM : ALARM + 4] = bytes(4)
    with pytest.raises(RefusedError, match="another thread"):
        context.run(taken, 0, 0, 1.0)
    go.set()
    thread.join(5)
    assert (seen, context.calls) == (["first"], 1)


@needs_core
@pytest.mark.parametrize(
    ("offset", "stride", "tiles"), [((1 << 63) - 4, 0, 1), (0, 1 << 62, 5), ((1 << 63) - 1, 1, 2), (4089, 0, 1)]
)
def test_operands_that_overflow_are_refused(offset, stride, tiles):
    move = (0, 0, -1, -1, -1, 0, 0, 1, 0, 0, 0)
    assert move[0] == MOVE
    operands = [(OWN_INPUT, 0, 0, 0), (OWN_SCRATCH, 0, offset, stride)]
    wrong = table([move], [(0, 1, 2, 0, 8)], operands, tiles=tiles)
    context = World("native", LAYOUT).contexts[0]
    with pytest.raises(ValueError, match="step row 0"):
        context.table(wrong, 1, b"", 0)


@needs_core
@pytest.mark.parametrize("change", [{"lane": 1 << 62}, {"slot": 1 << 60}, {"ring": 1 << 61}, {"depth": 1 << 40}])
def test_absurd_layouts_are_refused(change):
    segments = World("native", LAYOUT).segments
    with pytest.raises(ValueError, match="huge"):
        core.Context(0, 2, dataclasses.replace(LAYOUT, **change), segments, 1, 1, 0.02, None, 4)


@needs_core
def test_deleted_hooks_are_no_hooks():
    context = (world := World("native", LAYOUT)).contexts[0]
    del context.trace, context.on_error, context.on_mismatch, context.on_stall
    world.maps[0][ALARM : ALARM + 4] = struct.pack("<I", 1)
    values = np.arange(8, dtype=np.uint8)
    copy = [(0, 0, -1, -1, -1, 0, 0, 1, 0, 0, 0)], [(0, 1, 2, 0, 8)], [(OWN_INPUT, 0, 0, 0), (OWN_SCRATCH, 0, 0, 0)]
    context.run(context.table(table(*copy), 1, b"", 0), values.ctypes.data, 0, 1.0)
    assert context.calls == 1


@pytest.mark.parametrize("kind", ["python", pytest.param("native", marks=needs_core)])
def test_a_closed_context_says_why(kind):
    context = World(kind, LAYOUT).contexts[0]
    taken = context.table(WAITING, 1, b"", 0)
    again = context.planned(taken, 0, 0, 1.0)
    context.close("the house is on fire")
    context.close()
    for call in (again, lambda: context.run(taken, 0, 0, 1.0)):
        with pytest.raises(RefusedError, match="the house is on fire"):
            call()
