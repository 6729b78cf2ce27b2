"""Communicators on real processes: exact in every type, reduction, size and placement."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import warnings

import pytest
import torch
import torch.distributed as dist
from process_cases import ProcessCase, run_cases, supported
from runtime_algorithms import (
    SMALL,
    allpairs_allreduce,
    chain,
    detour,
    direct_alltoall,
    ring_allgather,
    ring_allreduce,
    ring_reducescatter,
)
from timely import wait_until

from commlib.collectives import Buffer, Placement, allreduce
from commlib.errors import ExecutionError, MismatchError, PeerFailedError, SpecError, VerificationError
from commlib.ir.algorithm import Algorithm, Op
from commlib.ir.builder import AlgorithmBuilder
from commlib.reductions import REDUCTIONS
from commlib.runtime import Communicator, launch, launch_outcomes
from commlib.runtime.tensors import DTYPES
from commlib.verify import verify

IN, OUT = Placement.IN, Placement.OUT
SIZES = (0, 1, 5, 64, 1003)


def test_small_algorithms_over_sizes_placements_and_strides() -> None:
    for ranks in (2, 3, 4):
        algorithms = [algorithm for algorithm in SMALL if algorithm.ranks == ranks]
        cases = [
            ProcessCase(algorithm, elements, "int32", placement=placement, strided=strided)
            for algorithm in algorithms
            for placement in verify(algorithm).proved
            for elements in SIZES
            for strided in (False, True)
        ]
        run_cases(cases, ranks, tile_bytes=256, wiring=("gloo", "two hosts", "shm")[ranks - 2])


def test_every_type_with_every_reduction() -> None:
    cases = [
        ProcessCase(algorithm, 21, dtype, op, placement)
        for dtype in DTYPES
        for op in REDUCTIONS
        for algorithm, placement in ((ring_allreduce(4), OUT), (allpairs_allreduce(4), IN))
        if supported(dtype, op, True)
    ]
    assert len(cases) > 150
    run_cases(cases, 4)


def test_every_type_is_moved() -> None:
    run_cases([ProcessCase(ring_allgather(4, 2), 9, dtype) for dtype in DTYPES], 4, wiring="gloo")


def test_premul_and_avg_on_rooted_and_scattered_outputs() -> None:
    cases = [
        ProcessCase(algorithm, 10, dtype, op, placement)
        for algorithm in (chain("reduce", 4, 3, root=2), ring_reducescatter(4, 3))
        for dtype in ("float16", "bfloat16", "float64", "complex64")
        for op in ("avg", "premul_sum")
        for placement in verify(algorithm).proved
    ]
    run_cases(cases, 4, wiring="two hosts")


def _integers(rank: int) -> list[object]:
    comm, ring, found = Communicator(), ring_allreduce(2), list[object]()
    for dtype in ("int8", "int64", "uint8", "uint64"):
        own = torch.tensor([[-3, 100, -1, 0], [-4, 28, 0, 1]][rank]).to(getattr(torch, dtype))
        found.append(comm.run(ring, own.clone(), op="avg").to(torch.int64).tolist())
        found.append(
            comm.run(ring, own, own.clone().fill_(0), op="premul_sum", factor=-2 + rank).to(torch.int64).tolist()
        )
    return found


def test_integers_are_averaged_toward_zero_and_scaled_and_wrap() -> None:
    """Sums: -7, 128 (in int8 -128), -1, 1; scaled by -2 on rank 0 and -1 on rank 1."""
    for found in launch(_integers, 2):
        assert found == [
            *([-3, -64, 0, 0], [10, 28, 2, -1]),
            *([-3, 64, 0, 0], [10, -228, 2, -1]),
            *([124, 64, 127, 0], [10, 28, 2, 255]),
            *([2**63 - 4, 64, 2**63 - 1, 0], [10, -228, 2, -1]),
        ]


def _at_once(rank: int) -> str:
    """A second thread calls while the first waits for rank 1: refused, and the first is not harmed."""
    comm, ring, said = Communicator(), ring_allreduce(2), list[str]()
    if rank == 1:
        dist.barrier()
        return f"{comm.run(ring, torch.ones(4)).sum():g}"
    first = threading.Thread(target=lambda: said.append(f"{comm.run(ring, torch.ones(4)).sum():g}"))
    first.start()
    wait_until(comm._busy.locked)
    with pytest.raises(ExecutionError, match="rank 0: another call is running on this communicator"):
        comm.run(ring, torch.ones(4))
    dist.barrier()
    first.join()
    return said[0]


def test_a_second_thread_is_refused_and_the_first_is_not_harmed() -> None:
    assert launch(_at_once, 2) == ["8", "8"]


def _overflows(_rank: int) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Communicator().run(ring_allreduce(2), torch.full((3,), 3e38)).tolist()


def test_overflow_is_a_value_and_no_warning() -> None:
    assert launch(_overflows, 2) == [[float("inf")] * 3] * 2


def test_alltoallv_takes_a_matrix() -> None:
    generator = random.Random(1)
    algorithm, cases = direct_alltoall(4, 2, "alltoallv"), []
    for _ in range(4):
        matrix = [[generator.choice([0, 1, 7, 300]) for _ in range(4)] for _ in range(4)]
        cases.append(ProcessCase(algorithm, 0, "int64", sizes=tuple(map(tuple, matrix))))
        for s in range(4):
            for d in range(s):
                matrix[s][d] = matrix[d][s]
        cases.append(ProcessCase(algorithm, 0, "int64", placement=IN, sizes=tuple(map(tuple, matrix))))
    run_cases(cases, 4, tile_bytes=512, wiring="gloo")


@pytest.mark.parametrize("wiring", ["gloo", "shm"])
def test_more_messages_than_credit(wiring: str) -> None:
    cases = [ProcessCase(ring_allreduce(2), 40_000, "int64"), ProcessCase(detour(), 5001, "int8")]
    run_cases(cases, 2, tile_bytes=512, wiring=wiring)


def _conventions(rank: int) -> list[bool]:
    comm, ring = Communicator(), ring_allreduce(2)
    x = torch.arange(6.0).reshape(2, 3) + rank
    total = torch.arange(6.0).reshape(2, 3) * 2 + 1
    whole = torch.zeros(2, 3)
    whole[rank] = rank + 1.0
    gather, parameter = ring_allgather(2), torch.nn.Parameter(x.clone())
    out = comm.run(ring, x, in_place=False)
    gathered = comm.run(gather, x, in_place=False)
    same = comm.run(gather, whole[rank], whole)
    bcast = chain("broadcast", 2)
    sent = comm.run(bcast, x if rank == 0 else None, torch.zeros(2, 3))
    results = [
        torch.equal(out, total) and out.shape == x.shape,
        gathered.shape == (4, 3) and torch.equal(gathered[2:], torch.arange(6.0).reshape(2, 3) + 1),
        torch.equal(same, torch.tensor([[1.0] * 3, [2.0] * 3])) and torch.equal(same, whole),
        torch.equal(sent, torch.arange(6.0).reshape(2, 3)),
        torch.equal(comm.run(ring, parameter, in_place=False), total) and parameter.requires_grad,
        comm.run(ring, x) is x and torch.equal(x, total),
    ]
    comm.close()
    return results


def test_calling_conventions() -> None:
    assert launch(_conventions, 2) == [[True] * 6] * 2


def _subgroups(rank: int) -> list[float]:
    groups = [dist.new_group([0, 2]), dist.new_group([1, 2, 3])]
    found, pair, three = [], ring_allreduce(2), ring_allreduce(3)
    for group, ring in zip(groups, (pair, three), strict=True):
        if rank in dist.get_process_group_ranks(group):
            first, second = Communicator(group), Communicator(group)
            for comm in (first, second, first, second):
                found.append(float(comm.run(ring, torch.full((5,), rank + 1.0)).sum()))
        elif group is dist.GroupMember.NON_GROUP_MEMBER:
            with pytest.raises(SpecError, match="not a member"):
                Communicator(group)
    return found


def test_subgroups_and_several_communicators() -> None:
    pair, three = [20.0] * 4, [45.0] * 4
    assert launch(_subgroups, 4) == [pair, three, pair + three, three]


def _slow_to_end(rank: int) -> list[float]:
    """Rank 0's thread has no core for a while when its communicator is closed, and ends late."""
    found = []
    for _ in range(2):
        with Communicator(transport="gloo") as comm:
            found.append(comm.run(ring_allreduce(2), torch.full((5,), rank + 1.0)).sum().item())
            if rank == 0:
                comm._engine._transport._receivers[1].jobs.put(lambda: time.sleep(0.8))
    return found


