"""Measuring beside gloo: rows, nccl-tests' formulas, and wrong results that are counted."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from runtime_algorithms import chain, ring_allgather, ring_allreduce

from commlib import algorithms, collectives
from commlib.collectives import Buffer, Placement
from commlib.compiler import compile_trace
from commlib.errors import SpecError
from commlib.ir.algorithm import Algorithm, Op
from commlib.ir.builder import AlgorithmBuilder
from commlib.runtime import Communicator, Job, launch, measure
from commlib.runtime.measurement import bandwidth, shard_size


def test_rows_have_what_nccl_tests_prints() -> None:
    rows = measure(ring_allreduce(2), Job((64, 4096), iterations=3, warmup=1, vs=("gloo",)))
    assert [(row.size, row.count, row.in_place, row.wrong, row.root) for row in rows] == [
        (size, size // 4, in_place, 0, -1) for size in (64, 4096) for in_place in (False, True)
    ]
    for row in rows:
        assert row.time_us > 0
        assert row.busbw == pytest.approx(row.algbw)  # 2 (n - 1) / n is 1 for two ranks
        assert set(row.peers) == {"gloo"}
        assert row.as_json()["peers"]["gloo"]["time_us"] > 0


def test_rooted_rows_name_the_root() -> None:
    (row,) = measure(chain("reduce", 3, root=2), Job((96,), "int32", "max", (Placement.OUT,), 2, 1))
    assert (row.root, row.op, row.dtype, row.wrong) == (2, "max", "int32", 0)


def test_sharded_collectives_count_one_shard() -> None:
    for name in ("gather", "scatter"):
        (row,) = measure(direct(name, 3), Job((96,), placements=(Placement.OUT,), iterations=1, warmup=0))
        assert (row.size, row.count, row.wrong) == (96, 8, 0)


def direct(name: str, ranks: int) -> Algorithm:
    """The library's direct algorithm of a collective."""
    return compile_trace(algorithms.trace(name, "direct", ranks))


def test_wrong_elements_are_counted() -> None:
    b = AlgorithmBuilder("keeps_its_own", collectives.allreduce(2), [0, 0])
    for rank in range(2):
        b.threadblock(rank)
        b.step(Op.COPY, (Buffer.INPUT, 0), (Buffer.OUTPUT, 0))
    (row,) = measure(b.build(), Job((400,), placements=(Placement.OUT,), iterations=1, warmup=0, unsafe=True))
    assert row.wrong is not None
    assert 100 < row.wrong <= 200


def test_the_last_timed_call_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks are forks of this process: their third call, the last, leaves one wrong element."""
    calls, run = [], Communicator.run

    def spoiled(self: Communicator, *args, **options) -> torch.Tensor:
        output = run(self, *args, **options)
        calls.append(None)
        if len(calls) == 3:
            output[1] += 1
        return output

    monkeypatch.setattr(Communicator, "run", spoiled)
    for placement in Placement:
        (row,) = measure(ring_allreduce(2), Job((400,), placements=(placement,), iterations=2, warmup=0))
        assert row.wrong == 2


def test_bandwidths_are_those_of_nccl_tests() -> None:
    assert bandwidth("allreduce", 4, 1_000_000, 1000.0) == pytest.approx((1.0, 1.5))
    assert bandwidth("alltoall", 4, 1_000_000, 1000.0) == pytest.approx((1.0, 0.75))
    assert bandwidth("broadcast", 4, 1_000_000, 500.0) == pytest.approx((2.0, 2.0))
    assert shard_size(ring_allgather(4).collective, 1000, 4) == 62


def test_what_is_not_defined_is_refused_before_anything_is_launched() -> None:
    with pytest.raises(SpecError, match="no element type is called 'float12'"):
        measure(ring_allreduce(2), Job((64,), "float12"))
    with pytest.raises(SpecError, match="bor is not defined on float32"):
        measure(ring_allreduce(2), Job((64,), "float32", "bor"))


def _values(rank: int) -> list[object]:
    half = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    return [rank, {"a": half, "b": np.arange(3, dtype=np.uint16)}, torch.empty(0, 2), (None, True, "text")]


def test_values_come_back_from_processes_as_they_were() -> None:
    number, table, empty, rest = launch(_values, 2)[1]
    assert number == 1
    assert table["a"].dtype == torch.bfloat16
    assert table["a"].tolist() == [[1.5, -2.0]]
    assert table["b"].dtype == np.uint16
    assert table["b"].tolist() == [0, 1, 2]
    assert empty.shape == (0, 2)
    assert rest == [None, True, "text"]


def test_the_reference_executor_needs_no_torch() -> None:
    code = "import sys, commlib.runtime; commlib.runtime.run_local; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
