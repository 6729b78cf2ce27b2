"""The language: what it records, and what it refuses, at the user's line."""

from __future__ import annotations

import functools
import inspect

import pytest

from commlib.collectives import Buffer, Placement, allgather, allreduce, alltoall, custom, reducescatter
from commlib.dsl import Program, record
from commlib.errors import ProgramError, SlotError, StaleReferenceError, UninitializedReadError
from commlib.ir.trace import run_trace
from commlib.topology import ring


def lines(program: Program) -> list[str]:
    return [str(op) for op in program.trace().operations()]


def here() -> int:
    """The line of the caller."""
    return inspect.currentframe().f_back.f_lineno


def test_copy_keeps_buffer_and_index_unless_told():
    p = Program(allreduce(3, 4))
    a = p.chunk(0, "input", 2).copy(1, "output")
    a.copy(2)
    a.copy(2, index=0)
    assert lines(p) == ["1.o[2] = 0.i[2]", "2.o[2] = 1.o[2]", "2.o[0] = 1.o[2]"]


def test_reduce_into_another_slot():
    p = Program(allreduce(2, 2))
    p.chunk(1, "input", 0).reduce(p.chunk(0, "input", 0), into="output")
    p.chunk(1, "output", 0).reduce(p.chunk(0, "input", 1), into=("output", 1))
    assert lines(p) == ["1.o[0] = 1.i[0] + 0.i[0]", "1.o[1] = 1.o[0] + 0.i[1]"]


def test_a_local_reduce_into_another_slot_is_a_copy_and_a_reduce():
    p = Program(allreduce(2, 2))
    tmp = p.scratch("tmp", 2)
    got = p.chunk(0, "input", 0).copy(1, tmp, 0)
    p.chunk(1, "input", 1).reduce(got, into=("output", 1))
    p.chunk(1, "input", 0).reduce(got, into=(tmp, 0))
    assert lines(p)[1:] == ["1.o[1] = 1.i[1]", "1.o[1] = 1.o[1] + 1.s[0]", "1.s[0] = 1.s[0] + 1.i[0]"]


def test_split_and_group():
    p = Program(allreduce(2, 6))
    whole = p.chunk(0, "input", 0, 6)
    left, middle, right = whole.split(3)
    assert [str(c) for c in (left, middle, right)] == [f"input[{k}:{k + 2}] of rank 0" for k in (0, 2, 4)]
    assert str(right.group(middle)) == "input[2:6] of rank 0"
    with pytest.raises(ProgramError, match="not neighbours"):
        left.group(right)
    with pytest.raises(ProgramError, match="not neighbours"):
        left.group(p.chunk(1, "input", 2))
    with pytest.raises(ProgramError, match=r"cannot split input.0:6. of rank 0 into 4 equal parts"):
        whole.split(4)


def test_a_stale_reference_names_both_lines():
    p = Program(allreduce(2), placement="in")
    old = p.chunk(1, "input")
    p.chunk(0, "input").copy(1)
    wrote = here() - 1
    with pytest.raises(StaleReferenceError, match=rf"{__file__}:\d+: input\[0\] of rank 1 was overwritten at") as error:
        old.copy(0)
    assert f"{__file__}:{wrote}" in str(error.value)
    assert error.value.fields["line"] == here() - 2


def test_a_stale_part_of_a_larger_reference():
    p = Program(allreduce(2, 3), placement="in")
    old = p.chunk(1, "input", 0, 3)
    p.chunk(0, "input", 2).copy(1)
    with pytest.raises(StaleReferenceError, match=r"input\[2\] of rank 1"):
        old.split(3)[2].copy(0, index=0)
    old.split(3)[1].copy(0)


def test_in_both_placements_the_output_makes_the_input_stale():
    p = Program(allreduce(2))
    p.chunk(0, "input").copy(1, "output")
    with pytest.raises(StaleReferenceError, match=r"in place, output overwrote"):
        p.chunk(1, "input")
    apart = Program(allreduce(2), placement="out")
    apart.chunk(0, "input").copy(1, "output")
    apart.chunk(1, "input")


