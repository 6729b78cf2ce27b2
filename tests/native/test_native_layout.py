"""The native core and Python agree on every byte of segments and tables; where a compiler is, the core is built."""

import dataclasses
import shutil
import struct
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from native_world import core, needs_core

from commlib.runtime import table
from commlib.runtime.shm import context, control

RECORDS = {"Step": table.STEP, "Move": table.MOVES, "Operand": table.OPERAND, "Depend": table.DEPEND}
RECORDS |= {"Block": table.BLOCK, "Link": table.LINK}


def test_the_core_is_built_where_a_compiler_is():
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    if not headers or (shutil.which("cc") is None and shutil.which("gcc") is None):
        pytest.skip("no C compiler, or no headers of Python, here: the package runs in Python")
    assert core is not None, "run: python setup.py build_ext --inplace"


@needs_core
def test_constants():
    for name, value in core.CONSTANTS.items():
        home = table if hasattr(table, name) else control
        assert getattr(home, name) == value, name
    for name in ("MAGIC", "CHANNELS", "CALLS", "BOARD", "BOARD_ENTRY", "ALARM", "STALL", "AFTER_BOARD", "FAILURE"):
        assert name in core.CONSTANTS


@needs_core
@pytest.mark.parametrize("name", RECORDS)
def test_records_of_tables(name):
    dtype = RECORDS[name]
    found = [(field, offset, size) for record, field, offset, size in core.FIELDS if record == name]
    assert found == [(field, dtype.fields[field][1], dtype.fields[field][0].itemsize) for field in dtype.names]
    assert sum(size for _, _, size in found) == dtype.itemsize


@needs_core
def test_records_of_the_flight_ring():
    found = [size for record, _, _, size in core.FIELDS if record == "Record"]
    assert found == [8, 4, 4, 8, 8, 8]
    assert sum(found) == context.RECORD.size == struct.calcsize("<QIIQQQ")


@needs_core
def test_offsets_in_segments():
    generator = np.random.default_rng(1)
    for _ in range(50):
        ranks, lane, slot, depth, ring = (int(x) for x in generator.integers(1, 5000, 5))
        channel, sender = int(generator.integers(control.CHANNELS)), int(generator.integers(ranks))
        layout = control.SegmentLayout(ranks, lane, slot, depth, ring)
        found = core.offsets(*dataclasses.astuple(layout), channel, sender)
        wanted = {name: getattr(layout, name)(channel, sender) for name in ("signal", "tail", "credit", "fifo")}
        wanted |= {name: getattr(layout, name)(sender) for name in ("ring_words", "ring_bytes")}
        assert found == wanted | {
            "control_end": layout.control_end, "scratch": layout.scratch(1), "size": layout.size
        }  # fmt: skip
