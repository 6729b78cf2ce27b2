"""The slow executor: the definition of what an algorithm does, under any order, depth, tiles and faults."""

import numpy as np
import pytest
from runtime_algorithms import SMALL, allpairs_allreduce, chain, detour, ring_allgather, ring_allreduce

from commlib.collectives import Placement
from commlib.errors import DeadlineError, PeerFailedError
from commlib.ir.algorithm import Algorithm
from commlib.reductions import DtypeKind
from commlib.runtime import Fault, run_local, simulate_run
from commlib.runtime.expected import FACTOR, Case
from commlib.runtime.reference import first_first, last_first, random_order, rank_first

ORDERS = [first_first, last_first, rank_first(1), random_order(3), random_order(4)]


def check(algorithm: Algorithm, elements: int, kind: DtypeKind = DtypeKind.INTEGER, op: str = "sum", **options) -> None:
    case = Case(algorithm.collective, elements, kind, op)
    inputs = [case.input(rank) for rank in range(algorithm.ranks)]
    outputs = run_local(algorithm, inputs, op, elements=elements, factor=FACTOR, **options)
    for rank, output in enumerate(outputs):
        wanted, matters = case.output(rank)
        np.testing.assert_array_equal(output[matters], wanted[matters], err_msg=f"rank {rank}")


@pytest.mark.parametrize("algorithm", SMALL, ids=lambda a: f"{a.name}{a.ranks}")
@pytest.mark.parametrize("schedule", ORDERS)
def test_every_order_gives_the_expected_outputs(algorithm: Algorithm, schedule) -> None:
    check(algorithm, 13, schedule=schedule, fifo_depth=8, tiles=2)
    if algorithm.name not in ("detour", "ring_allgather"):
        check(algorithm, 13, schedule=schedule, placement=Placement.IN)


@pytest.mark.parametrize("elements", [0, 1, 3, 16])
def test_odd_sizes(elements: int) -> None:
    for algorithm in (ring_allreduce(4), detour(), ring_allgather(4, 3)):
        check(algorithm, elements)


@pytest.mark.parametrize("op", ["sum", "prod", "min", "max", "avg", "premul_sum"])
def test_float_reductions(op: str) -> None:
    check(allpairs_allreduce(4), 9, DtypeKind.FLOAT, op)


@pytest.mark.parametrize("op", ["avg", "premul_sum"])
def test_integer_reductions(op: str) -> None:
    check(allpairs_allreduce(3), 9, DtypeKind.INTEGER, op)


def test_integers_are_averaged_toward_zero() -> None:
    inputs = [np.array([-3, 3], np.int8), np.array([-4, 4], np.int8)]
    assert [out.tolist() for out in run_local(ring_allreduce(2), inputs, "avg")] == [[-3, 3]] * 2
    assert run_local(ring_allreduce(2), inputs, "premul_sum", factor=-2)[0].tolist() == [14, -14]


@pytest.mark.parametrize("op", ["band", "bor", "bxor", "min", "sum", "prod"])
def test_bool_reductions(op: str) -> None:
    check(ring_allreduce(3), 8, DtypeKind.BOOL, op)


def test_a_fifo_that_is_too_shallow_deadlocks() -> None:
    with pytest.raises(DeadlineError, match=r"rank 0 waits in threadblock 0 step 1 \(s i\[1\]\) past its deadline"):
        check(detour(), 6, fifo_depth=1)
    check(detour(), 6, fifo_depth=2)


def test_a_killed_rank_is_named_by_those_that_depend_on_it() -> None:
    algorithm = chain("broadcast", 4, chunks=2)
    inputs = [np.arange(4), *[np.zeros(0, dtype=int)] * 3]
    outcome = simulate_run(algorithm, inputs, faults=[Fault(2, 1, "kill")])
    assert outcome.errors[0] is None
    assert outcome.errors[1] is None
    np.testing.assert_array_equal(outcome.outputs[1], np.arange(4))
    assert isinstance(outcome.errors[3], PeerFailedError)
    assert "rank 3 waits in threadblock 0 step 1" in outcome.errors[3].message
    assert "rank 2 was scripted to kill at its step 1" in outcome.errors[3].message
    assert outcome.errors[3].fields["root"] == 2


def test_a_delay_passes_in_virtual_time() -> None:
    inputs = [np.arange(4)] * 3
    outcome = simulate_run(ring_allreduce(3), inputs, faults=[Fault(1, 2, "delay", 20.0)])
    assert outcome.seconds == 20.0
    assert outcome.errors == (None, None, None)
    late = simulate_run(ring_allreduce(3), inputs, faults=[Fault(1, 2, "delay", 50.0)])
    assert any(isinstance(error, DeadlineError) for error in late.errors)