def test_a_thread_that_is_slow_to_end_costs_the_group_no_connection() -> None:
    assert launch(_slow_to_end, 2) == [[15.0] * 2] * 2


def _refusals(_rank: int) -> list[str]:
    comm, ring, found = Communicator(), ring_allreduce(2), []
    base = torch.zeros(9)
    wrong = [
        lambda: comm.run(ring_allreduce(3), torch.zeros(4)),
        lambda: comm.run(ring, torch.zeros(4), op="median"),
        lambda: comm.run(ring, torch.zeros(4), op="band"),
        lambda: comm.run(ring, torch.zeros(4, dtype=torch.bool), op="avg"),
        lambda: comm.run(ring, torch.zeros(4), torch.zeros(5)),
        lambda: comm.run(ring, torch.zeros(4), torch.zeros(4, dtype=torch.int32)),
        lambda: comm.run(ring, base[:8], base[1:]),
        lambda: comm.run(ring_allgather(2), torch.zeros(5)),
        lambda: comm.run(ring),
        lambda: comm.run(ring, torch.zeros(4, device="meta")),
        lambda: comm.run(ring, torch.zeros(1).expand(4)),
        lambda: comm.run(ring, torch.zeros(4), torch.zeros(9).as_strided((2, 2), (1, 1))),
        lambda: comm.run(ring, [1, 2, 3]),
        lambda: comm.run("ring", torch.zeros(4)),
        lambda: comm.run(ring, torch.zeros(4), timeout=0),
        lambda: comm.run(ring, torch.zeros(4), timeout=float("nan")),
        lambda: comm.run(ring, torch.zeros(4, dtype=torch.int32), op="premul_sum", factor=0.5),
        lambda: comm.run(ring, torch.zeros(4), op="premul_sum", factor=1j),
        lambda: Communicator(timeout=-1),
        lambda: Communicator(fifo_depth=0),
    ]
    for call in wrong:
        with pytest.raises(SpecError) as caught:
            call()
        found.append(str(caught.value))
    assert float(comm.run(ring, torch.ones(4)).sum()) == 8.0, "a refusal leaves the communicator usable"
    comm.close()
    with pytest.raises(PeerFailedError, match="it was closed"):
        comm.run(ring, torch.ones(4))
    return found


