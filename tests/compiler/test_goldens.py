"""Every pass on small programs, text in and text out. COMMLIB_UPDATE_GOLDENS=1 rewrites the files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample_programs import ring

from commlib.collectives import Collective, allreduce, broadcast, custom
from commlib.compiler import compile_trace
from commlib.compiler.accesses import accesses, hazards
from commlib.compiler.channels import Channels
from commlib.compiler.emit import Emit
from commlib.compiler.fuse import Fuse, ReceiveReduce
from commlib.compiler.instances import Instances
from commlib.compiler.lower import Lower
from commlib.compiler.order import Order
from commlib.compiler.threadblocks import Threadblocks
from commlib.compiler.trim import TrimScratch
from commlib.dsl import Program, record
from commlib.ir.graph import graph_from_text, graph_to_text
from commlib.ir.text import algorithm_to_text
from commlib.ir.trace import COLUMNS, Trace
from commlib.ir.trace_text import trace_from_text, trace_to_text

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "compiler"


def tree(p: Program) -> None:
    c = p.chunk(0, "input").copy(0, "output").copy(1)
    c.copy(2)
    c.copy(3)


def staged(p: Program) -> None:
    tmp = p.scratch("tmp", 3)
    for r in (1, 2):
        got = p.chunk(r, "input").copy(0, tmp, r)
        p.chunk(0, "input").reduce(got)


def mixed(p: Program) -> None:
    p.chunk(0, "input", 0, 3).copy(1, "output", 1, channel=1, send_tb=1)
    p.chunk(0, "input", 3).copy(1, "output", 0)
    with p.parallelize(2):
        p.chunk(1, "output", 0, 2).copy(2, "output", 1)
    p.chunk(2, "output", 1).reduce(p.chunk(1, "output", 3))


PROGRAMS: dict[str, tuple[Callable[[Program], None], Collective, dict[str, object]]] = {
    "ring": (ring, allreduce(3, 3), {}),
    "ring_two_instances": (ring, allreduce(2, 2), {"instances": 2}),
    "ring_two_blocked_instances": (ring, allreduce(2, 2), {"instances": 2, "blocked": True}),
    "tree": (tree, broadcast(4), {}),
    "staged_reduce": (staged, custom("sum", [1, 1, 1], [0, 0, 0], {}, [(0, 0)] * 3), {"placement": "in"}),
    "mixed": (mixed, custom("mixed", [4, 0, 0], [0, 4, 4], {}), {"placement": "out"}),
}


def traced(name: str) -> Trace:
    """The program's trace, with lines numbered by operation so that editing this file changes no golden."""
    function, collective, settings = PROGRAMS[name]
    trace = record(function, collective, name, **settings)
    rows = trace.rows.copy()
    rows[:, COLUMNS.index("line")] = np.arange(1, len(rows) + 1)
    return replace(trace, rows=rows, files=("program.py",))


def stages(trace: Trace) -> Iterator[tuple[str, str]]:
    """Each pass's name and the text of what it gives."""
    yield "Trace", trace_to_text(trace)
    trace = Instances()(trace)
    yield "Instances", trace_to_text(trace)
    trace = ReceiveReduce()(trace)
    yield "ReceiveReduce", trace_to_text(trace)
    graph = Lower()(trace)
    yield "Lower", graph_to_text(graph)
    graph = Fuse()(graph)
    yield "Fuse", graph_to_text(graph)
    graph, owners, misfits = Channels()(graph)
    assert not misfits
    yield "Channels", graph_to_text(graph)
    found = accesses(graph)
    edges = hazards(graph, found)
    graph = Threadblocks()(graph, owners, found)
    yield "Threadblocks", graph_to_text(graph)
    graph, misfits = Order()(graph, edges)
    assert not misfits
    yield "Order", graph_to_text(graph)
    graph = TrimScratch()(graph)
    yield "TrimScratch", graph_to_text(graph)
    algorithm = Emit()(graph, edges)
    assert algorithm == compile_trace(traced(algorithm.name))
    yield "Algorithm", algorithm_to_text(algorithm)


@pytest.mark.parametrize("name", PROGRAMS)
def test_passes(name):
    found = "".join(f"== {stage}\n{text}\n" for stage, text in stages(traced(name)))
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("COMMLIB_UPDATE_GOLDENS"):
        path.write_text(found)
    assert found == path.read_text()


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_level_parses_back(name):
    trace = traced(name)
    for stage, text in stages(trace):
        if stage in ("Trace", "Instances", "ReceiveReduce"):
            trace = trace_from_text(text)
            assert trace_to_text(trace) == text
        elif stage != "Algorithm":
            assert graph_to_text(graph_from_text(text, trace)) == text
