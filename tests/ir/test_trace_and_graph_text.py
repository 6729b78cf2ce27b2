"""Traces and instruction graphs print as text that parses back."""

from __future__ import annotations

import random

import pytest
from programs import Shape, random_trace

from commlib.collectives import allreduce
from commlib.compiler import schedule
from commlib.compiler.instances import Instances
from commlib.errors import FormatError
from commlib.ir.graph import graph_from_text, graph_to_text
from commlib.ir.trace_text import trace_from_text, trace_to_text

SHAPES = [Shape(), Shape(hints=True, parallel=True, instances=2, blocked=True), Shape(placement="in")]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(20))
def test_round_trips(shape, seed):
    trace = random_trace(random.Random(seed), shape)
    assert trace_from_text(trace_to_text(trace)) == trace
    expanded = Instances()(trace)
    assert trace_from_text(trace_to_text(expanded)) == expanded


@pytest.mark.parametrize("seed", range(20))
def test_graph_round_trips(seed):
    graph, _ = schedule(random_trace(random.Random(seed), Shape(parallel=True)))
    assert graph_from_text(graph_to_text(graph), graph.trace) == graph


GOOD = """trace "t"
collective "allreduce" ranks 2 chunks 2
protocol "Simple"
placements in out
scratch 0 1
instances 1
lanes 1
file "a.py"

1.o[0] = 1.i[0] + 0.i[0] at 0:3
"""


def test_the_good_one_parses():
    trace = trace_from_text(GOOD)
    assert trace.collective == allreduce(2, 2)
    assert trace_to_text(trace) == GOOD


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("1.o[0] =", "1.o[0] <-", 10, "the form is"),
        ("1.o[0] =", "2.o[0] =", 10, "not a place"),
        ("1.o[0] =", "1.o[2] =", 10, "not a place"),
        ("1.o[0] =", "1.o[0:2] =", 10, "the same size"),
        ("1.i[0] +", "0.i[0] +", 10, "on the rank of the result"),
        ("at 0:3", "at 1:3", 10, "there is no file 1"),
        ("scratch 0 1", "scratch 0", 5, "1 sizes for 2 ranks"),
        ("instances 1", "instances 1 striped", 6, "'blocked' or nothing"),
        ("lanes 1", "lanes x", 7, "is not a number"),
        ("allreduce", "allreduced", 2, "no collective is called"),
        ('trace "t"', "trace t", 1, "double quotes"),
    ],
)
def test_refusals_name_the_line(old, new, line, message):
    with pytest.raises(FormatError, match=message) as error:
        trace_from_text(GOOD.replace(old, new), "bad.txt")
    assert error.value.fields["line"] == line
    assert str(error.value).startswith(f"bad.txt:{line}: ")


@pytest.mark.parametrize("bad", ["x time=1", "s time", "s time=one", "s nonsense=3"])
def test_graph_refusals(bad):
    graph, _ = schedule(random_trace(random.Random(1), Shape()))
    with pytest.raises(FormatError, match=r"g.txt:2: not an instruction"):
        graph_from_text("cpy time=1\n" + bad, graph.trace, "g.txt")