def test_wrong_calls_are_refused_with_the_reason() -> None:
    expected = [
        "ring_allreduce is for 3 ranks, the group has 2",
        "no reduction is called 'median'",
        "band is not defined on float32",
        "avg is not defined on bool",
        "the output of rank 0 has 5 elements, not 4",
        "input and output differ in type",
        "input and output of rank 0 overlap",
        "an in-place span of 5 elements is not 2 shards",
        "rank 0 gave neither input nor output",
        "this runtime takes CPU tensors",
        "elements of the output share memory",
        "elements of the output share memory",
        "the input is a list, not a tensor",
        "the algorithm is a str, not a compiled Algorithm",
        "a timeout is a number of seconds above 0 and at most 1000000, not 0",
        "a timeout is a number of seconds above 0 and at most 1000000, not nan",
        "the factor of premul_sum is 0.5, which is no integer",
        "the factor of premul_sum is 1j, which is no float",
        "a timeout is a number of seconds above 0 and at most 1000000, not -1",
        "fifo_depth (0) and tile_bytes (4194304) are at least 1",
    ]
    for text, want in zip(launch(_refusals, 2)[0], expected, strict=True):
        assert want in text


def _unproved(_rank: int) -> list[float]:
    comm = Communicator()
    with pytest.raises(VerificationError):
        comm.run(_copies_only(), torch.ones(4))
    out = comm.run(_copies_only(), torch.ones(4), unsafe=True)
    return [float(out.sum())]


