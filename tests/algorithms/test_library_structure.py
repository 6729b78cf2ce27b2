"""Not only right but good: the steps, threadblocks, channels, chunks and hops of every library algorithm."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from commlib.algorithms import ALGORITHMS, Entry, find, trace
from commlib.compiler import compile_trace
from commlib.ir.algorithm import Algorithm
from commlib.ir.stats import statistics
from commlib.runtime import reference

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "algorithms.txt"
HEADER = (
    "# Structure of the compiled library algorithms. Rewritten by: COMMLIB_UPDATE_GOLDENS=1 pytest tests/algorithms\n"
    "# path: messages one after another. most: chunks sent by the busiest rank. of: chunks per shard.\n"
    "# longest: steps of the longest threadblock. scratch: chunks on the rank that needs most.\n"
)
COLUMNS = ("ranks", "steps", "longest", "blocks", "channels", "messages", "moved", "most", "of", "path", "scratch")


def _compiled(entry: Entry, ranks: int, **parameters: int) -> Algorithm:
    return compile_trace(entry.trace(ranks, **parameters))


def _row(label: str, algorithm: Algorithm) -> str:
    s = statistics(algorithm)
    values = (
        *(algorithm.ranks, s.steps, s.longest_threadblock, s.threadblocks, s.channels, s.messages, s.chunks_moved),
        *(s.max_chunks_sent, algorithm.collective.chunks, s.critical_path, max(algorithm.scratch_chunks)),
    )
    return f"{label:46}" + "".join(f"{value:>9}" for value in values)


def _table() -> str:
    lines = [f"{'algorithm':46}" + "".join(f"{column:>9}" for column in COLUMNS)]
    for entry in ALGORITHMS:
        lines += [_row(entry.full_name, _compiled(entry, n)) for n in (2, 4, 7, 8, 16) if entry.supports(n)]
        if any(parameter.name == "nodes" for parameter in entry.parameters):
            lines.append(_row(f"{entry.full_name} nodes=4", _compiled(entry, 16, nodes=4)))
    return HEADER + "\n".join(lines) + "\n"


def test_structure_is_as_recorded() -> None:
    table = _table()
    if os.environ.get("COMMLIB_UPDATE_GOLDENS") == "1":
        GOLDEN.write_text(table)
    assert table.splitlines() == GOLDEN.read_text().splitlines()


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_ring_allreduce_has_2n_minus_1_steps_per_rank(n: int) -> None:
    algorithm = compile_trace(trace("allreduce", "ring", n))
    expected = ["s", *["rrs"] * (n - 2), "rrcs", *["rcs"] * (n - 2), "r"]
    for rank in range(n):
        (block,) = algorithm.threadblocks(rank)
        assert [algorithm.step(number).op.short for number in block.steps] == expected
        assert (block.send, block.recv, block.channel) == ((rank + 1) % n, (rank - 1) % n, 0)
    assert statistics(algorithm).critical_path == 2 * (n - 1)


HOPS = {
    "allpairs_one_shot_allreduce": 1,
    "allpairs_allreduce": 2,
    "recursive_doubling_allreduce": 4,
    "recursive_halving_doubling_allreduce": 8,
    "binomial_tree_allreduce": 8,
    "ring_allgather": 15,
    "recursive_doubling_allgather": 4,
    "bruck_allgather": 4,
    "ring_reducescatter": 15,
    "recursive_halving_reducescatter": 4,
    "direct_alltoall": 1,
    "pairwise_alltoall": 1,
    "bruck_alltoall": 4,
    "two_step_alltoall": 2,
    "three_step_alltoall": 3,
    "binomial_broadcast": 4,
    "binomial_reduce": 4,
    "binomial_gather": 4,
    "binomial_scatter": 4,
    "direct_sendrecv": 1,
    "direct_alltonext": 1,
    "hierarchical_alltonext": 3,
}


@pytest.mark.parametrize(("name", "hops"), HOPS.items())
def test_hops_on_16_ranks_are_those_of_the_papers(name: str, hops: int) -> None:
    assert statistics(_compiled(find(name), 16)).critical_path == hops


@pytest.mark.parametrize(
    "name", ["ring_allreduce", "allpairs_allreduce", "recursive_halving_doubling_allreduce", "hierarchical_allreduce"]
)
def test_large_message_allreduces_send_the_optimum(name: str) -> None:
    algorithm = _compiled(find(name), 8)
    assert statistics(algorithm).chunks_sent == (2 * 7,) * 8
    assert algorithm.collective.chunks == 8


@pytest.mark.parametrize("name", [entry.full_name for entry in ALGORITHMS if entry.collective == "allreduce"])
def test_all_ranks_of_an_allreduce_agree_to_the_last_bit(name: str) -> None:
    entry, generator = find(name), np.random.default_rng(3)
    ranks = 8 if name == "hierarchical_allreduce" else 7
    inputs = [generator.standard_normal(48).astype(np.float32) for _ in range(ranks)]
    algorithm = compile_trace(entry.trace(ranks))
    outputs = reference.run_local(algorithm, inputs)
    assert outputs[0] is not None
    np.testing.assert_allclose(outputs[0], np.sum(inputs, axis=0, dtype=np.float64), rtol=1e-4, atol=1e-5)
    for output in outputs:
        np.testing.assert_array_equal(output, outputs[0])


def test_three_step_alltoall_sends_one_message_per_pair_of_nodes() -> None:
    algorithm = _compiled(find("three_step_alltoall"), 16, nodes=4)
    between = [
        step
        for row in range(len(algorithm.tb_rank))
        for step in map(algorithm.step, algorithm.threadblock(row).steps)
        if step.op.sends and algorithm.threadblock(row).send // 4 != step.rank // 4  # type: ignore[operator]
    ]
    assert [step.count for step in between] == [16] * 12


def test_alltonext_spreads_what_crosses_over_all_local_ranks() -> None:
    crossing = [
        (operation.src_rank, operation.dst_rank, operation.source.count)
        for operation in find("hierarchical_alltonext").trace(8, nodes=2).operations()
        if operation.src_rank // 4 != operation.dst_rank // 4
    ]
    assert sorted(crossing) == [(0, 4, 1), (1, 5, 1), (2, 6, 1), (3, 7, 1)]


@pytest.mark.parametrize("name", [entry.full_name for entry in ALGORITHMS if entry.collective == "alltoallv"])
def test_alltoallv_carries_any_sizes(name: str) -> None:
    sizes = [[0, 3, 1], [2, 5, 0], [7, 1, 4]]
    pairs = {(r, d): np.arange(sizes[r][d]) + 100 * r + 10 * d for r in range(3) for d in range(3)}
    inputs = [np.concatenate([pairs[r, d] for d in range(3)]) for r in range(3)]
    outputs = reference.run_local(_compiled(find(name), 3), inputs, sizes=sizes)
    for rank in range(3):
        np.testing.assert_array_equal(outputs[rank], np.concatenate([pairs[q, rank] for q in range(3)]))
