"""Ranks that are killed, stopped, late or at odds under torch.distributed with ``commlib`` as its backend.

COMMLIB_FULL=1 strikes 200 times (COMMLIB_SEED: other strikes); otherwise a few. What each survivor was told, in which
call and how soon, are properties of the tests: ``pytest -o junit_family=xunit1 --junitxml FILE`` writes them, and
``python tests/fault_report.py FILE`` counts them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fault_campaign import Strike, strike_in, strikes, traces
from struck_calls import CALLS, Made, allreduce, messages
from timely import timely

from commlib.errors import ExecutionError
from commlib.runtime import launch, launch_outcomes

FULL = bool(os.environ.get("COMMLIB_FULL"))
SEED = int(os.environ.get("COMMLIB_SEED", "5"))
TIMEOUT = 4.0
PATIENCE = 20.0
"""Seconds that ranks wait for each other where they may come late: survivors of a strike do."""
RANKS = 4
SIZES = (1, 1000, 70_000, 300_000)
"""Elements of all shards together; a call of one shard has as many."""


def _group(ranks: list[int] | None = None, timeout: float = TIMEOUT) -> Any:
    import commlib.torch_backend  # noqa: F401 (registers the backend)

    members = {"ranks": ranks, "use_local_synchronization": True} if ranks is not None else {}
    return dist.new_group(backend="commlib", timeout=timedelta(seconds=timeout), **members)


def _struck(rank: int, strike: Strike) -> dict[str, Any]:
    """Make calls until one fails; what it said, what the next says, and whether a new group of the rest works."""
    os.environ["COMMLIB_NATIVE"] = str(int(strike.native))
    group = _group()
    answer = dict[str, Any](wrong=[])
    for number, (call, size, asynchronous) in enumerate(_calls(strike, rank)):
        begun = time.monotonic()
        try:
            if not call(group, size, number, asynchronous):
                answer["wrong"].append(f"{number} {call.__name__} {size}")
        except RuntimeError as error:
            answer |= {"number": number, "call": call.__name__, "size": size, "seconds": time.monotonic() - begun}
            answer |= _told(error)
            break
    with pytest.raises(RuntimeError) as caught:
        allreduce(group, 10, 0, False)
    answer["next"] = str(caught.value)
    dist.destroy_process_group(group)
    rest = _group([other for other in range(strike.ranks) if other != strike.victim], PATIENCE)
    answer["again"] = all(call(rest, 100, 1, False) for call in CALLS if strike.ranks > 2 or call is not messages)
    return answer


def _calls(strike: Strike, rank: int) -> Iterator[tuple[Made, int, bool]]:
    """All kinds in some sizes, and then at random, the same on all ranks; what is of another size is planned yet.

    The victim's time begins when it is through with the first ones; others may still be in them.
    """
    yield from ((call, size, False) for call in CALLS for size in SIZES[: 1 + strike.seed % len(SIZES)])
    if rank == strike.victim:
        strike_in(strike.seconds, strike.number)
    chance = random.Random(strike.seed)
    while True:
        yield chance.choice(CALLS), chance.choice(SIZES), chance.random() < 0.3


def _told(error: RuntimeError) -> dict[str, Any]:
    fields = error.fields if isinstance(error, ExecutionError) else {}
    kept = {key: value for key, value in fields.items() if key != "flight"}
    return {"kind": [kind.__name__ for kind in type(error).__mro__], "error": str(error), "fields": kept}


@pytest.mark.parametrize("strike", strikes(200 if FULL else 2, SEED), ids=str)
def test_whoever_depends_on_the_lost_rank_names_it_in_time(
    strike: Strike, record_property: Callable[[str, object], None]
) -> None:
    before = traces()
    outcomes = launch_outcomes(_struck, strike.ranks, (strike,), timeout=60)
    told = {each.rank: each.value or {"ended": str(each.error)} for each in outcomes if each.rank != strike.victim}
    record_property("deadline", TIMEOUT)
    record_property("told", json.dumps(told))
    assert traces() == before
    assert outcomes[strike.victim].signal == strike.number
    for outcome in outcomes:
        if outcome.rank != strike.victim:
            assert outcome.error is None, outcome.error
            _check_survivor(outcome.value, strike)


def _check_survivor(answer: dict[str, Any], strike: Strike) -> None:
    assert answer["wrong"] == []
    assert {"PeerFailedError", "DistBackendError"} <= set(answer["kind"]), answer["error"]
    fields, cause = answer["fields"], "gone" if strike.number == signal.SIGKILL else "stopped"
    found = fields.get("root"), fields.get("cause")
    assert found == (strike.victim, cause), (answer["call"], answer["error"])
    assert f"rank {strike.victim} " in answer["error"]
    assert answer["seconds"] < TIMEOUT
    assert f"rank {strike.victim} " in answer["next"]
    assert answer["again"] is True


def _late(rank: int) -> list[Any]:
    """Rank 2 never comes to the second call; the others have it in their flight records."""
    from commlib.torch_backend import flight_record

    group = _group(timeout=PATIENCE)
    assert allreduce(group, 10, 0, False)
    group.set_timeout(timedelta(seconds=1.5))
    if rank == 2:
        time.sleep(2.0)
        return ["", 0.0]
    begun = time.monotonic()
    with pytest.raises(dist.DistBackendError) as caught:
        allreduce(group, 10, 1, False)
    seconds, fields = time.monotonic() - begun, getattr(caught.value, "fields", {})
    shown = flight_record(group)
    assert [call.state for call in shown.calls] == ["done", "failed"]
    assert [call["collective"] for call in fields["flight"]] == [call.collective for call in shown.calls]
    return [str(caught.value), seconds]


@timely
def test_a_rank_that_never_comes_is_named_by_all_before_the_deadline() -> None:
    for rank, (text, seconds) in enumerate(launch(_late, RANKS, (), 30)):
        if rank != 2:
            assert "rank 2 never came to call 2: it is alive, and its last call was 1" in text
            assert seconds < 1.5


def _shape(group: Any, odd: bool) -> None:
    dist.all_reduce(torch.ones(20 if odd else 10), group=group)


def _dtype(group: Any, odd: bool) -> None:
    dist.all_reduce(torch.ones(10, dtype=torch.int32 if odd else torch.float32), group=group)


def _op(group: Any, odd: bool) -> None:
    dist.all_reduce(torch.ones(10), op=dist.ReduceOp.MAX if odd else dist.ReduceOp.SUM, group=group)


def _root(group: Any, odd: bool) -> None:
    dist.broadcast(torch.ones(10), group_src=1 if odd else 0, group=group)


def _collective(group: Any, odd: bool) -> None:
    if odd:
        dist.all_gather_into_tensor(torch.empty(40), torch.ones(10), group=group)
    else:
        dist.all_reduce(torch.ones(10), group=group)


MISMATCHES = {
    _shape: ("allreduce", " 20 ", " 10 "),
    _dtype: ("allreduce", " int32 ", " float32 "),
    _op: ("allreduce", " max ", " sum "),
    _root: ("broadcast", " root 1 ", " root 0 "),
    _collective: ("allgather", "allgather", "allreduce"),
}


def _differ(rank: int) -> list[list[Any]]:
    """Rank 2 calls something else; each in a group of its own."""
    found = []
    for differs in MISMATCHES:
        group = _group(timeout=PATIENCE)
        begun, text = time.monotonic(), ""
        try:
            for _ in range(4):
                differs(group, rank == 2)
        except dist.DistBackendError as error:
            text = f"{type(error).__name__} {error}"
        found.append([text, time.monotonic() - begun])
        dist.destroy_process_group(group)
    return found


def test_ranks_that_call_differently_all_say_who_did_what() -> None:
    for answers in launch(_differ, RANKS, (), 60):
        for (text, seconds), (name, odd, usual) in zip(answers, MISMATCHES.values(), strict=True):
            assert "MismatchError" in text
            assert "rank 2 " in text
            assert name in text
            assert odd in text
            assert usual in text
            assert seconds < PATIENCE / 2  # not the deadline
