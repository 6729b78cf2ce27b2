"""A rank that stores to a peer's scratch before it has heard of it must not disturb a peer that makes another call."""

from __future__ import annotations

import time

import pytest
import torch
from onesided_cases import gets, one_shot, pushed, puts, shared, staged, stores
from shm_cases import PYTHON, SMALL, ShmCase, address_of, open_session, run_case

from commlib import collectives
from commlib.algorithms.direct import ENTRIES
from commlib.collectives import Placement
from commlib.dsl.onesided import OneSidedProgram
from commlib.errors import ExecutionError, MismatchError
from commlib.ir.algorithm import Algorithm
from commlib.runtime.launcher import launch
from commlib.runtime.layout import plan_layout
from commlib.runtime.shm.options import ShmOptions
from commlib.runtime.table import NONE, SIGNAL, WAIT
from commlib.runtime.tabulate import TableLimits, tabulate
from commlib.verify import unheard_stores

RANKS, ELEMENTS = 3, 16


def hand_over() -> Algorithm:
    """Broadcast of rank 2 through its own scratch; rank 2 waits for nobody, rank 1 for rank 2, rank 0 for rank 2."""
    k = OneSidedProgram("hand_over", collectives.broadcast(RANKS, 1, root=2))
    root = k.threadblock(2)
    root.store(k.input(2)[0], [k.scratch(2)[0], k.output(2)[0]])
    for rank in (0, 1):
        root.signal(rank)
        block = k.threadblock(rank)
        block.wait(2)
        block.get(k.scratch(2)[0], k.output(rank)[0])
    return k.algorithm()


def _two_calls(rank: int, options: ShmOptions) -> list[object]:
    """Rank 2 hands over, then rank 0 calls something else, then rank 1 takes what rank 2 has left for it."""
    with open_session(rank, RANKS, options) as session:
        assert run_case(session, ShmCase(one_shot(RANKS), ELEMENTS)) is None
        program, reduce = (one_shot(RANKS), "sum") if rank == 0 else (hand_over(), None)
        prepared = session.prepare(program, Placement.OUT, ELEMENTS, torch.float32, reduce)
        given, result = torch.full((ELEMENTS,), 10.0 + rank), torch.zeros(ELEMENTS)
        time.sleep({2: 0.0, 0: 0.2, 1: 0.3}[rank])
        try:
            session.run(prepared, address_of(given), address_of(result), 6.0)
        except MismatchError as error:
            return [str(error), []]
        except ExecutionError as error:  # what a rank gets whose peers have failed before
            return [f"{type(error).__name__}: {error}", []]
        return ["", result.tolist()]


@pytest.mark.parametrize("options", [PYTHON, SMALL], ids=["python", "default"])
def test_a_put_without_a_wait_before_it_spoils_nobody_in_another_call(options: ShmOptions) -> None:
    found = launch(_two_calls, RANKS, (options,), 30)
    text, _ = found[0]
    assert "one_shot" in text
    assert "hand_over" in text
    for text, result in found[1:]:
        assert result == ([] if text else [12.0] * ELEMENTS), "a wrong result and no error"


def test_steps_that_write_to_ranks_not_heard_of_are_found() -> None:
    assert unheard_stores(one_shot(3)).tolist() == [[0, 1], [1, 2], [9, 2], [10, 0], [18, 0], [19, 1]]
    assert unheard_stores(pushed(2)).tolist() == [[0, 1]]
    for heard in (shared(3), gets(3, 2), stores(3, 5, 1), hand_over()):
        assert len(unheard_stores(heard)) == 0, heard.name


def test_a_rank_that_is_heard_of_through_another_is_heard_of() -> None:
    k = OneSidedProgram("chain", collectives.broadcast(RANKS, 1, root=2))
    first, between, last = (k.threadblock(rank) for rank in (0, 1, 2))
    first.signal(1)
    between.wait(0)
    between.signal(2)
    last.wait(1)
    last.store(k.input(2)[0], [k.scratch(0)[0], k.scratch(1)[0], k.output(2)[0]])
    for rank, block in ((0, first), (1, between)):
        last.signal(rank)
        block.wait(2)
        block.copy(k.scratch(rank)[0], k.output(rank)[0])
    assert len(unheard_stores(k.algorithm())) == 0


def test_programs_of_the_library_write_to_nobody_unheard() -> None:
    for entry in ENTRIES:
        for ranks in filter(entry.supports, (2, 3, 4)):
            assert len(unheard_stores(entry.algorithm(ranks))) == 0, entry.full_name


def test_announcements_come_first_and_only_what_needs_them_waits() -> None:
    limits = TableLimits(1 << 16, 1 << 16, 8, 32)
    algorithm = pushed(2)
    layout = plan_layout(algorithm, Placement.OUT, 8)
    root, other = (tabulate(algorithm, layout, rank, 4, "int32", None, limits, False) for rank in range(2))
    assert [step[["kind", "peer", "channel"]].tolist() for step in (root.steps[0], other.steps[0])] == [
        (WAIT, 1, 1),
        (SIGNAL, 0, 1),
    ]
    assert root.threadblocks == other.threadblocks == (NONE, 0)
    assert [table.blocks["low"].tolist() for table in (root, other)] == [[0, 1], [0, 1]]
    assert root.steps["depend_high"].tolist() == [0, 1, 1, 1], "the put waits, and so does what comes after it"
    assert root.depends.tolist() == [(0, 1)]
    assert len(other.depends) == 0
    plain = staged(2), puts(2, 2)
    for program in plain:
        layout = plan_layout(program, Placement.OUT, 8)
        table = tabulate(program, layout, 0, 4, "int32", "sum", limits, False)
        assert table.steps["kind"][:2].tolist() == [SIGNAL, WAIT], program.name
