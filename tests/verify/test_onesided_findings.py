"""What the verifier says of one-sided programs that are wrong: which step, which slot, why, and what to do."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from onesided_samples import SAMPLES, barrier

from commlib.algorithms import trace
from commlib.collectives import Buffer, Placement, allgather, allreduce, custom
from commlib.compiler import compile_trace
from commlib.dsl import OneSidedProgram
from commlib.errors import AlgorithmError
from commlib.ir.algorithm import Algorithm
from commlib.verify import Finding, FindingKind, Report, execute, interpret, synchronizing, verify
from commlib.verify import events as events_module

OUT, IN = Placement.OUT, Placement.IN
Kind = FindingKind


def exchange(entry: bool = True, exit: bool = True, flush: bool = True, put: bool = True) -> Algorithm:
    """Allgather on two ranks through the tensors, with or without what makes it right."""
    k = OneSidedProgram("exchange", allgather(2))
    for me, peer in ((0, 1), (1, 0)):
        tb = k.threadblock(me)
        tb.copy(k.input(me)[0], k.output(me)[me])
        if entry:
            tb.signal(peer)
            tb.wait(peer)
        if put:
            tb.put(k.input(me)[0], k.output(peer)[me])
        else:
            tb.get(k.input(peer)[0], k.output(me)[peer])
        if exit:
            tb.signal(peer)
            tb.wait(peer)
        if flush:
            tb.flush(peer)
    return k.algorithm()


def program(write: Callable[[OneSidedProgram], object], ranks: int = 2) -> Report:
    """The report on a program whose result is not looked at."""
    k = OneSidedProgram("program", custom("any", [2] * ranks, [2] * ranks, {}))
    write(k)
    return verify(k.algorithm(), [OUT])


def of_rank(report: Report, placement: Placement, rank: int) -> list[Finding]:
    return [finding for finding in report.placements[placement].findings if finding.rank == rank]


def test_the_exchange_is_right() -> None:
    assert verify(exchange()).proved == {IN, OUT}
    assert verify(exchange(put=False)).proved == {IN, OUT}


def test_a_peer_that_reads_before_the_owner_has_entered() -> None:
    (finding,) = of_rank(verify(exchange(entry=False, put=False)), OUT, 1)
    assert finding.kind is Kind.RACE
    assert finding.message.startswith("out of place, rank 1 threadblock 0 step 1 (get 0.i[0] -> o[0], ")
    assert "reads rank 0 i[0] when rank 0 may not have entered the call" in finding.message
    assert (finding.peer, finding.buffer, finding.chunk, finding.placement) == (0, Buffer.INPUT, 0, OUT)
    assert finding.file is not None
    assert finding.file.endswith("test_onesided_findings.py")


def test_a_peer_that_reads_after_the_owner_has_left() -> None:
    (finding,) = of_rank(verify(exchange(exit=False, put=False)), OUT, 0)
    assert "(get 1.i[0] -> o[1], " in finding.message
    assert "reads rank 1 i[0] when rank 1 may have left the call" in finding.message
    assert "let rank 1 wait for a signal that follows it" in finding.message


def test_a_put_whose_source_may_still_be_read_when_its_owner_leaves() -> None:
    (finding,) = of_rank(verify(exchange(flush=False)), OUT, 0)
    assert "(put i[0] -> 1.o[0], " in finding.message
    assert "reads rank 0 i[0] when rank 0 may have left the call" in finding.message
    assert "its read is in flight until rank 1 threadblock 0 step 5 (wait 0, " in finding.message
    assert finding.message.endswith("(flush it)")


def test_a_put_that_arrives_after_its_target_has_left() -> None:
    (finding,) = of_rank(verify(exchange(exit=False)), OUT, 1)
    assert "writes rank 0 o[1] when rank 0 may have left the call" in finding.message
    assert "its write is in flight until rank 1 threadblock 0 step 4 (flush 0, " in finding.message


def test_a_put_that_nothing_ends() -> None:
    messages = [finding.message for finding in of_rank(verify(exchange(exit=False, flush=False)), OUT, 0)]
    assert len(messages) == 2
    assert all("stays in flight: no signal or flush for that peer follows in its threadblock" in m for m in messages)


def test_a_signal_releases_the_puts_to_its_peer_only() -> None:
    def write(k: OneSidedProgram) -> None:
        first, second, third = (k.threadblock(rank) for rank in range(3))
        first.put(k.input(0)[0], k.scratch(2)[0])
        first.signal(1)
        second.wait(0)
        second.signal(2)
        third.wait(1)
        third.copy(k.scratch(2)[0], k.output(2)[0])
        first.flush(2)

    (finding,) = program(write, 3).findings
    assert "rank 2 s[0]: rank 0 threadblock 0 step 0 (put i[0] -> 2.s[0], " in finding.message
    assert (finding.rank, finding.threadblock, finding.step, finding.others) == (2, 0, 1, ((0, 0, 0),))


def test_a_flush_lets_a_third_rank_know() -> None:
    def write(k: OneSidedProgram) -> None:
        first, second, third = (k.threadblock(rank) for rank in range(3))
        first.put(k.input(0)[0], k.scratch(2)[0])
        first.flush(2)
        first.signal(1)
        second.wait(0)
        second.signal(2)
        third.wait(1)
        third.copy(k.scratch(2)[0], k.output(2)[0])

    assert program(write, 3).proved == {OUT}


def test_a_source_is_not_written_while_a_put_may_read_it() -> None:
    def write(k: OneSidedProgram, flush: bool) -> None:
        first, second = k.threadblock(0), k.threadblock(1)
        first.copy(k.input(0)[0], k.scratch(0)[0])
        first.put(k.scratch(0)[0], k.scratch(1)[0])
        if flush:
            first.flush(1)
        first.copy(k.input(0)[1], k.scratch(0)[0])
        first.signal(1)
        second.wait(0)

    assert program(lambda k: write(k, True)).proved == {OUT}
    (finding,) = program(lambda k: write(k, False)).findings
    assert "rank 0 s[0]: rank 0 threadblock 0 step 1 (put s[0] -> 1.s[0], " in finding.message
    assert "its read is in flight until rank 1 threadblock 0 step 0 (wait 0, " in finding.message


def test_two_puts_to_one_slot_may_arrive_in_any_order() -> None:
    def write(k: OneSidedProgram, between: bool) -> None:
        first, second = k.threadblock(0), k.threadblock(1)
        first.put(k.input(0)[0], k.scratch(1)[0])
        if between:
            first.flush(1)
        first.put(k.input(0)[1], k.scratch(1)[0])
        first.signal(1)
        first.flush(1)
        second.wait(0)

    assert program(lambda k: write(k, True)).proved == {OUT}
    (finding,) = program(lambda k: write(k, False)).findings
    assert "both use it, one of them writes, and nothing orders them; its write is in flight" in finding.message


def test_signals_and_waits_must_be_as_many() -> None:
    def write(k: OneSidedProgram) -> None:
        first, second = k.threadblock(0, channel=3), k.threadblock(1, channel=3)
        first.signal(1)
        first.signal(1)
        second.wait(0)

    (finding,) = program(write).findings
    assert finding.kind is Kind.MATCH
    assert "rank 0 signals rank 1 2 times on channel 3, and rank 1 waits for that 1 times" in finding.message
    assert (finding.rank, finding.step, finding.peer, finding.channel) == (0, 1, 1, 3)
    more_waits = program(lambda k: k.threadblock(0).wait(1))
    assert "no signal ends the wait of rank 0 threadblock 0 step 0 (wait 1, " in more_waits.findings[0].message
    assert more_waits.smallest_fifo_depth is None


def test_a_counter_has_one_owner_at_each_end() -> None:
    def write(k: OneSidedProgram) -> None:
        for _ in range(2):
            k.threadblock(0).signal(1)
        waiting = k.threadblock(1)
        waiting.wait(0)
        waiting.wait(0)

    (finding,) = program(write).findings
    assert finding.kind is Kind.CONNECTION
    assert "two threadblocks signal rank 1 on channel 0" in finding.message
    assert (finding.rank, finding.threadblock, finding.others) == (0, 1, ((0, 0, 0),))


def test_waits_in_a_circle_are_a_deadlock() -> None:
    def write(k: OneSidedProgram) -> None:
        for me, peer in ((0, 1), (1, 0)):
            tb = k.threadblock(me)
            tb.wait(peer)
            tb.signal(peer)

    report = program(write)
    (finding,) = report.findings
    assert finding.kind is Kind.DEADLOCK
    assert "at any FIFO depth, 2 threadblocks wait for one another" in finding.message
    assert "waits for the signal of rank 1 on channel 0 (its threadblock 0 step 1)" in finding.message
    assert (finding.rank, finding.peer, finding.channel, finding.others) == (0, 1, 0, ((1, 0, 0),))


def test_a_full_fifo_and_a_signal_make_a_deadlock() -> None:
    """The sender signals only when both messages are sent; the receiver takes them only after the signal."""

    def write(k: OneSidedProgram) -> None:
        sender, receiver = k.threadblock(0, send=1), k.threadblock(1, recv=0)
        for chunk in range(2):
            sender.send(k.input(0)[chunk])
        sender.signal(1)
        receiver.wait(0)
        for chunk in range(2):
            receiver.recv(k.output(1)[chunk])

    k = OneSidedProgram("mixed", custom("any", [2, 2], [2, 2], {}))
    write(k)
    algorithm = k.algorithm()
    assert verify(algorithm, [OUT], fifo_depth=2).smallest_fifo_depth == 2
    (finding,) = verify(algorithm, [OUT], fifo_depth=1).findings
    assert "at FIFO depth 1, 2 threadblocks wait for one another" in finding.message
    assert "the signal of rank 0 on channel 0" in finding.message


def test_in_place_operands_may_overlap_that_are_apart_out_of_place() -> None:
    k = OneSidedProgram("shift", custom("any", [4, 4], [4, 4], {}, [(0, 1)] * 2))
    for me, peer in ((0, 1), (1, 0)):
        tb = k.threadblock(me)
        barrier(tb, me, 2)
        if me == 0:
            tb.read_reduce_store([k.input(0)[0:2], k.input(1)[2:4]], [k.output(0)[0:2], k.output(peer)[0:2]])
        barrier(tb, me, 2)
    report = verify(k.algorithm())
    assert report.proved == {OUT}
    (finding,) = report.findings
    assert finding.kind is Kind.RACE
    assert finding.message.startswith("in place, a destination of rank 0 threadblock 0 step 2 (rrst ")
    assert "overlaps another operand" in finding.message


def test_the_input_of_others_is_constant_out_of_place() -> None:
    k = OneSidedProgram("store", allreduce(2), placement="in")
    for me, peer in ((0, 1), (1, 0)):
        tb = k.threadblock(me)
        barrier(tb, me, 2)
        if me == 0:
            tb.read_reduce_store([k.input(0)[0], k.input(1)[0]], [k.input(0)[0], k.input(peer)[0]])
        barrier(tb, me, 2)
    report = verify(k.algorithm())
    assert report.proved == {IN}
    overwritten = [f for f in report.findings if f.kind is Kind.INPUT_OVERWRITTEN]
    assert [("rank 0's" in f.message, "rank 1's" in f.message) for f in overwritten] == [(True, False), (False, True)]


def test_scratch_of_others_that_nobody_wrote() -> None:
    def write(k: OneSidedProgram) -> None:
        k.threadblock(0).get(k.scratch(1)[0], k.output(0)[0])

    (finding,) = program(write).findings
    assert finding.kind is Kind.UNINITIALIZED
    assert "reads rank 1 s[0], to which nothing has been written" in finding.message


def test_a_lost_operand_is_a_lost_contribution() -> None:
    k = OneSidedProgram("lost", allreduce(2))
    for me in range(2):
        tb = k.threadblock(me)
        barrier(tb, me, 2)
        tb.read_reduce([k.input(0)[0], k.input(me)[0]], k.output(me)[0])
        barrier(tb, me, 2)
    messages = [finding.message for finding in verify(k.algorithm(), [OUT]).findings]
    assert messages == ["rank 0 o[0]: the contribution of rank 1 i[0] is lost; rank 0 i[0] is counted 2 times"]


def test_contents_of_a_program_with_one_sided_steps() -> None:
    contents = execute(SAMPLES["direct_staged"](3), OUT)
    assert contents.counts(1, Buffer.SCRATCH, 3) == {(0, 1): 1, (1, 1): 1, (2, 1): 1}
    assert contents.counts(1, Buffer.SCRATCH, 1) == {(1, 1): 1}


def test_one_interleaving_of_messages_is_not_what_interprets_one_sided_steps() -> None:
    with pytest.raises(AlgorithmError, match="has one-sided steps"):
        interpret(exchange(), OUT, min)


def test_synchronizing() -> None:
    assert synchronizing(SAMPLES["direct_shared"](4))
    assert not synchronizing(SAMPLES["relayed_broadcast"](4)), "the root does not learn that others have begun"
    assert not synchronizing(exchange(entry=False, exit=False))
    assert synchronizing(compile_trace(trace("allreduce", "ring", 4)))
    assert not synchronizing(compile_trace(trace("broadcast", "chain", 4)))
    stuck = OneSidedProgram("stuck", custom("any", [1, 1], [1, 1], {}))
    stuck.threadblock(0).wait(1)
    assert not synchronizing(stuck.algorithm())


def test_many_passes_say_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithms = [exchange(), exchange(entry=False), exchange(flush=False), SAMPLES["put_allgather"](4)]
    reports = [verify(algorithm) for algorithm in algorithms]
    monkeypatch.setattr(events_module, "PASS", 3)
    assert [verify(algorithm) for algorithm in algorithms] == reports


@pytest.mark.parametrize(("name", "ranks", "seconds"), [("direct_staged", 8, 0.1), ("get_alltoall", 64, 5.0)])
def test_a_proof_is_quick_enough_to_be_made_at_start(name: str, ranks: int, seconds: float) -> None:
    """It takes 2 and 130 ms on an idle core; the bound is for a busy one."""
    algorithm = SAMPLES[name](ranks)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        assert verify(algorithm).ok
        times.append(time.perf_counter() - began)
    assert min(times) < seconds
