"""The library's one-sided programs: proved at every number of ranks in both placements, and as small as they say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from commlib.algorithms import ALGORITHMS, DIRECT, DirectEntry, build, direct_algorithms, entry_of
from commlib.collectives import ROOTED, Placement
from commlib.errors import SpecError
from commlib.ir.algorithm import Algorithm
from commlib.ir.ops import Op
from commlib.ir.stats import statistics
from commlib.runtime import run_local
from commlib.verify import synchronizing, verify

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "direct_algorithms.txt"
HEADER = (
    "# Structure of the library's one-sided programs. Rewritten by: COMMLIB_UPDATE_GOLDENS=1 pytest tests/algorithms\n"
    "# path: signals one after another. reads, writes: whether other ranks' tensors are touched. together: no rank\n"
    "# leaves before all have entered.\n"
)
COLUMNS = ("ranks", "steps", "longest", "signals", "of", "path", "scratch", "reads", "writes", "together")
each_entry = pytest.mark.parametrize("entry", DIRECT, ids=lambda entry: entry.full_name)


def _roots(entry: DirectEntry, ranks: int) -> Iterator[int | None]:
    yield from sorted({0, ranks // 2, ranks - 1}) if entry.collective in ROOTED else [None]


@each_entry
def test_proved_on_1_to_9_ranks(entry: DirectEntry) -> None:
    for ranks in range(1, 10):
        for root in _roots(entry, ranks):
            algorithm = entry.algorithm(ranks, root)
            report = verify(algorithm, whole_messages=True)
            assert algorithm.placements == entry.placements
            assert report.proved >= entry.placements, (ranks, root, report.text())


@each_entry
def test_staged_programs_touch_no_tensor_of_another_rank(entry: DirectEntry) -> None:
    touched = entry.algorithm(4).touches_peers_tensors
    if entry.name == "shared":
        writes = entry.collective in ("allreduce", "reduce")
        assert touched == (True, writes)
        assert max(entry.algorithm(4).scratch_chunks) == 0
    else:
        assert touched == (False, False)


def test_a_shared_alltoall_in_place_is_not_right() -> None:
    report = verify(entry_of("shared_alltoall").algorithm(3), [Placement.IN])
    assert not report.proved
    assert report.findings


def _row(label: str, a: Algorithm) -> str:
    s, signals = statistics(a), int((a.op == int(Op.SIGNAL)).sum())
    reads, writes = a.touches_peers_tensors
    values = (a.ranks, s.steps, s.longest_threadblock, signals, a.collective.chunks, s.critical_path)
    words = (max(a.scratch_chunks), *("yes" if v else "no" for v in (reads, writes, synchronizing(a))))
    return f"{label:24}" + "".join(f"{value:>9}" for value in (*values, *words))


def test_structure_is_as_recorded() -> None:
    lines = [f"{'algorithm':24}" + "".join(f"{column:>9}" for column in COLUMNS)]
    lines += [_row(entry.full_name, entry.algorithm(n)) for entry in DIRECT for n in (2, 4, 7)]
    table = HEADER + "\n".join(lines) + "\n"
    if os.environ.get("COMMLIB_UPDATE_GOLDENS") == "1":
        GOLDEN.write_text(table)
    assert table.splitlines() == GOLDEN.read_text().splitlines()


@pytest.mark.parametrize("entry", direct_algorithms("allreduce"), ids=lambda entry: entry.full_name)
def test_all_ranks_get_the_bits_of_a_sum_in_the_order_of_ranks(entry: DirectEntry) -> None:
    generator = np.random.default_rng(3)
    inputs = [generator.standard_normal(50).astype(np.float32) for _ in range(5)]
    wanted = inputs[0]
    for given in inputs[1:]:
        wanted = wanted + given
    for output in run_local(entry.algorithm(5), inputs):
        np.testing.assert_array_equal(output, wanted)


def test_each_entry_is_found_and_documented() -> None:
    names = [entry.full_name for entry in (*ALGORITHMS, *DIRECT)]
    assert len(set(names)) == len(names)
    for entry in DIRECT:
        assert entry_of(entry.full_name) is entry
        assert entry_of(entry.name, entry.collective) is entry
        assert entry_of(entry.full_name, entry.collective) is entry
        text = entry.function.__doc__ or ""
        assert "Chunks: " in text
        assert "ynchronisation" in text
        assert entry.summary.endswith(".")


def test_build_makes_both_kinds_and_says_what_it_cannot() -> None:
    assert build("allreduce", "staged", 3).name == "staged_allreduce"
    assert build("broadcast", "binomial", 4, 3).collective.root == 3
    assert build("allreduce", "hierarchical", 4, nodes=2).ranks == 4
    with pytest.raises(SpecError, match="staged_allreduce has no parameter 'nodes'"):
        build("allreduce", "staged", 4, nodes=2)
    with pytest.raises(SpecError, match=r"no allgather algorithm is called 'one_shot'; there are ring, .*, shared$"):
        build("allgather", "one_shot", 4)
    with pytest.raises(SpecError, match="shared_reduce needs at least 1 rank, not 0"):
        build("reduce", "shared", 0)
    with pytest.raises(SpecError, match="no collective is called 'allredcue'"):
        direct_algorithms("allredcue")