def test_a_copy_onto_itself_in_place_keeps_references_good():
    p = Program(allgather(2))
    mine = p.chunk(1, "input")
    mine.copy(1, "output", 1)
    mine.copy(0, "output", 1)
    assert lines(p) == ["1.o[1] = 1.i[0]", "0.o[1] = 1.i[0]"]


def test_uninitialised_read():
    p = Program(allgather(2))
    with pytest.raises(UninitializedReadError, match=rf"{__file__}:\d+: output\[1\] of rank 0 is read before"):
        p.chunk(0, "output", 1)
    tmp = p.scratch("staging", 4)
    p.chunk(0, "input").copy(0, tmp, 1)
    with pytest.raises(UninitializedReadError, match=r"staging\[2\] of rank 0"):
        p.chunk(0, tmp, 1, 2)


@pytest.mark.parametrize(
    ("rank", "buffer", "index", "count", "message"),
    [
        (2, "input", 0, 1, "there is no rank 2"),
        (0, "input", 4, 1, r"input\[4:5\] of rank 0 is outside the buffer, which has 4 chunks"),
        (0, "input", -1, 1, "outside the buffer"),
        (0, "input", 3, 2, "outside the buffer"),
        (0, "input", 0, 0, "outside the buffer"),
        (0, "tmp", 0, 1, "there is no buffer 'tmp'; there are input, output"),
    ],
)
def test_slots_that_do_not_exist(rank, buffer, index, count, message):
    p = Program(allreduce(2, 4))
    with pytest.raises(SlotError, match=message) as error:
        p.chunk(rank, buffer, index, count)
    assert error.value.fields["file"] == __file__


def test_out_of_place_the_input_is_constant():
    p = Program(allreduce(2))
    with pytest.raises(ProgramError, match=r'the input is constant; write to "output"'):
        p.chunk(1, "input").reduce(p.chunk(0, "input"))


def test_a_missing_link():
    p = Program(allreduce(4), topology=ring(4))
    with pytest.raises(ProgramError, match=r"cannot be sent to rank 2: ring has no link 0 -> 2"):
        p.chunk(0, "input").copy(2, "output")
    p.chunk(0, "input").copy(3, "output")


def test_sizes_must_agree_in_a_reduce():
    p = Program(allreduce(2, 4))
    with pytest.raises(ProgramError, match=r"2 chunks and 1"):
        p.chunk(0, "input").reduce(p.chunk(1, "input", 0, 2), into="output")


def test_another_programs_chunk():
    one, other = Program(allreduce(2)), Program(allreduce(2))
    with pytest.raises(ProgramError, match="belongs to another program"):
        one.chunk(0, "input").reduce(other.chunk(1, "input"), into="output")


def test_a_local_operation_has_one_threadblock():
    p = Program(allreduce(2))
    with pytest.raises(ProgramError, match="send_tb and recv_tb must be the same"):
        p.chunk(0, "input").copy(0, "output", send_tb=1, recv_tb=2)


def test_settings_are_checked():
    with pytest.raises(ProgramError, match="placement is"):
        Program(allreduce(2), placement="inside")
    with pytest.raises(ProgramError, match="instances"):
        Program(allreduce(2), instances=0)
    with pytest.raises(ProgramError, match="4 ranks, the collective 2"):
        Program(allreduce(2), topology=ring(4))
    with pytest.raises(ProgramError, match="parallelize needs at least one way") as error:
        Program(allreduce(2)).parallelize(0)
    assert error.value.fields["file"] == __file__
    p = Program(allreduce(2))
    p.scratch("a", 1)
    with pytest.raises(ProgramError, match="exists already"):
        p.scratch("a", 2)
    with pytest.raises(ProgramError, match="at least one chunk"):
        p.scratch("b", 0)


def test_overlapping_local_moves_are_as_memmove():
    c = custom("shift", [3], [4], {})
    p = Program(c, placement="out")
    p.chunk(0, "input", 0, 3).copy(0, "output", 0)
    p.chunk(0, "output", 0, 3).copy(0, "output", 1)
    assert lines(p)[1:] == ["0.o[3] = 0.o[2]", "0.o[2] = 0.o[1]", "0.o[1] = 0.o[0]"]
    table, memory = run_trace(p.trace(), Placement.OUT)
    assert [table.counts(c) for c in memory[0][4:7]] == [{(0, k): 1} for k in range(3)]


