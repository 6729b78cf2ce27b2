"""Tables over shared memory on the Python context: exact for every program, type, reduction, size and placement."""

from __future__ import annotations

import pytest
from onesided_cases import ONE_SIDED
from runtime_algorithms import SMALL, allpairs_allreduce, direct_alltoall, ring_allreduce
from shm_cases import PYTHON, ShmCase, run_shm_cases

from commlib.collectives import Placement
from commlib.ir.algorithm import Algorithm
from commlib.reductions import REDUCTIONS, reduction
from commlib.runtime.tensors import DTYPES, kind_of
from commlib.verify import verify

IN, OUT = Placement.IN, Placement.OUT


def _cases(algorithms: list[Algorithm], sizes: tuple[int, ...], dtype: str = "int32") -> list[ShmCase]:
    return [
        ShmCase(algorithm, elements, dtype, placement=placement)
        for algorithm in algorithms
        for placement in verify(algorithm).proved
        for elements in sizes
    ]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_two_sided_programs(ranks: int) -> None:
    algorithms = [algorithm for algorithm in SMALL if algorithm.ranks == ranks]
    run_shm_cases(_cases(algorithms, (0, 1, 5, 1003, 9000)), ranks, PYTHON)


def test_two_sided_programs_on_eight_ranks() -> None:
    run_shm_cases(_cases([ring_allreduce(8, channels=2), allpairs_allreduce(8)], (1, 4000)), 8, PYTHON)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_one_sided_programs(ranks: int) -> None:
    algorithms = [algorithm for algorithm in ONE_SIDED if algorithm.ranks == ranks]
    run_shm_cases(_cases(algorithms, (0, 1, 5, 1003, 9000)), ranks, PYTHON)


def test_every_type_with_every_reduction() -> None:
    direct = [algorithm for algorithm in ONE_SIDED if algorithm.ranks == 3 and algorithm.name == "one_shot"]
    cases = [
        ShmCase(algorithm, 21, dtype, op)
        for algorithm in (ring_allreduce(3), *direct)
        for dtype in DTYPES
        for op in REDUCTIONS
        if reduction(op).supports(kind_of(DTYPES[dtype]))
    ]
    run_shm_cases(cases, 3, PYTHON)


def test_alltoallv_with_empty_and_uneven_parts() -> None:
    sizes = ((3, 0, 900), (1, 5, 0), (0, 70, 2000))
    algorithm = direct_alltoall(3, name="alltoallv")
    run_shm_cases([ShmCase(algorithm, 2000, "int64", sizes=sizes)], 3, PYTHON)
