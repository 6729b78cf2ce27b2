"""One-sided steps in an Algorithm: records, what they touch, how signals meet waits, costs, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commlib.collectives import Buffer, allreduce
from commlib.errors import AlgorithmError
from commlib.ir.algorithm import STEP_COLUMNS, TB_COLUMNS, Algorithm, Op, RemoteSpan, Span
from commlib.ir.builder import AlgorithmBuilder
from commlib.ir.links import links, peers, signal_links
from commlib.ir.stats import statistics, traffic
from commlib.ir.text import algorithm_from_text, algorithm_to_text

HEAD = 'algorithm "x"\ncollective "allreduce" ranks 3 chunks 4\nprotocol "Simple"\nplacements in out\nscratch 4 4 4\n\n'
I, O, S = Buffer  # noqa: E741


def program(*ranks: str) -> Algorithm:
    """An algorithm of three ranks, each of one threadblock with these lines, separated by semicolons."""
    text = HEAD
    for rank, lines in enumerate([*ranks, "", ""][:3]):
        text += f"rank {rank}\ntb 0 channel 2\n"
        text += "".join(f"  {place} {line.strip()}\n" for place, line in enumerate(lines.split(";")) if line.strip())
    return algorithm_from_text(text)


def test_records_have_all_slots_and_the_peer():
    a = program(
        "put i[0] -> 1.s[3]; get 2.s[1:3] -> s[0:2]; rrst i[2] + 1.i[0] -> 2.o[0], o[1]; flush 2; cpy i[0] -> o[0]"
    )
    put, get, both, flush, copy = a.steps()
    assert put.sources == (RemoteSpan(0, Span(I, 0, 1)),)
    assert put.destinations == (RemoteSpan(1, Span(S, 3, 1)),)
    assert (put.source, put.destination, put.peer, put.count) == (None, None, 1, 1)
    assert get.sources == (RemoteSpan(2, Span(S, 1, 2)),)
    assert get.destinations == (RemoteSpan(0, Span(S, 0, 2)),)
    assert (get.peer, get.count) == (2, 2)
    assert [(s.rank, s.span.buffer) for s in both.sources] == [(0, I), (1, I)]
    assert [(s.rank, s.span.index) for s in both.destinations] == [(2, 0), (0, 1)]
    assert both.peer is None
    assert (flush.peer, flush.count, flush.sources, flush.destinations) == (2, 0, (), ())
    assert (copy.sources, copy.destinations) == ((RemoteSpan(0, copy.source),), (RemoteSpan(0, copy.destination),))
    assert [str(step) for step in a.steps()][:2] == ["put i[0] -> 1.s[3]", "get 2.s[1:3] -> s[0:2]"]


def test_columns_of_operands():
    a = program("signal 2; rr i[0] + 1.s[2] -> o[1]; wait 1", "put s[0] -> 2.s[1]")
    assert a.operand_start.tolist() == [0, 1, 4, 5, 7]
    assert a.operand_rank.tolist() == [2, 0, 1, 0, 1, 1, 2]
    assert a.operand_buffer.tolist() == [-1, I, S, O, -1, S, S]
    assert a.operand_index.tolist() == [-1, 0, 2, 1, -1, 0, 1]
    assert a.operand_writes.tolist() == [0, 0, 0, 1, 0, 0, 1]
    assert a.operand_step.tolist() == [0, 1, 1, 1, 2, 3, 3]
    assert a.source_buffer.tolist() == [-1] * 4
    assert peers(a).tolist() == [2, -1, 1, -1]


@pytest.mark.parametrize(
    ("lines", "one_sided", "touches"),
    [
        ("cpy i[0] -> o[0]", False, (False, False)),
        ("signal 1; put i[0] -> 1.s[0]; get 1.s[0] -> o[0]", True, (False, False)),
        ("rr i[0] + o[0] + 2.i[1] -> o[0]", True, (True, False)),
        ("st i[0] -> o[0], 2.o[0]", True, (False, True)),
        ("rrst i[0] + 1.o[0] -> o[0], 1.o[0]", True, (True, True)),
    ],
)
def test_what_it_touches(lines, one_sided, touches):
    assert (program(lines).one_sided, program(lines).touches_peers_tensors) == (one_sided, touches)


def test_algorithms_without_operands_need_no_columns_of_them():
    a = program("cpy i[0] -> o[0]; cpy i[1] -> o[1]")
    plain = {name: getattr(a, name) for name in (*TB_COLUMNS, *STEP_COLUMNS) if not name.startswith("operand")}
    made = Algorithm(a.name, a.collective, a.scratch_chunks, **plain)
    assert made == a
    assert made.operand_start.tolist() == [0, 0, 0]
    assert not made.operand_rank.flags.writeable
    shorter = {name: getattr(a, name)[:1] for name in STEP_COLUMNS[:6]}
    assert replace(a, **shorter, dep_start=a.dep_start[:2], tb_start=np.array([0, 1, 1, 1])).step_count == 1


def test_operands_count_in_equality():
    a = program("rr i[0] + 1.i[0] -> o[0]")
    assert a == program("rr i[0] + 1.i[0] -> o[0]")
    assert a != program("rr 1.i[0] + i[0] -> o[0]")
    assert a != program("rr i[0] + 1.i[1] -> o[0]")


def test_the_kth_wait_is_for_the_kth_signal():
    a = program("signal 1; wait 1; signal 1; wait 2", "wait 0; signal 0; wait 0", "signal 0; signal 0")
    met = signal_links(a)
    rows = list(zip(met.sender.tolist(), met.receiver.tolist(), met.channel.tolist(), strict=True))
    assert rows == [(0, 1, 2), (1, 0, 2), (2, 0, 2)]
    assert met.partners(a.count) is None  # rank 2 signals twice and is waited for once
    assert [pair.tolist() for pair in met.messages()] == [[0, 2, 5, 7], [4, 6, 1, 3]]
    assert len(links(a)) == 0


def test_statistics_and_traffic():
    a = program(
        "put i[0] -> 1.s[0]; signal 1; wait 2; rr s[0] + 2.i[0] -> o[0]",
        "wait 0; st s[0] -> 2.s[1], s[1], 0.s[1]; signal 2",
        "wait 1; signal 0; get 1.s[0:3] -> o[0:3]",
    )
    found = statistics(a)
    assert traffic(a).tolist() == [[0, 1, 0], [1, 0, 1 + 3], [1, 0, 0]]
    assert found.chunks_sent == (1, 5, 1)
    assert (found.messages, found.signals, found.remote_reads, found.remote_writes) == (0, 3, 2, 3)
    assert found.critical_path == 3
    assert statistics(program("signal 1")).critical_path is None
    assert statistics(program("wait 1; signal 1", "wait 0; signal 0")).critical_path is None


@pytest.mark.parametrize(
    ("op", "sources", "destinations", "message"),
    [
        (Op.PUT, [(0, I, 0)], [(0, O, 0)], "must have a destination on another rank"),
        (Op.PUT, [(1, I, 0)], [(2, O, 0)], "must have a local source"),
        (Op.PUT, [(0, I, 0)], [(1, O, 0), (2, O, 0)], "must have exactly one destination"),
        (Op.PUT, [], [(1, O, 0)], "must have exactly one source"),
        (Op.GET, [(0, I, 0)], [(0, O, 0)], "must have a source on another rank"),
        (Op.GET, [(1, I, 0)], [(2, O, 0)], "must have a local destination"),
        (Op.GET, [(1, I, 0), (2, I, 0)], [(0, O, 0)], "must have exactly one source"),
        (Op.READ_REDUCE, [(1, I, 0)], [(2, O, 0)], "must have a local destination"),
        (Op.READ_REDUCE, [(1, I, 0)], [], "must have exactly one destination"),
        (Op.READ_REDUCE, [], [(0, O, 0)], "must have sources and destinations"),
        (Op.STORE, [(1, I, 0)], [(0, O, 0)], "must have a local source"),
        (Op.STORE, [(0, I, 0)], [(0, O, 0), (1, O, 0), (0, O, 0)], "has a destination twice"),
        (Op.READ_REDUCE_STORE, [(1, I, 0)], [], "must have sources and destinations"),
        (Op.READ_REDUCE_STORE, [], [(1, O, 0)], "must have sources and destinations"),
        (Op.COPY, [(0, I, 0)], [(0, O, 0)], "has operands, but is not one-sided"),
        (Op.PUT, [(0, I, 0)], [(3, O, 0)], "names a rank outside 0..2"),
        (Op.PUT, [(0, I, 0)], [(1, O, 3)], "has an operand outside its buffer"),
        (Op.PUT, [(0, I, -1)], [(1, O, 0)], "has an operand with an index that cannot be"),
        (Op.PUT, [(0, -1, -1)], [(1, O, 0)], "has an operand in an unknown buffer"),
        (Op.SIGNAL, [(1, I, 0)], [], "needs another rank as its peer, and no slot"),
        (Op.SIGNAL, [(0, -1, -1)], [], "needs another rank as its peer, and no slot"),
        (Op.WAIT, [(1, -1, -1), (2, -1, -1)], [], "must have exactly one source or peer"),
        (Op.WAIT, [], [], "lacks its operands"),
        (Op.FLUSH, [], [(1, -1, -1)], "has a destination, but only signals"),
    ],
)
def test_operands_that_an_operation_cannot_have_are_refused(op, sources, destinations, message):
    builder = AlgorithmBuilder("x", allreduce(3), [4] * 3)
    builder.threadblock(0)
    builder.step(Op.NOP, count=0)
    local = [(I, 0), (O, 0)] if op is Op.COPY else [None, None]
    builder.step(op, *local, int(not op.synchronizes), sources=sources, destinations=destinations)
    with pytest.raises(AlgorithmError, match=message) as error:
        builder.build()
    assert (error.value.fields["rank"], error.value.fields["threadblock"], error.value.fields["step"]) == (0, 0, 1)


@pytest.mark.parametrize("op", [Op.SIGNAL, Op.WAIT, Op.FLUSH])
def test_a_count_belongs_to_what_moves(op):
    builder = AlgorithmBuilder("x", allreduce(2), [0, 0])
    builder.threadblock(0)
    builder.step(op, count=1, peer=1)
    with pytest.raises(AlgorithmError, match="count"):
        builder.build()


@pytest.mark.parametrize(
    ("lines", "fine"),
    [
        ("rr s[0:2] + 1.s[0:2] -> s[0:2]", True),
        ("rr s[0:2] + 1.s[0:2] -> s[1:3]", False),
        ("rr s[0:2] + s[1:3] -> s[2:4]", False),
        ("rr s[0:2] + s[1:3] -> o[0:2]", True),
        ("rr 1.s[1:3] + 2.s[0:2] -> s[0:2]", True),
        ("st s[0:2] -> s[2:4], 1.s[1:3]", True),
        ("st i[0:2] -> 1.s[0:2], 1.s[1:3]", False),
        ("rrst 1.s[0:3] + i[0:3] -> s[0:3], 1.s[1:4]", False),
        ("rrst 1.s[0:3] + i[0:3] -> s[0:3], 1.s[0:3]", True),
    ],
)
def test_operands_of_a_step_are_equal_or_apart_where_one_is_written(lines, fine):
    if fine:
        assert lines in algorithm_to_text(program(lines))
        return
    with pytest.raises(Exception, match="rank 0 threadblock 0 step 0 has operands that overlap in part") as error:
        program(lines)
    assert error.value.fields["line"] == 9


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("operand_rank", [1], "column operand_buffer has 2 rows for 1 operands"),
        ("operand_start", [0, 1], "operand_start does not delimit the operands"),
        ("operand_start", [0, 1, 2], "column operand_start has 3 rows for 1 steps"),
        ("operand_writes", [0, 2], "neither source nor destination"),
        ("operand_writes", [1, 0], "has a source after a destination"),
    ],
)
def test_columns_of_operands_that_do_not_fit_are_refused(column, value, message):
    with pytest.raises(AlgorithmError, match=message):
        replace(program("put i[0] -> 1.s[0]"), **{column: np.array(value)})


SLOTS = st.tuples(st.integers(0, 2), st.sampled_from([O, S]), st.integers(0, 4))


@settings(max_examples=200, deadline=None)
@given(st.lists(SLOTS, min_size=1, max_size=4), st.lists(SLOTS, min_size=1, max_size=4), st.integers(1, 3))
def test_overlaps_are_found_as_by_comparing_all_pairs(sources, destinations, count):
    def apart(a, b):
        return a[:2] != b[:2] or abs(a[2] - b[2]) >= count

    twice = len(set(destinations)) < len(destinations)
    partly = any(a != b and not apart(a, b) for a in (*sources, *destinations) for b in destinations)
    builder = AlgorithmBuilder("x", allreduce(3, 8), [8] * 3)
    builder.threadblock(0)
    builder.step(Op.READ_REDUCE_STORE, count=1, sources=[(1, I, 0)], destinations=[(0, O, 0)])
    builder.threadblock(0)
    builder.step(Op.READ_REDUCE_STORE, count=count, sources=sources, destinations=destinations)
    if not twice and not partly:
        assert builder.build().step_count == 2
        return
    with pytest.raises(AlgorithmError, match=r"threadblock 1 step 0 has (a destination twice|operands that overlap)"):
        builder.build()
