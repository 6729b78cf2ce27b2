"""Ranks that do not agree who is the root, so that some or all wait for nobody: the next call that depends on another
rank says so, and whatever signals are left over, no result is ever wrong."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
import torch
from fault_campaign import store

from commlib.algorithms.direct import ENTRIES
from commlib.collectives import Placement
from commlib.errors import CommlibError
from commlib.runtime import launch
from commlib.runtime.shm.session import Prepared, ShmOptions, ShmSession

DIRECT = {entry.full_name: entry for entry in ENTRIES}
ROOTED = ("staged_broadcast", "one_shot_reduce", "staged_scatter", "staged_gather")
AFTER = ("one_shot_allreduce", "staged_allreduce")
SIZES = (1, 40, 6000)
BEFORE = 2


def roots_of(ranks: int) -> list[list[int]]:
    """Who takes whom for the root: each itself, each the next, two camps, and one alone."""
    each = range(ranks)
    return [list(each), [(r + 1) % ranks for r in each], [r % 2 for r in each], [int(r == ranks - 1) for r in each]]


def _prepare(session: ShmSession, name: str, elements: int, root: int | None) -> Prepared:
    reduces = "reduce" in name
    text = f"{name} root {root} {elements}" if root is not None else f"{name} {elements}"
    algorithm = DIRECT[name].algorithm(session.ranks, root)
    return session.prepare(algorithm, Placement.OUT, elements, torch.int64, "sum" if reduces else None, text=text)


def _call(session: ShmSession, prepared: Prepared, value: int) -> torch.Tensor:
    source, target = (torch.full((1 << 16,), value if full else -1) for full in (True, False))
    session.run(prepared, source.data_ptr(), target.data_ptr(), 8.0)
    return target


def _sums(session: ShmSession, prepared: Prepared, call: int) -> bool:
    """An allreduce of values that differ by rank and call; whether every element is right."""
    got = _call(session, prepared, (call + 1) * 10**session.rank)
    wanted = sum((call + 1) * 10**rank for rank in range(session.ranks))
    return bool((got[: prepared.launch.elements] == wanted).all())


def _case(rank: int, ranks: int, number: int, native: bool) -> dict[str, Any]:
    """Two allreduces, one call whose root is disputed, then allreduces until one fails."""
    chance = random.Random(number)
    kinds = roots_of(ranks)
    roots, name = kinds[number % len(kinds)], ROOTED[number // len(kinds) % len(ROOTED)]
    elements, after, pauses = chance.choice(SIZES), chance.choice(AFTER), [chance.choice((0, 0, 0.002)) for _ in roots]
    answer: dict[str, Any] = {"name": f"{name} {roots} {elements}", "wrong": [], "error": "", "calls": BEFORE + 1}
    with ShmSession.open(store(f"roots{number}{native}"), rank, ranks, _options(native), 20.0) as session:
        same, disputed = _prepare(session, after, elements, None), _prepare(session, name, elements, roots[rank])
        answer["texts"] = [f"({name} root {root} {elements})" for root in sorted(set(roots))]
        try:
            answer["wrong"] += [call for call in range(BEFORE) if not _sums(session, same, call)]
            time.sleep(pauses[rank])
            _call(session, disputed, 7)
            answer["calls"] += 1
            answer["wrong"] += [call for call in range(9, 13) if not _sums(session, same, call)]
            answer["calls"] += 4
        except CommlibError as error:
            answer |= {"error": str(error), "kind": type(error).__name__}
    return answer


def _options(native: bool) -> ShmOptions:
    return ShmOptions(lane_bytes=1 << 18, native=native)


def _cases(rank: int, ranks: int, cases: int, native: bool) -> list[dict[str, Any]]:
    return [_case(rank, ranks, number, native) for number in range(cases)]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("ranks", "cases"), [(2, 32), (3, 32), (8, 16)])
def test_a_disputed_root_is_told_by_the_next_call_that_depends_on_another_rank(
    ranks: int, cases: int, native: bool
) -> None:
    for rank, answers in enumerate(launch(_cases, ranks, (ranks, cases, native), 60)):
        for answer in answers:
            assert not answer["wrong"], (rank, answer)
            assert answer["calls"] <= BEFORE + 2, (rank, answer)
            assert answer["kind"] == "MismatchError", (rank, answer)
            assert f"is in call {BEFORE + 1} (" in answer["error"], (rank, answer)
            assert sum(text in answer["error"] for text in answer["texts"]) >= 2, (rank, answer)


def _roots_only(rank: int, native: bool) -> dict[str, Any]:
    """Each rank is the root of all broadcasts: none ever depends on another, but none may run away."""
    answer: dict[str, Any] = {"calls": 0, "error": ""}
    with ShmSession.open(store(f"alone{native}"), rank, 3, _options(native), 20.0) as session:
        mine = _prepare(session, "staged_broadcast", 40, rank)
        try:
            for _ in range(10):
                _call(session, mine, rank)
                answer["calls"] += 1
        except CommlibError as error:
            answer |= {"error": str(error), "kind": type(error).__name__}
    return answer


@pytest.mark.parametrize("native", [True, False])
def test_ranks_that_depend_on_nobody_are_compared_before_the_boards_forget(native: bool) -> None:
    for answer in launch(_roots_only, 3, (native,), 30):
        assert answer["kind"] == "MismatchError", answer
        assert 1 <= answer["calls"] <= 4, answer
        assert "is in call 1 (staged_broadcast root " in answer["error"], answer
