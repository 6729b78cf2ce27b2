"""What compiled programs look like: fusion, order, threadblocks, channels, dependences, hints."""

from __future__ import annotations

import pytest
from sample_programs import ring

from commlib.collectives import Placement, allgather, allreduce, alltoall, broadcast, custom
from commlib.compiler import CompileOptions, compile_trace
from commlib.dsl import Program, record
from commlib.errors import CompileError
from commlib.ir.algorithm import Algorithm
from commlib.ir.stats import statistics
from commlib.verify import verify


def ops(algorithm: Algorithm, rank: int) -> list[list[str]]:
    return [[algorithm.step(n).op.short for n in tb.steps] for tb in algorithm.threadblocks(rank)]


def flat(lists: list[list[str]]) -> list[str]:
    return [item for items in lists for item in items]


def text(algorithm: Algorithm, rank: int) -> list[list[str]]:
    return [[str(algorithm.step(n)) for n in tb.steps] for tb in algorithm.threadblocks(rank)]


def proved(algorithm: Algorithm) -> frozenset[Placement]:
    report = verify(algorithm)
    assert report.ok, report.text()
    return report.proved


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_the_ring_allreduce(n):
    algorithm = compile_trace(record(ring, allreduce(n, n)))
    one = ["s", *["rrs"] * (n - 2), "rrcs", *["rcs"] * (n - 2), "r"]
    assert [ops(algorithm, rank) for rank in range(n)] == [[one]] * n
    stats = statistics(algorithm)
    assert (stats.critical_path, stats.channels, len(algorithm.dep)) == (2 * (n - 1), 1, 0)
    assert proved(algorithm) == frozenset(Placement)


def test_without_fusion_every_hop_is_two_steps():
    algorithm = compile_trace(record(ring, allreduce(3, 3)), CompileOptions(fuse=False))
    assert sorted(flat(ops(algorithm, 0))) == ["r", "r", "rrc", "rrc", "s", "s", "s", "s"]
    assert proved(algorithm) == frozenset(Placement)


def test_one_send_joins_the_receive_and_others_read_the_slot():
    def tree(p: Program) -> None:
        c = p.chunk(0, "input").copy(1, "output")
        c.copy(2)
        c.copy(3)

    algorithm = compile_trace(record(tree, custom("t", [1, 0, 0, 0], [0, 1, 1, 1], {}), placement="out"))
    assert text(algorithm, 1) == [["rcs -> o[0]"], ["s o[0] after 0.0"]]


def test_a_receive_that_only_a_reduce_reads_becomes_rrc():
    def staged(p: Program) -> None:
        tmp = p.scratch("tmp", 1)
        got = p.chunk(0, "input").copy(1, tmp, 0)
        p.chunk(1, "input").reduce(got)

    algorithm = compile_trace(record(staged, custom("t", [1, 1], [0, 0], {}, [(0, 0)] * 2), placement="in"))
    assert text(algorithm, 1) == [["rrc i[0] -> i[0]"]]


def test_rrc_is_not_made_across_another_use_of_the_destination():
    def staged(p: Program) -> None:
        tmp = p.scratch("tmp", 1)
        got = p.chunk(0, "input").copy(1, tmp, 0)
        p.chunk(1, "input").copy(0, "output")
        p.chunk(1, "input").reduce(got)

    algorithm = compile_trace(record(staged, custom("t", [1, 1], [1, 0], {}, [(0, 0)] * 2), placement="in"))
    assert sorted(flat(ops(algorithm, 1))) == ["r", "re", "s"]


def test_rrs_only_where_nobody_reads_what_is_kept():
    def kept(p: Program) -> None:
        c = p.chunk(1, "input").reduce(p.chunk(0, "input"), into="output")
        c.copy(2)

    trace = record(kept, custom("t", [1, 1, 0], [0, 1, 1], {}), placement="out")
    assert ops(compile_trace(trace), 1) == [["rrcs"]]

    def passed_on(p: Program) -> None:
        c = p.chunk(1, "input").reduce(p.chunk(0, "input"), into=(p.scratch("tmp", 1), 0))
        c.copy(2, "output")

    trace = record(passed_on, custom("t", [1, 1, 0], [0, 1, 1], {}), placement="out")
    assert text(compile_trace(trace), 1) == [["rrs i[0]"]]


