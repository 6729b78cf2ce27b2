"""Ranks of a shared-memory session that call differently, at random: all say so in time, and no result is wrong."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import torch
from fault_campaign import call_once, programs, store

from commlib.collectives import Placement
from commlib.errors import CommlibError, SpecError
from commlib.runtime import launch
from commlib.runtime.shm.session import Prepared, ShmOptions, ShmSession

RANKS = 4
CASES = 150 if os.environ.get("COMMLIB_FULL") else 12
AHEAD = 4
"""Calls after which a rank must have noticed: it cannot be further ahead of another."""


def _one(session: ShmSession, chance: random.Random) -> Prepared:
    algorithm = chance.choice(programs(RANKS))
    reduce = chance.choice(("sum", "max", "min")) if algorithm.collective.reduces else None
    dtype = torch.int64 if reduce in (None, "sum") else torch.int32
    return session.prepare(algorithm, Placement.OUT, chance.choice((3, 40, 1000, 70_000)), dtype, reduce)


def _pair(session: ShmSession, chance: random.Random) -> tuple[Prepared, Prepared]:
    while True:
        usual, odd = _one(session, chance), _one(session, chance)
        if usual.fingerprint != odd.fingerprint and usual.launch.reduce in (None, "sum"):
            return usual, odd


def _differ(rank: int, cases: int) -> list[dict[str, Any]]:
    return [_case(rank, number) for number in range(cases)]


def _case(rank: int, number: int) -> dict[str, Any]:
    """A few calls that agree, then the odd rank makes another; in a session of its own."""
    chance = random.Random(number)
    options = ShmOptions(lane_bytes=1 << 20, native=number % 2 == 0)
    with ShmSession.open(store(f"case{number}"), rank, RANKS, options, 30.0) as session:
        usual, other = _pair(session, chance)
        odd, agreed = chance.randrange(RANKS), chance.randrange(3)
        answer: dict[str, Any] = {"odd": odd, "right": [], "texts": [usual.text, other.text]}
        begun = time.monotonic()
        try:
            for call in range(agreed + AHEAD):
                answer["right"].append(_called(session, other if rank == odd and call >= agreed else usual, call))
        except CommlibError as error:
            answer |= {"kind": type(error).__name__, "error": str(error), "cause": error.fields.get("cause")}
        answer["seconds"] = time.monotonic() - begun
    return answer


def _called(session: ShmSession, prepared: Prepared, call: int) -> bool:
    """A call; only sums and moves of int64 have a result that can be said here to be right."""
    if prepared.launch.dtype == torch.int64:
        return call_once(session, prepared, call, 6.0)
    memory = [torch.zeros(1 << 20, dtype=torch.int32) for _ in range(2)]
    session.run(prepared, memory[0].data_ptr(), memory[1].data_ptr(), 6.0)
    return True


def test_whatever_one_rank_calls_instead_all_are_told_and_no_result_is_wrong() -> None:
    found = launch(_differ, RANKS, (CASES,), 30 + 2 * CASES)
    for number in range(CASES):
        for rank in range(RANKS):
            answer = found[rank][number]
            assert "error" in answer, (number, rank, answer)
            assert all(answer["right"]), (number, rank, answer)
            assert answer["seconds"] < 5.0, (number, rank, answer)
            assert (answer["kind"], answer["cause"]) == ("MismatchError", "mismatch"), (number, rank, answer)
            assert f"rank {answer['odd']} " in answer["error"], (number, rank, answer)
            assert all(f"({text})" in answer["error"] for text in answer["texts"]), (number, rank, answer)


def _refused(rank: int) -> list[Any]:
    """Rank 1 asks for what its session refuses before anything is sent: the session goes on."""
    with ShmSession.open(store("refused"), rank, RANKS, ShmOptions(lane_bytes=1 << 20), 30.0) as session:
        text = ""
        if rank == 1:
            try:
                session.prepare(programs(3)[0], Placement.OUT, 5, torch.int64, "sum")
            except SpecError as error:
                text = str(error)
        good = session.prepare(programs(RANKS)[0], Placement.OUT, 5, torch.int64, "sum")
        return [text, call_once(session, good, 0)]


def test_what_is_refused_before_a_call_concerns_nobody_else() -> None:
    found = launch(_refused, RANKS, (), 30)
    assert [right for _, right in found] == [True] * RANKS
    assert found[1][0].endswith("is for 3 ranks, the group has 4")
