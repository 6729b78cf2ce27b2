"""One-sided programs: the steps are those that were written, and each misuse raises at the line that commits it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from commlib import CommlibError, OneSidedProgram, collective, custom
from commlib.dsl import ThreadblockWriter
from commlib.errors import ProgramError, SlotError
from commlib.ir.algorithm import Algorithm, Op
from commlib.ir.text import algorithm_to_text


def exchange() -> Algorithm:
    k = OneSidedProgram("exchange", collective("allreduce", ranks=2, chunks=2))
    for me, peer in ((0, 1), (1, 0)):
        copier, tb = k.threadblock(me), k.threadblock(me, channel=1)
        staged = copier.copy(k.input(me)[:], k.scratch(me)[0:2])
        tb.put(k.input(me)[peer], k.scratch(peer)[4])
        tb.signal(peer, after=staged)
        tb.wait(peer)
        tb.read_reduce([k.input(me)[me], k.scratch(me)[4]], k.output(me)[me])
        tb.flush(peer)
        tb.read_reduce_store([k.scratch(0)[peer], k.scratch(1)[peer]], [k.output(me)[peer], k.scratch(me)[5]])
        tb.store(k.scratch(me)[5], [k.scratch(me)[6]], after=[staged, staged])
        tb.get(k.scratch(peer)[0], k.scratch(me)[7])
    return k.algorithm()


EXCHANGE = """algorithm "exchange"
collective "allreduce" ranks 2 chunks 2
protocol "Simple"
placements in out
scratch 8 8

rank 0
tb 0 channel 0
  0 cpy i[0:2] -> s[0:2]
tb 1 channel 1
  0 put i[1] -> 1.s[4]
  1 signal 1 after 0.0
  2 wait 1
  3 rr i[0] + s[4] -> o[0]
  4 flush 1
  5 rrst s[1] + 1.s[1] -> o[1], s[5]
  6 st s[5] -> s[6] after 0.0
  7 get 1.s[0] -> s[7]

rank 1
tb 0 channel 0
  0 cpy i[0:2] -> s[0:2]
tb 1 channel 1
  0 put i[0] -> 0.s[4]
  1 signal 0 after 0.0
  2 wait 0
  3 rr i[1] + s[4] -> o[1]
  4 flush 0
  5 rrst 0.s[0] + s[0] -> o[0], s[5]
  6 st s[5] -> s[6] after 0.0
  7 get 0.s[0] -> s[7]