def test_a_partly_overwritten_receive_is_not_joined():
    def partly(p: Program) -> None:
        p.chunk(0, "input", 0, 2).copy(1, "output")
        p.chunk(2, "input").copy(1, "output", 1)
        p.chunk(1, "output", 0, 2).copy(2, "output", 0)

    algorithm = compile_trace(record(partly, custom("t", [2, 0, 1], [0, 2, 2], {}), placement="out"))
    assert sorted(flat(ops(algorithm, 1))) == ["r", "r", "s"]


def test_sends_of_a_level_come_before_its_receives():
    def exchange(p: Program) -> None:
        p.chunk(0, "input").copy(1, "output", 0, send_tb=0, recv_tb=0)
        p.chunk(1, "input").copy(0, "output", 0, send_tb=0, recv_tb=0)

    algorithm = compile_trace(record(exchange, custom("t", [1, 1], [1, 1], {}), placement="out"))
    assert [ops(algorithm, r) for r in (0, 1)] == [[["s", "r"]], [["s", "r"]]]


def test_sending_does_not_wait_for_receiving_unless_fused():
    def everyone(p: Program) -> None:
        for r in range(p.ranks):
            for d in range(p.ranks):
                p.chunk(r, "input", d).copy(d, "output", r)

    algorithm = compile_trace(record(everyone, alltoall(3), placement="out"))
    assert [(tb.send, tb.recv) for tb in algorithm.threadblocks(0)] == [
        (None, None), (1, None), (2, None), (None, 1), (None, 2),
    ]  # fmt: skip


def test_dependences_are_reduced_transitively():
    def chain(p: Program) -> None:
        tmp = p.scratch("tmp", 1)
        for k in range(3):
            p.chunk(k % 2, "input", k).copy(2, tmp, 0, recv_tb=k).copy(2, "output", k, send_tb=5)

    algorithm = compile_trace(record(chain, custom("t", [3, 3, 0], [0, 0, 3], {}), placement="out"))
    assert text(algorithm, 2) == [
        ["r -> s[0]"],
        ["r -> s[0] after 3.0"],
        ["r -> s[0] after 3.1"],
        ["cpy s[0] -> o[0] after 0.0", "cpy s[0] -> o[1] after 1.0", "cpy s[0] -> o[2] after 2.0"],
    ]


def test_in_place_hazards_order_a_program_for_both_placements():
    def swap(p: Program) -> None:
        tmp = p.scratch("tmp", 1)
        kept = [p.chunk(r, "input").copy(r, tmp, 0) for r in range(2)]
        for r in range(2):
            kept[r].copy(1 - r, "output", 0)

    both = compile_trace(record(swap, custom("swap", [1, 1], [1, 1], {}, [(0, 0)] * 2)))
    apart = compile_trace(record(swap, custom("swap", [1, 1], [1, 1], {}), placement="out"))
    assert len(both.dep) == 4
    assert len(apart.dep) == 2


def test_instances_run_on_channels_of_their_own():
    algorithm = compile_trace(record(ring, allreduce(4, 4), instances=3))
    assert algorithm.channels == 3
    assert algorithm.collective == allreduce(4, 12)
    assert len(algorithm.dep) == 0
    assert proved(algorithm) == frozenset(Placement)


@pytest.mark.parametrize(("blocked", "starts"), [(False, [0, 1]), (True, [0, 4])])
def test_interleaved_and_blocked_parts(blocked, starts):
    algorithm = compile_trace(record(ring, allreduce(4, 4), instances=2, blocked=blocked))
    first = [algorithm.step(tb.steps[0]).source.index for tb in algorithm.threadblocks(0)]
    assert first == starts
    assert proved(algorithm) == frozenset(Placement)


def test_blocked_parts_stay_inside_their_shard():
    def gather(p: Program) -> None:
        for r in range(2):
            mine = p.chunk(r, "input", 0, 2).copy(r, "output", 2 * r)
            mine.copy(1 - r)

    algorithm = compile_trace(record(gather, allgather(2, 2), instances=2, blocked=True))
    received = [s.destination for s in algorithm.steps() if s.op.short == "r" and s.rank == 0]
    assert [(s.index, s.count) for s in received] == [(4, 2), (6, 2)]
    assert proved(algorithm) == frozenset(Placement)