def _copies_only() -> Algorithm:
    b = AlgorithmBuilder("copies_only", allreduce(2), [0, 0])
    for rank in range(2):
        b.threadblock(rank)
        b.step(Op.COPY, (Buffer.INPUT, 0), (Buffer.OUTPUT, 0))
    return b.build()


def test_an_unproved_algorithm_runs_only_when_asked() -> None:
    assert launch(_unproved, 2) == [[4.0], [4.0]]


def _different(rank: int, what: str) -> str:
    comm = Communicator(timeout=10, transport="gloo" if what == "calls" else "auto")
    algorithm = allpairs_allreduce(4) if what == "algorithm" and rank == 1 else ring_allreduce(4)
    elements = 9 if what == "size" and rank == 1 else 8
    dtype = torch.int32 if what == "type" and rank == 1 else torch.float32
    op = "max" if what == "op" and rank == 1 else "sum"
    if what == "calls" and rank == 1:
        comm._state.calls += 1

    def twice() -> None:
        for _ in range(2):
            comm.run(algorithm, torch.ones(elements, dtype=dtype), op=op)

    with pytest.raises(MismatchError) as caught:
        twice()
    return str(caught.value)


@pytest.mark.parametrize("what", ["algorithm", "size", "type", "op", "calls"])
def test_ranks_that_disagree_find_out(what: str) -> None:
    for text in launch(_different, 4, (what,), 30):
        assert "rank 1" in text
        assert "is in call 1 (ring_allreduce float32 sum 8 in)" in text or "in call 1 (" in text


def _sequence(rank: int) -> float:
    comm, ring, wide = Communicator(), ring_allreduce(3), ring_allreduce(3, 2)
    total = torch.zeros(100)
    for call in range(60):
        if call % 7 == rank:
            torch.mm(torch.ones(200, 200), torch.ones(200, 200))
        total += comm.run(ring if call % 2 else wide, torch.full((100,), float(call + rank)), in_place=False)
    return float(total.sum())


def test_many_calls_without_a_barrier_between_them() -> None:
    assert launch(_sequence, 3) == [100.0 * sum(3 * call + 3 for call in range(60))] * 3


def test_a_rank_that_raises_is_reported_by_the_launcher() -> None:
    outcomes = launch_outcomes(_raises, 2)
    assert outcomes[0].value == {"rank": 0}
    assert isinstance(outcomes[1].error, ExecutionError)
    assert str(outcomes[1].error).startswith("rank 1: ValueError: one is not zero (")
    assert outcomes[1].error.fields["rank"] == 1
    assert outcomes[1].error.fields["file"] == __file__
    assert f"{__file__}:{outcomes[1].error.fields['line']})" in str(outcomes[1].error)


@pytest.mark.parametrize(("how", "said"), [("exit", "with exit status 3"), ("kill", "killed by SIGTERM")])
def test_a_rank_that_dies_is_reported_with_what_ended_it(how: str, said: str) -> None:
    with pytest.raises(ExecutionError, match=f"rank 1 died without a result, {said}"):
        launch(_dies, 2, (how,))


def _dies(rank: int, how: str) -> None:
    if rank and how == "exit":
        os._exit(3)
    if rank:
        signal.raise_signal(signal.SIGTERM)


def _raises(rank: int) -> dict[str, int]:
    if rank:
        raise ValueError("one is not zero")
    return {"rank": rank}
