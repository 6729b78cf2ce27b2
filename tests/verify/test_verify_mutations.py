"""The mutation check: every single change of a right algorithm that changes its meaning is reported.

The ground truth is the slow interpreter under many interleavings, FIFO depths and ways to cut messages. A mutant that
the verifier proves must be right in all of them; and the mutants that the interpreter shows wrong are counted, so
that the check cannot pass by having nothing to find.
"""

from __future__ import annotations

import copy
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from verify_samples import (
    Plan,
    Row,
    allpairs,
    direct_alltoall,
    doubling_allgather,
    in_place_ring,
    picks,
    plan_of,
    ring_allreduce,
    split_ring,
)

from commlib.algorithms import trace
from commlib.collectives import Buffer, Placement
from commlib.compiler import compile_trace
from commlib.errors import AlgorithmError
from commlib.ir.algorithm import Algorithm, Op
from commlib.verify import interpret, verify

WHOLE = bool(os.environ.get("COMMLIB_FULL"))
PLANS = {
    plan.name: plan
    for plan in (ring_allreduce(3), split_ring(3), allpairs(3), doubling_allgather(4), direct_alltoall(3))
} | {"in-place ring": in_place_ring(3), "wide ring": ring_allreduce(2, 2)}
LIBRARY = (
    ("allreduce", "recursive_halving_doubling", 4),
    ("allreduce", "double_binary_tree", 3),
    ("alltoall", "bruck", 3),
    ("allgather", "ring", 4),
    ("reducescatter", "allpairs", 3),
)
MUTATIONS = ("drop", "swap", "peer", "offset", "count", "buffer", "dependence", "op")


def mutants(plan: Plan, mutation: str) -> Iterator[Plan]:
    """All plans that differ from the given one by one mutation of this kind."""
    make: dict[str, Callable[[Plan], Iterator[Plan]]] = {
        "drop": _drops,
        "swap": _swaps,
        "peer": _peers,
        "offset": lambda p: _rows(p, _offsets),
        "count": lambda p: _rows(p, _counts),
        "buffer": lambda p: _rows(p, _buffers),
        "dependence": _dependences,
        "op": lambda p: _rows(p, _ops),
    }
    return make[mutation](plan)


def _drops(plan: Plan) -> Iterator[Plan]:
    for b, block in enumerate(plan.blocks):
        for at in range(len(block.rows)):
            other = copy.deepcopy(plan)
            del other.blocks[b].rows[at]
            index = [c.rank for c in plan.blocks[:b]].count(block.rank)
            for mine in other.blocks:
                if mine.rank == block.rank:
                    _forget(mine.rows, index, at)
            yield other


def _forget(rows: list[Row], threadblock: int, at: int) -> None:
    """Dependences on a dropped step go; later steps of its threadblock have moved up."""
    for row in rows:
        kept = [dep for dep in row.deps if dep != (threadblock, at)]
        row.deps = [(tb, step - (tb == threadblock and step > at)) for tb, step in kept]


def _swaps(plan: Plan) -> Iterator[Plan]:
    for b, block in enumerate(plan.blocks):
        for at in range(len(block.rows) - 1):
            other = copy.deepcopy(plan)
            rows = other.blocks[b].rows
            rows[at], rows[at + 1] = rows[at + 1], rows[at]
            yield other


def _peers(plan: Plan) -> Iterator[Plan]:
    for b, block in enumerate(plan.blocks):
        for field, old in (("send", block.send), ("recv", block.recv)):
            for peer in range(plan.collective.ranks):
                if old is not None and peer != old:
                    other = copy.deepcopy(plan)
                    setattr(other.blocks[b], field, peer)
                    yield other


def _rows(plan: Plan, change: Callable[[Row], Iterator[Row]]) -> Iterator[Plan]:
    for b, block in enumerate(plan.blocks):
        for at, row in enumerate(block.rows):
            for changed in change(copy.deepcopy(row)):
                other = copy.deepcopy(plan)
                other.blocks[b].rows[at] = copy.deepcopy(changed)
                yield other


def _offsets(row: Row) -> Iterator[Row]:
    for field in ("src", "dst"):
        slot = getattr(row, field)
        for shift in (-1, 1):
            if slot is not None:
                setattr(row, field, (slot[0], slot[1] + shift))
                yield row
        setattr(row, field, slot)


