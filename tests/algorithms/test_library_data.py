"""Library algorithms on numbers, by the reference executor: odd sizes, both placements, an adversarial order."""

from __future__ import annotations

import numpy as np
import pytest

from commlib.algorithms import ALGORITHMS, Entry
from commlib.compiler import compile_trace
from commlib.runtime.expected import Case
from commlib.runtime.reference import random_order, run_local


@pytest.mark.parametrize("entry", ALGORITHMS, ids=lambda entry: entry.full_name)
@pytest.mark.parametrize(("ranks", "elements"), [(1, 3), (2, 1), (3, 7), (4, 13), (6, 0), (6, 5)])
def test_outputs_are_exact(entry: Entry, ranks: int, elements: int) -> None:
    if not entry.supports(ranks):
        pytest.skip("not for so many ranks")
    algorithm = compile_trace(entry.trace(ranks))
    case = Case(algorithm.collective, elements)
    inputs = [case.input(rank) for rank in range(ranks)]
    for placement in sorted(entry.placements, key=str):
        schedule = random_order(ranks * 100 + elements)
        outputs = run_local(algorithm, inputs, placement=placement, schedule=schedule, fifo_depth=1, elements=elements)
        for rank in range(ranks):
            wanted, matters = case.output(rank)
            np.testing.assert_array_equal(outputs[rank][matters], wanted[matters], err_msg=f"{placement} rank {rank}")