def test_parallelize_cuts_a_part_of_the_program():
    def program(p: Program) -> None:
        c = p.chunk(0, "input").copy(0, "output")
        with p.parallelize(4):
            c = c.copy(1)
        c.copy(2)

    algorithm = compile_trace(record(program, broadcast(3)))
    assert algorithm.collective.chunks == 4
    assert sorted(tb.channel for tb in algorithm.threadblocks(1) if tb.recv == 0) == [0, 1, 2, 3]
    (send,) = [s for s in algorithm.steps() if s.rank == 1 and s.op.short == "s"]
    assert (send.count, len(send.depends)) == (4, 4)
    assert proved(algorithm) == frozenset(Placement)


def test_hints_are_kept():
    def program(p: Program) -> None:
        p.chunk(0, "input", 0).copy(1, "output", 0, channel=3, send_tb=2, recv_tb=1)
        p.chunk(0, "input", 1).copy(1, "output", 1, channel=1, send_tb=0, recv_tb=0)
        p.chunk(0, "input", 2).copy(1, "output", 2)

    algorithm = compile_trace(record(program, custom("t", [3, 0], [0, 3], {}), placement="out"))
    assert [(tb.channel, ops(algorithm, 0)[tb.index]) for tb in algorithm.threadblocks(0)] == [
        (1, ["s"]),
        (0, ["s"]),
        (3, ["s"]),
    ]
    assert [tb.channel for tb in algorithm.threadblocks(1)] == [1, 3, 0]


def test_hints_keep_their_numbers_on_the_first_lane():
    def program(p: Program) -> None:
        p.chunk(0, "input").copy(1, "output", channel=2, send_tb=1)
        with p.parallelize(2):
            p.chunk(1, "output").copy(2, channel=3)

    algorithm = compile_trace(record(program, custom("t", [1, 0, 0], [0, 1, 1], {}), placement="out"))
    assert [tb.channel for tb in algorithm.threadblocks(0)] == [2]
    assert sorted(tb.channel for tb in algorithm.threadblocks(2)) == [3, 5]


def test_two_hinted_threadblocks_with_one_peer_get_two_channels():
    def program(p: Program) -> None:
        p.chunk(0, "input", 0).copy(1, "output", 0, send_tb=0)
        p.chunk(0, "input", 1).copy(1, "output", 1, send_tb=1)

    algorithm = compile_trace(record(program, custom("t", [2, 0], [0, 2], {}), placement="out"))
    assert [tb.channel for tb in algorithm.threadblocks(0)] == [0, 1]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"send_tb": 0}, {"send_tb": 0}, r"threadblock 0 of rank 0 sends to two different ranks"),
        ({"send_tb": 0, "channel": 1}, {"send_tb": 1, "channel": 1, "to": 1}, r"another threadblock has the same peer"),
        ({"send_tb": 0, "channel": 1}, {"send_tb": 0, "channel": 2, "to": 1}, r"hinted to two different channels"),
    ],
)
def test_contradicting_hints_name_the_line(first, second, message):
    def program(p: Program) -> None:
        p.chunk(0, "input", 0).copy(1, "output", 0, **first)
        to = second.pop("to", 2)
        p.chunk(0, "input", 1).copy(to, "output", 1, **second)

    second = dict(second)
    trace = record(program, custom("t", [2, 0, 0], [0, 2, 2], {}), placement="out")
    with pytest.raises(CompileError, match=message) as error:
        compile_trace(trace)
    assert error.value.fields["file"] == __file__


def test_too_many_channels_name_the_line():
    def program(p: Program) -> None:
        p.chunk(0, "input").copy(1, "output", channel=4095)

    trace = record(program, custom("t", [1, 0], [0, 1], {}), placement="out", instances=70_000)
    with pytest.raises(CompileError, match=rf"{__file__}:\d+: .* channels must stay below 65536 on every lane"):
        compile_trace(trace)


def test_options_are_checked():
    trace = record(ring, allreduce(2, 2))
    with pytest.raises(CompileError, match="at least one slot"):
        compile_trace(trace, CompileOptions(fifo_depth=0))


def test_an_empty_program():
    algorithm = compile_trace(Program(allreduce(3)).trace())
    assert algorithm.step_count == 0
    assert not verify(algorithm).ok
