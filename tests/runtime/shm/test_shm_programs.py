"""Direct programs of the library, and launches in a row that ranks come to at different times."""

from __future__ import annotations

import random
import time

import pytest
import torch
from onesided_cases import ONE_SIDED
from runtime_algorithms import chain, ring_allgather, ring_allreduce
from shm_cases import PYTHON, SMALL, ShmCase, address_of, open_session, run_shm_cases

from commlib.algorithms.direct import ENTRIES
from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import Algorithm
from commlib.runtime.expected import Case
from commlib.runtime.launcher import launch
from commlib.runtime.shm.options import ShmOptions
from commlib.verify import synchronizing

BOTH = pytest.mark.parametrize("options", [PYTHON, SMALL], ids=["python", "default"])


@BOTH
def test_direct_programs_of_the_library(options: ShmOptions) -> None:
    cases = [
        ShmCase(algorithm, elements, "float64", placement=placement)
        for entry in ENTRIES
        if entry.collective != "alltoallv"
        for algorithm in (entry.algorithm(3),)
        for placement in sorted(algorithm.placements, key=str)
        for elements in (2999,)
    ]
    run_shm_cases(cases, 3, options)


def _unsynchronized() -> list[Algorithm]:
    found = [chain("broadcast", 3), chain("reduce", 3, root=1), ring_allgather(3, 2), ring_allreduce(3)]
    return [*found, *(a for a in ONE_SIDED if a.ranks == 3 and not any(a.touches_peers_tensors))]


def _late(rank: int, options: ShmOptions) -> list[str]:
    """Calls of programs that do not synchronize, with new values each time; ranks dawdle now and then."""
    wrong, dawdle, order = [], random.Random(rank), random.Random(5)
    with open_session(rank, 3, options) as session:
        algorithms = _unsynchronized()
        for number in range(100):
            algorithm, elements = order.choice(algorithms), order.choice([1, 50, 3000])
            expected = Case(algorithm.collective, elements)
            shift = number % 7 if not algorithm.collective.reduces else 0
            values = torch.from_numpy(expected.input(rank)).to(torch.int64) + shift
            wanted, matters = expected.output(rank)
            output = torch.zeros(len(wanted), dtype=torch.int64)
            how = "sum" if algorithm.collective.reduces else None
            prepared = session.prepare(algorithm, Placement.OUT, elements, torch.int64, how)
            if prepared.layout.padded:
                values, output = (
                    torch.zeros(prepared.size(rank, Buffer.INPUT) // 8, dtype=torch.int64),
                    torch.zeros(prepared.size(rank, Buffer.OUTPUT) // 8, dtype=torch.int64),
                )
            session.run(prepared, address_of(values), address_of(output))
            right = torch.from_numpy(wanted).to(torch.int64) + shift
            if not prepared.layout.padded and bool(((output != right) & torch.from_numpy(matters)).any()):
                wrong.append(f"{number}: {algorithm.name} {elements}")
            if dawdle.random() < 0.1:
                time.sleep(0.002)
    return wrong


@BOTH
def test_launches_in_a_row_keep_out_of_each_others_scratch(options: ShmOptions) -> None:
    assert any(not synchronizing(algorithm) for algorithm in _unsynchronized())
    assert launch(_late, 3, (options,)) == [[], [], []]
