"""The mutation check of one-sided programs: every single change that makes some run wrong is reported.

The ground truth is a machine of its own with puts that arrive late and users who call late and reuse their tensors at
once (``tests/onesided_machine.py``). What the verifier proves must be right in every run of it; and the changes that
the machine shows to be wrong are counted, so that the check cannot pass by having nothing to find.
"""

from __future__ import annotations

import copy
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from onesided_machine import runs
from onesided_plans import Plan, Row
from onesided_samples import SAMPLES

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import Op
from commlib.verify import verify

WHOLE = bool(os.environ.get("COMMLIB_FULL"))


def drops(plan: Plan) -> Iterator[Plan]:
    for b, block in enumerate(plan.blocks):
        for at in range(len(block.rows)):
            yield plan.changed(lambda p, b=b, at=at: p.drop(b, at))


def unsignalled(plan: Plan) -> Iterator[Plan]:
    """Without one signal and a wait for it: what it ordered is ordered no longer."""
    for b, at in positions(plan, Op.SIGNAL):
        block = plan.blocks[b]
        for c, there in positions(plan, Op.WAIT):
            other = plan.blocks[c]
            counter = (other.rows[there].peer, other.rank, other.channel)
            if counter == (block.rank, block.rows[at].peer, block.channel):
                yield plan.changed(lambda p, b=b, at=at, c=c, there=there: (p.drop(b, at), p.drop(c, there)))


def positions(plan: Plan, op: Op) -> list[tuple[int, int]]:
    return [(b, at) for b, block in enumerate(plan.blocks) for at, row in enumerate(block.rows) if row.op is op]


def moves(plan: Plan) -> Iterator[Plan]:
    """A step goes to another place of its threadblock."""
    for b, block in enumerate(plan.blocks):
        for at in range(len(block.rows)):
            for to in range(len(block.rows)):
                if to != at:
                    yield plan.changed(
                        lambda p, b=b, at=at, to=to: p.blocks[b].rows.insert(to, p.blocks[b].rows.pop(at))
                    )


def changes_of_rows(plan: Plan, change: Callable[[Row], Iterator[Row]]) -> Iterator[Plan]:
    for b, block in enumerate(plan.blocks):
        for at, row in enumerate(block.rows):
            for changed in change(copy.deepcopy(row)):
                other = copy.deepcopy(plan)
                other.blocks[b].rows[at] = copy.deepcopy(changed)
                yield other


def slots(row: Row, ranks: int) -> Iterator[Row]:
    """One operand is another slot: the next one, one of another buffer, one of another rank."""
    for operands in (row.sources, row.destinations):
        for i, (rank, buffer, index) in enumerate(operands):
            near = [(rank, buffer, index - 1), (rank, buffer, index + 1)]
            elsewhere = [(rank, other, index) for other in Buffer if other is not buffer]
            for slot in near + elsewhere + [(peer, buffer, index) for peer in range(ranks) if peer != rank]:
                operands[i] = slot
                yield row
            operands[i] = (rank, buffer, index)


def operands(row: Row) -> Iterator[Row]:
    """One operand less, or one twice."""
    for side in ("sources", "destinations"):
        whole = getattr(row, side)
        for i in range(len(whole)):
            for changed in (whole[:i] + whole[i + 1 :], [*whole, whole[i]]):
                setattr(row, side, changed)
                yield row
        setattr(row, side, whole)


def peers(row: Row, ranks: int) -> Iterator[Row]:
    for peer in range(ranks):
        if row.peer is not None and peer != row.peer:
            yield Row(row.op, row.count, row.depends, peer, [], [])


def ops(row: Row) -> Iterator[Row]:
    """Another operation with the same operands or the same peer."""
    for op in Op:
        if op is not row.op and op.one_sided and op.synchronizes == row.op.synchronizes:
            yield Row(op, row.count, row.depends, row.peer, row.sources, row.destinations)


def dependences(row: Row) -> Iterator[Row]:
    for i, (tb, step) in enumerate(row.depends):
        for changed in ([], [(tb, step - 1)], [(tb, step + 1)]):
            yield Row(
                row.op,
                row.count,
                row.depends[:i] + changed + row.depends[i + 1 :],
                row.peer,
                row.sources,
                row.destinations,
            )


def channels(plan: Plan) -> Iterator[Plan]:
    for b, block in enumerate(plan.blocks):
        for channel in {block.channel - 1, block.channel + 1} & set(range(9)):
            yield plan.changed(lambda p, b=b, channel=channel: setattr(p.blocks[b], "channel", channel))


MUTATIONS: dict[str, Callable[[Plan], Iterator[Plan]]] = {
    "drop": drops,
    "unsignalled": unsignalled,
    "move": moves,
    "slot": lambda p: changes_of_rows(p, lambda row: slots(row, p.collective.ranks)),
    "operand": lambda p: changes_of_rows(p, operands),
    "peer": lambda p: changes_of_rows(p, lambda row: peers(row, p.collective.ranks)),
    "op": lambda p: changes_of_rows(p, ops),
    "dependence": lambda p: changes_of_rows(p, dependences),
    "channel": channels,
}


def judge(plan: Plan, mutation: str, seed: int) -> Counter[str]:
    """Verify the mutants of one kind; counts what they are, and fails when one is proved but wrong."""
    chosen = list(MUTATIONS[mutation](plan))
    if not WHOLE:
        chosen = random.Random(seed).sample(chosen, min(len(chosen), 12))
    seen: Counter[str] = Counter()
    for mutant in chosen:
        algorithm = mutant.build()
        if algorithm is None:
            seen["refused"] += 1
            continue
        report = verify(algorithm, fifo_depth=3)
        for placement in Placement:
            if placement in report.proved:
                wrong = not all(runs(algorithm, placement, seed, 200 if WHOLE else 12))
                assert not wrong, f"{mutation}: proved {placement}, but wrong in some run"
                seen["still right"] += 1
            else:
                seen["wrong" if not all(runs(algorithm, placement, seed, 400 if WHOLE else 16)) else "reported"] += 1
    return seen


@pytest.mark.parametrize("name", SAMPLES)
def test_every_change_of_meaning_is_reported(name: str) -> None:
    plan = Plan.of(SAMPLES[name](3))
    total = sum((judge(plan, mutation, seed) for seed, mutation in enumerate(MUTATIONS)), Counter())
    assert total["wrong"] >= 40
    assert total["reported"] <= total["wrong"] // 5, f"the verifier cries wolf: {total}"


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_originals_are_right_as_the_verifier_says(name: str, ranks: int) -> None:
    algorithm = SAMPLES[name](ranks)
    report = verify(algorithm)
    assert report.proved == ({Placement.OUT} if name == "get_alltoall" else set(Placement))
    for placement in report.proved:
        assert all(runs(algorithm, placement, ranks, 10))