"""


def test_the_algorithm_has_the_steps_as_written():
    assert algorithm_to_text(exchange()) == EXCHANGE


def test_steps_know_the_line_that_wrote_them():
    algorithm = exchange()
    first = exchange.__code__.co_firstlineno
    assert {algorithm.origin(s)[0] for s in range(algorithm.step_count)} == {__file__}
    lines = [algorithm.origin(s)[1] - first for s in range(algorithm.step_count)]
    assert lines == [4, 5, 6, 7, 8, 9, 10, 11, 12] * 2


def test_two_sided_steps_mix_with_one_sided_ones():
    k = OneSidedProgram("mixed", collective("allreduce", ranks=2), placement="out", protocol="LL")
    a, b = k.threadblock(0, send=1), k.threadblock(1, recv=0, send=0)
    back = k.threadblock(0, recv=1)
    a.send(k.input(0)[0])
    b.recv_reduce_copy_send(k.input(1)[0], k.output(1)[0])
    got = back.recv(k.output(0)[0])
    a.signal(1, after=got)
    b.wait(0)
    other = k.threadblock(1, recv=0)
    other.nop(after=StepsOf(b))
    for write in (other.recv_copy_send, lambda place: other.recv_reduce_send(place)):
        with pytest.raises(ProgramError, match=r"needs a threadblock that was begun with send=PEER"):
            write(k.scratch(1)[0])
    other.reduce(k.scratch(1)[0], k.scratch(1)[1])
    other.recv_reduce_copy(k.scratch(1)[0], k.scratch(1)[2])
    algorithm = k.algorithm()
    assert [step.op.short for step in algorithm.steps()] == ["s", "signal", "r", "rrcs", "wait", "nop", "re", "rrc"]
    assert [step.depends for step in algorithm.steps() if step.depends] == [((1, 0),), ((0, 0), (0, 1))]
    assert (algorithm.protocol, len(algorithm.placements)) == ("LL", 1)
    assert algorithm.scratch_chunks == (0, 3)


class StepsOf:
    """The handles of both steps of a threadblock, as any iterable may give them."""

    def __init__(self, block: ThreadblockWriter) -> None:
        self.block = block

    def __iter__(self):
        from commlib.dsl import StepHandle

        return (StepHandle(self.block.program, self.block.rank, self.block.index, at) for at in (0, 1))


def test_a_program_may_be_read_while_it_grows():
    k = OneSidedProgram("grows", collective("broadcast", ranks=2, root=0))
    tb = k.threadblock(0)
    assert k.algorithm().step_count == 0
    tb.put(k.input(0)[0], k.output(1)[0])
    assert [step.op for step in k.algorithm().steps()] == [Op.PUT]


def test_placements_are_those_that_the_collective_has():
    mine = custom("mine", inputs=[1, 1], outputs=[1, 1], sources={})
    assert [p.value for p in OneSidedProgram("x", mine).algorithm().placements] == ["out"]
    with pytest.raises(ProgramError, match='placement is "in", "out" or "both", not \'up\''):
        OneSidedProgram("x", mine, placement="up")


k = OneSidedProgram("x", collective("allreduce", ranks=3, chunks=4))
other = OneSidedProgram("y", collective("allreduce", ranks=3, chunks=4))
tb, second = k.threadblock(0), k.threadblock(0)
one, i, s, o = k.threadblock(1), k.input, k.scratch, k.output


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: k.threadblock(3), "there is no rank 3; the collective has 3"),
        (lambda: k.threadblock("0"), "there is no rank '0'"),
        (lambda: k.threadblock(True), "there is no rank True"),
        (lambda: k.threadblock(0, channel=-1), "channel is a whole number from 0 to 4095, not -1"),
        (lambda: k.threadblock(0, channel=4096), "channel is a whole number from 0 to 4095, not 4096"),
        (lambda: k.threadblock(0, send=0), "rank 0 needs no connection with itself"),
        (lambda: k.threadblock(0, recv=9), "there is no rank 9"),
        (lambda: k.input(-1), "there is no rank -1"),
        (lambda: i(0)[4], "input[4:5] of rank 0 is empty or outside the buffer, which has 4 chunks"),
        (lambda: i(0)[2:2], "input[2:2] of rank 0 is empty"),
        (lambda: o(0)[-1], "output[-1:0] of rank 0 is empty or outside"),
        (lambda: o(0)[1:3:2], "chunks of output are like output[3] or output[3:5]"),
        (lambda: s(0)[1:], "chunks of scratch are like scratch[3] or scratch[3:5]"),
        (lambda: s(0)["a"], "chunks of scratch are like scratch[3]"),
        (lambda: s(0)[2**31], "scratch[2147483648:2147483649] of rank 0 is empty or outside"),
        (lambda: tb.put(i(0)[0], s(0)[0]), "scratch[0] of rank 0 is on the threadblock's own rank; put writes to"),
        (lambda: tb.put(i(1)[0], s(2)[0]), "input[0] of rank 1 must be a place of rank 0, whose threadblock this is"),
        (lambda: tb.put(i(0)[0:2], s(1)[0]), "operands differ in size: input[0:2] of rank 0, scratch[0] of rank 1"),
        (lambda: tb.put(i(0)[0], i(1)[0]), "input[0] of rank 1 would be written, but out of place the input is const"),
        (lambda: tb.put(i(0), s(1)[0]), "is no place of this program"),
        (lambda: tb.put((0, 0, 1), s(1)[0]), "is no place of this program"),
        (lambda: tb.put(other.input(0)[0], s(1)[0]), "input[0] of rank 0 is no place of this program"),
        (lambda: tb.get(i(0)[0], s(0)[0]), "get reads from another rank"),
        (lambda: tb.get(i(1)[0], s(1)[0]), "must be a place of rank 0"),
        (lambda: tb.read_reduce([], s(0)[0]), "rr has at least one source and one destination"),
        (lambda: tb.read_reduce([i(1)[0]], s(1)[0]), "must be a place of rank 0"),
        (lambda: tb.store(i(0)[0], []), "st has at least one source and one destination"),
        (lambda: tb.store(i(0)[0], [s(1)[0], s(1)[0]]), "a destination is given twice"),
        (lambda: tb.store(s(1)[0], [s(0)[0]]), "must be a place of rank 0"),
        (lambda: tb.store(s(0)[0:2], [s(0)[1:3]]), "[0:2] and [1:3] in scratch of rank 0 overlap in part"),
        (lambda: tb.copy(s(0)[0], s(1)[0]), "must be a place of rank 0"),
        (lambda: tb.copy(s(0)[0:2], s(0)[1:3]), "overlap in part"),
        (lambda: tb.send(i(0)[0]), "s needs a threadblock that was begun with send=PEER"),
        (lambda: tb.recv(o(0)[0]), "r needs a threadblock that was begun with recv=PEER"),
        (lambda: tb.signal(0), "rank 0 cannot be its own peer"),
        (lambda: tb.wait(5), "there is no rank 5"),
        (lambda: tb.flush(None), "there is no rank None"),
        (lambda: tb.nop(after=one.nop()), "after= takes steps that rank 0 of this program has written"),
        (lambda: tb.nop(after=[other.threadblock(0).nop()]), "after= takes steps that rank 0"),
        (lambda: tb.nop(after=[(0, 0)]), "after= takes steps that rank 0"),
    ],
)
def test_a_misuse_raises_at_its_line(wrong: Callable[[], object], message: str):
    with pytest.raises(CommlibError) as error:
        wrong()
    assert message in str(error.value)
    assert isinstance(error.value, ProgramError)
    line = wrong.__code__.co_firstlineno
    assert (error.value.fields["file"], error.value.fields["line"]) == (__file__, line)
    assert str(error.value).startswith(f"{__file__}:{line}: ")


def test_a_refused_step_leaves_no_trace():
    k = OneSidedProgram("x", collective("allreduce", ranks=2))
    tb = k.threadblock(0)
    with pytest.raises(ProgramError):
        tb.store(k.input(0)[0], [k.scratch(1)[5], k.input(1)[0]])
    with pytest.raises(ProgramError):
        tb.store(k.input(0)[0], [k.scratch(1)[5]], after=[None])
    assert k.algorithm().step_count == 0
    assert k.algorithm().scratch_chunks == (0, 0)


def test_areas_know_their_size_and_are_not_iterated():
    assert (k.input(0).chunks, k.scratch(0).chunks) == (4, 2**31 - 1)
    with pytest.raises(TypeError):
        list(k.scratch(0))
    with pytest.raises(SlotError):
        k.output(0)[0:5]


def test_in_place_programs_write_inputs():
    k = OneSidedProgram("x", collective("allreduce", ranks=2), placement="in")
    k.threadblock(0).put(k.input(0)[0], k.input(1)[0])
    assert [str(step) for step in k.algorithm().steps()] == ["put i[0] -> 1.i[0]"]
