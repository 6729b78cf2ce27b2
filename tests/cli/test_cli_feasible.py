"""What run and bench refuse before they print or start anything, and how much memory they know that they need."""

import pytest

from commlib.cli import feasible
from commlib.cli.feasible import available_memory, check_launch, distinct_sizes, memory_needed
from commlib.cli.measuring import Launch
from commlib.cli.sources import library_algorithm
from commlib.collectives import collective
from commlib.errors import ExecutionError, SpecError


@pytest.mark.parametrize("command", [("run", "ring_allreduce"), ("bench", "allreduce")])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dtype", "foo"), "no element type is called 'foo'"),
        (("--op", "median"), "no reduction is called 'median'"),
        (("--op", "band"), "band is not defined on float32"),
        (("SIZE", "1000G"), "size 1000G on 3 ranks takes at least 33000.0 GiB of memory, of which"),
    ],
)
def test_nothing_is_printed_before_the_refusal(cli, command, options, message):
    size = ("--size",) if command[0] == "run" else ("-b", options[1], "-e")
    options = (*size, options[1]) if options[0] == "SIZE" else options
    result = cli(*command, "-n", 3, *options)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"commlib: {message}")
    assert result.stderr.count("\n") == 1


def test_a_reduction_that_nothing_uses_must_still_exist():
    check_launch(collective("allgather", 2), Launch(op="band"), [4])
    with pytest.raises(SpecError, match="no reduction is called 'median'"):
        check_launch(collective("allgather", 2), Launch(op="median"), [4])


def test_memory_that_a_run_needs():
    # Each of 2 ranks: input twice and output of 1000 bytes, and 250 elements of 8 bytes of 2 inputs and a result.
    assert memory_needed(collective("allreduce", 2), 1000, 4) == 2 * (3 * 1000 + 3 * 2000)
    # allgather: its inputs are half as long.
    assert memory_needed(collective("allgather", 2), 1000, 4) == 2 * (2 * 500 + 1000 + 2 * 1000 + 2000)
    assert memory_needed(collective("allreduce", 2), 1000, 1) == 2 * (3 * 1000 + 3 * 1000)
    assert memory_needed(collective("allreduce", 4, 4), 0, 4) == 0


def test_memory_that_there_is(tmp_path, monkeypatch):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  99 kB\nMemAvailable:      34 kB\n")
    monkeypatch.setattr(feasible, "MEMORY", path)
    assert available_memory() == 34 * 1024
    check_launch(collective("allreduce", 2), Launch(), [1900])  # 34,200 of 34,816 bytes
    with pytest.raises(ExecutionError) as caught:
        check_launch(collective("allreduce", 2), Launch(), [100, 2000])
    assert caught.value.fields == {"size": 2000, "needed": 36_000, "available": 34_816}
    path.unlink()
    assert available_memory() is None
    check_launch(collective("allreduce", 2), Launch(), [1 << 40])


def test_sizes_are_distinct_in_whole_elements():
    small, large = (library_algorithm(name, 2) for name in ("direct_alltoall", "pairwise_alltoall"))
    assert distinct_sizes([(small, [0, 1, 2, 4, 8]), (large, [9, 15, 16, 32])], "float") == [
        (small, [0, 8]),
        (large, [16, 32]),
    ]
    assert distinct_sizes([(small, [8]), (large, [9])], "float32") == [(small, [8])]
    assert distinct_sizes([(small, [0, 1, 2, 3])], "int8") == [(small, [0, 2])]
