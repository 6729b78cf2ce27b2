"""Ranks that are killed, stopped, late or at odds under torch.distributed with ``commlib`` as its backend.

COMMLIB_FULL=1 strikes 60 times; otherwise a few.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fault_campaign import Strike, strike_in, strikes, traces

from commlib.errors import ExecutionError
from commlib.runtime import launch, launch_outcomes

FULL = bool(os.environ.get("COMMLIB_FULL"))
TIMEOUT = 4.0
RANKS = 4
SIZES = (1, 1000, 70_000)


def _group(ranks: list[int] | None = None, timeout: float = TIMEOUT) -> Any:
    import commlib.torch_backend  # noqa: F401 (registers the backend)

    members = {"ranks": ranks, "use_local_synchronization": True} if ranks is not None else {}
    return dist.new_group(backend="commlib", timeout=timedelta(seconds=timeout), **members)


def _reduced(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    tensor = torch.arange(size) * (rank + 1) + call
    work = dist.all_reduce(tensor, group=group, async_op=asynchronous)
    if asynchronous:
        work.wait()
    return bool(torch.equal(tensor, torch.arange(size) * (ranks * (ranks + 1) // 2) + ranks * call))


def _gathered(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    output = torch.empty(ranks * size, dtype=torch.int64)
    work = dist.all_gather_into_tensor(output, torch.full((size,), rank + call), group=group, async_op=asynchronous)
    if asynchronous:
        work.wait()
    return bool(torch.equal(output, torch.arange(ranks).repeat_interleave(size) + call))


def _exchanged(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    output, given = torch.empty(ranks * size, dtype=torch.int64), torch.arange(ranks).repeat_interleave(size) * 10
    work = dist.all_to_all_single(output, given + rank + call, group=group, async_op=asynchronous)
    if asynchronous:
        work.wait()
    return bool(torch.equal(output, torch.arange(ranks).repeat_interleave(size) + 10 * rank + call))


def _broadcast(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    tensor = torch.full((size,), call if rank == call % ranks else -1)
    work = dist.broadcast(tensor, group=group, group_src=call % ranks, async_op=asynchronous)
    if asynchronous:
        work.wait()
    return bool((tensor == call).all())


def _passed(group: Any, size: int, call: int, asynchronous: bool) -> bool:
    """Each sends to the next, and receives from the one before."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    after, before, tensor = (rank + 1) % ranks, (rank - 1) % ranks, torch.empty(size, dtype=torch.int64)
    sent = dist.isend(torch.full((size,), rank + call), group=group, group_dst=after)
    if asynchronous:
        dist.irecv(tensor, group=group, group_src=before).wait()
    else:
        dist.recv(tensor, group=group, group_src=before)
    sent.wait()
    return bool((tensor == before + call).all())


CALLS: tuple[Callable[[Any, int, int, bool], bool], ...] = (_reduced, _gathered, _exchanged, _broadcast, _passed)


def _struck(rank: int, strike: Strike) -> dict[str, Any]:
    """Make calls until one fails; what it said, what the next says, and whether a new group of the rest works."""
    os.environ["COMMLIB_NATIVE"] = str(int(strike.native))
    group = _group()
    chance, answer = random.Random(strike.seed), dict[str, Any](wrong=[])
    assert all(call(group, 10, 0, False) for call in CALLS)
    if rank == strike.victim:
        strike_in(strike.seconds, strike.number)
    for number in range(1_000_000):
        call, size, asynchronous = chance.choice(CALLS), chance.choice(SIZES), chance.random() < 0.3
        begun = time.monotonic()
        try:
            if not call(group, size, number, asynchronous):
                answer["wrong"].append(f"{number} {call.__name__} {size}")
        except RuntimeError as error:
            answer |= {"call": call.__name__, "seconds": time.monotonic() - begun} | _told(error)
            break
    with pytest.raises(RuntimeError) as caught:
        _reduced(group, 10, 0, False)
    answer["next"] = str(caught.value)
    dist.destroy_process_group(group)
    rest = _group([other for other in range(strike.ranks) if other != strike.victim])
    answer["again"] = all(call(rest, 100, 1, False) for call in CALLS if strike.ranks > 2 or call is not _passed)
    return answer


def _told(error: RuntimeError) -> dict[str, Any]:
    fields = error.fields if isinstance(error, ExecutionError) else {}
    kept = {key: value for key, value in fields.items() if key != "flight"}
    return {"kind": [kind.__name__ for kind in type(error).__mro__], "error": str(error), "fields": kept}


@pytest.mark.parametrize("strike", strikes(60 if FULL else 2, 5), ids=str)
def test_whoever_depends_on_the_lost_rank_names_it_in_time(strike: Strike) -> None:
    before = traces()
    outcomes = launch_outcomes(_struck, strike.ranks, (strike,), timeout=60)
    assert traces() == before
    cause = "gone" if strike.number == signal.SIGKILL else "stopped"
    for outcome in outcomes:
        if outcome.rank == strike.victim:
            assert outcome.signal == strike.number
            continue
        assert outcome.error is None, outcome.error
        answer = outcome.value
        assert answer["wrong"] == []
        assert {"PeerFailedError", "DistBackendError"} <= set(answer["kind"]), answer["error"]
        found = answer["fields"].get("root"), answer["fields"].get("cause")
        assert found == (strike.victim, cause), (answer["call"], answer["error"])
        assert answer["seconds"] < TIMEOUT
        assert f"rank {strike.victim} " in answer["next"]
        assert answer["again"] is True


def _late(rank: int) -> list[Any]:
    """Rank 2 never comes to the second call; the others have it in their flight records."""
    from commlib.torch_backend import flight_record

    group = _group(timeout=1.5)
    assert _reduced(group, 10, 0, False)
    if rank == 2:
        time.sleep(2.0)
        return ["", 0.0]
    begun = time.monotonic()
    with pytest.raises(dist.DistBackendError) as caught:
        _reduced(group, 10, 1, False)
    seconds, fields = time.monotonic() - begun, getattr(caught.value, "fields", {})
    shown = flight_record(group)
    assert [call.state for call in shown.calls] == ["done", "failed"]
    assert [call["collective"] for call in fields["flight"]] == [call.collective for call in shown.calls]
    return [str(caught.value), seconds]


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
        group = _group()
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
            assert seconds < 3.0