def _buffers(row: Row) -> Iterator[Row]:
    for field in ("src", "dst"):
        slot = getattr(row, field)
        for buffer in Buffer:
            if slot is not None and buffer != slot[0]:
                setattr(row, field, (buffer, slot[1]))
                yield row
        setattr(row, field, slot)


def _counts(row: Row) -> Iterator[Row]:
    for change in (-1, 1):
        row.count += change
        yield row
        row.count -= change


def _ops(row: Row) -> Iterator[Row]:
    """Operations with the same messages: operands are added or left out as the other one needs."""
    slot = row.dst or row.src
    for op in Op:
        if op is not row.op and (op.sends, op.receives) == (row.op.sends, row.op.receives):
            source = (row.src or slot) if op.has_source else None
            destination = (row.dst or slot) if op.has_destination else None
            yield Row(op, source, destination, 0 if op is Op.NOP else row.count, row.deps)


def _dependences(plan: Plan) -> Iterator[Plan]:
    for b, block in enumerate(plan.blocks):
        for at, row in enumerate(block.rows):
            for d, (tb, step) in enumerate(row.deps):
                for changed in ([], [(tb, step - 1)], [(tb, step + 1)]):
                    other = copy.deepcopy(plan)
                    other.blocks[b].rows[at].deps[d : d + 1] = changed
                    yield other


def _built(plan: Plan) -> Algorithm | None:
    """The mutant, or None where an Algorithm cannot even say that (a slot outside its buffer, no such step, ...)."""
    try:
        return plan.build()
    except AlgorithmError:
        return None


def _runs(algorithm: Algorithm, placement: Placement, seed: int, number: int) -> Iterator[bool]:
    """Whether the algorithm is right, in one run after another."""
    for pick in picks(seed, number):
        for depth in (8, 3):
            for cut in (True, False):
                yield interpret(algorithm, placement, pick, depth, cut).is_right(algorithm, placement)


def judge(plan: Plan, mutation: str, seed: int) -> Counter[str]:
    """Verify the mutants of one kind; counts what they are, and fails when one is proved but wrong."""
    chosen = list(mutants(plan, mutation))
    if not WHOLE:
        chosen = random.Random(seed).sample(chosen, min(len(chosen), 30))
    seen: Counter[str] = Counter()
    for mutant in chosen:
        algorithm = _built(mutant)
        if algorithm is None:
            seen["refused"] += 1
            continue
        report = verify(algorithm, fifo_depth=3)
        for placement in Placement:
            if placement in report.proved:
                assert all(_runs(algorithm, placement, seed, 12 if WHOLE else 4)), "proved, but wrong in some run"
                seen["still right"] += 1
            else:
                seen["wrong" if not all(_runs(algorithm, placement, seed, 2)) else "reported"] += 1
    return seen


@pytest.mark.parametrize("name", PLANS)
def test_every_change_of_meaning_is_reported(name: str) -> None:
    total: Counter[str] = Counter()
    for seed, mutation in enumerate(MUTATIONS):
        total += judge(PLANS[name], mutation, seed)
    assert total["wrong"] >= 50
    assert total["refused"] >= 5
    assert total["reported"] <= total["wrong"] // 10, "the verifier cries wolf"


@pytest.mark.parametrize(("collective", "name", "ranks"), LIBRARY)
def test_every_change_of_a_compiled_algorithm_is_reported(collective: str, name: str, ranks: int) -> None:
    algorithm = compile_trace(trace(collective, name, ranks))
    plan = plan_of(algorithm)
    assert verify(plan.build()).proved == set(Placement)
    total = sum((judge(plan, mutation, seed) for seed, mutation in enumerate(MUTATIONS)), Counter())
    assert total["wrong"] >= 50
    assert total["reported"] <= total["wrong"] // 10, f"the verifier cries wolf: {total}"


def test_the_originals_are_right_as_the_verifier_says() -> None:
    for plan in PLANS.values():
        algorithm = plan.build()
        report = verify(algorithm, fifo_depth=3)
        assert report.ok
        for placement in report.proved:
            assert all(_runs(algorithm, placement, 0, 4))