def test_a_reduce_that_overlaps_both_operands_from_different_sides():
    p = Program(custom("x", [4], [6], {}), placement="out")
    p.chunk(0, "input", 0, 4).copy(0, "output", 0)
    p.chunk(0, "input", 0, 2).copy(0, "output", 4)
    with pytest.raises(ProgramError, match="from different sides; go through scratch"):
        p.chunk(0, "output", 0, 2).reduce(p.chunk(0, "output", 2, 2), into=("output", 1))


def test_scratch_is_shared_by_name_and_only_where_used():
    p = Program(alltoall(2), placement="out")
    tmp = p.scratch("tmp", 3)
    p.chunk(0, "input", 1).copy(1, tmp, 2)
    p.chunk(1, "tmp", 2).copy(1, "output", 0)
    assert p.trace().scratch_chunks == (0, 3)


def test_parallelize_multiplies_and_ends():
    p = Program(allreduce(2))
    with p.parallelize(2), p.parallelize(3):
        p.chunk(0, "input").copy(1, "output")
    p.chunk(1, "output").copy(1, p.scratch("t", 1), 0)
    assert p.trace().column("ways").tolist() == [6, 1]


def test_the_trace_remembers_lines():
    def program(p: Program) -> None:
        p.chunk(0, "input", 0).copy(1, "output", 0)

    trace = record(program, reducescatter(2), placement="out")
    first = inspect.getsourcelines(program)[1]
    assert trace.files == (__file__,)
    assert trace.column("line").tolist() == [first + 1]
    assert trace.name == "program"


def test_chunks_written_one_after_the_other_can_be_grouped():
    p = Program(allreduce(2, 2))
    tmp = p.scratch("tmp", 2)
    first, second = (p.chunk(0, "input", k).copy(1, tmp, k) for k in range(2))
    both = first.group(second)
    both.copy(0, "output", 0)
    assert lines(p)[-1] == "0.o[0:2] = 1.s[0:2]"


def test_grouping_a_stale_reference_does_not_make_it_fresh():
    p = Program(allreduce(2, 2), placement="in")
    old, other = p.chunk(1, "input", 0), p.chunk(1, "input", 1)
    p.chunk(0, "input", 0).copy(1)
    with pytest.raises(StaleReferenceError, match=r"input\[0\] of rank 1"):
        old.group(other)


def test_neighbours_in_two_scratch_buffers_are_not_grouped():
    p = Program(allreduce(2))
    parts = [p.chunk(0, "input").copy(0, p.scratch(name, 1), 0) for name in ("a[0]", "a[1]")]
    with pytest.raises(ProgramError, match="not neighbours"):
        parts[0].group(parts[1])
    assert [str(part) for part in parts] == ["a[0][0] of rank 0", "a[1][0] of rank 0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, "input", 0), "there is no rank 0.0"),
        ((0, "input", 0.5), "whole numbers"),
        ((0, "input", 0, 1.0), "whole numbers"),
        ((0, ["x"], 0), r"there is no buffer \['x'\]"),
        ((0, Buffer.SCRATCH, 0), "there is no buffer"),
    ],
)
def test_what_is_no_slot_at_all(arguments, message):
    p = Program(allreduce(2))
    with pytest.raises(SlotError, match=message):
        p.chunk(*arguments)


@pytest.mark.parametrize("hints", [{"channel": 1 << 70}, {"send_tb": -1}, {"recv_tb": 0.5}])
def test_what_is_no_hint(hints):
    p = Program(allreduce(2))
    with pytest.raises(ProgramError, match="is a whole number from 0 to 4095"):
        p.chunk(0, "input").copy(1, "output", **hints)


def test_a_function_without_a_name():
    program = functools.partial(lambda p, k: p.chunk(0, "input", k).copy(1, "output"), k=0)
    assert record(program, allreduce(2)).name == "program"
