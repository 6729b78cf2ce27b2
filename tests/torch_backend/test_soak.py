"""Mixed calls in many groups, synchronous and not, messages among them: all exact, and nothing grows.

COMMLIB_FULL=1 makes 100000 calls on 8 ranks (half an hour at most), and fewer without the native core; otherwise a
sample. With ``pytest -o junit_family=xunit1 --junitxml FILE`` the file has what each rank used on the way (the property
``samples``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from backend_ranks import run_on
from soak import plan, soak
from soak_calls import KINDS, Call
from soak_usage import STEADY, usage, usage_since

from commlib.runtime.tensors import DTYPES

Record = Callable[[str, object], None]
FULL = bool(os.environ.get("COMMLIB_FULL"))
GROWTH = {"own": 12 << 10, "live": 6 << 10, "shared": 4 << 10, "blocks": 40_000}
"""KiB (and blocks of Python) by which a process may grow after the first fifth: then the world keeps as many plans of
calls as it does in the end, and its segments are in use up to their ends. In 100000 calls a leak of 80 bytes a call is
found, or of half an object."""


def _check(found: list[dict[str, Any]], record: Record, native: bool = True) -> None:
    """``live`` of the Python path counts memory that is never touched, and levels off later than what is."""
    record("samples", json.dumps([soaked["samples"] for soaked in found]))
    for rank, soaked in enumerate(found):
        assert soaked["wrong"] == [], rank
        first, *rest = soaked["samples"][len(soaked["samples"]) // 5 :]
        for sample, before in zip(rest, soaked["samples"][len(soaked["samples"]) // 5 :], strict=False):
            more = [name for name in STEADY if sample[name] > before[name]]
            assert more == [], (rank, sample, before)
        for name, most in GROWTH.items() if native else (("own", GROWTH["own"]), ("shared", GROWTH["shared"])):
            assert rest[-1][name] - first[name] < most, (rank, name, [one[name] for one in soaked["samples"]])


def test_a_plan_has_every_kind_type_and_group_size() -> None:
    calls = [call for step in plan(1, 8, 4000, 2) if isinstance(step, tuple) for call in step]
    assert len(calls) >= 4000
    assert calls[:50] == [c for step in plan(1, 8, 4000, 2) if isinstance(step, tuple) for c in step][:50]
    assert {call.kind for call in calls} == set(KINDS)
    assert {call.dtype for call in calls} == set(DTYPES.values())
    assert {len(call.members) for call in calls} == set(range(1, 9))
    assert {call.asynchronous for call in calls} == {call.kept for call in calls} == {False, True}
    assert {0, 1} < {call.size for call in calls}
    assert max(_bytes(call) for call in calls) > 1 << 20


def _bytes(call: Call) -> int:
    return call.size * call.dtype.itemsize


@pytest.mark.timeout(180)
def test_a_sample_of_mixed_calls(record_property: Record) -> None:
    _check(soak(5, 60, 2, seed=3, life=200), record_property)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_a_sample_without_the_native_core_and_over_gloo(
    transport: str, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    monkeypatch.setenv("COMMLIB_NATIVE", "0")
    _check(soak(3, 40, 2, seed=4, life=400, transport=transport), record_property)


@pytest.mark.skipif(not FULL, reason="takes up to half an hour: set COMMLIB_FULL=1")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("native", "ranks", "calls"), [("1", 8, 100_000), ("0", 3, 16_000)])
def test_all_of_it(
    native: str, ranks: int, calls: int, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    monkeypatch.setenv("COMMLIB_NATIVE", native)
    _check(soak(ranks, calls, 20, life=4000, limit=3400, timeout=120), record_property, native == "1")


def _repeat(kind: str, number: int, tensor: torch.Tensor) -> None:
    """One call of two ranks, the same each time but for what must not be kept."""
    other = 1 - dist.get_rank()
    if kind == "synchronous":
        dist.all_reduce(tensor)
    elif kind == "asynchronous":
        dist.all_reduce(tensor, async_op=True).wait()
    elif kind == "future":
        dist.all_reduce(tensor, async_op=True).get_future().wait()
    elif kind == "message":
        work = dist.irecv(tensor, other, tag=number)
        dist.isend(torch.ones(10), other, tag=number).wait()
        work.wait()
    elif kind == "object":
        dist.all_gather_object([None, None], number % 100)  # pickled, all of one size
    elif kind == "size":
        dist.all_reduce(torch.ones(1 + number))
    elif kind == "group":
        group = dist.new_group([0, 1])
        dist.all_reduce(tensor, group=group, async_op=True).wait()
        dist.destroy_process_group(group)


REPEATED = {
    **dict.fromkeys(("synchronous", "asynchronous", "future", "message"), (200, 500, 0.7, 100)),
    "object": (400, 400, 0.7, 100),
    "group": (2, 24, 50, 4000),
    **({"size": (2000, 6000, 4, 100)} if FULL else {}),
}
"""Of each kind: calls before, calls, and Python's blocks and the bytes that each of these may leave behind. A new size
takes some 50 blocks as long as it is remembered, and up to 1024 are; torch remembers the names of groups."""


def _grown(rank: int) -> dict[str, list[float]]:  # noqa: ARG001
    found = {}
    for kind, (before, calls, *_) in REPEATED.items():
        tensor = torch.ones(10)
        for number in range(before):
            _repeat(kind, number, tensor)
        first = usage()
        for number in range(before, before + calls):
            _repeat(kind, number, tensor)
        last = usage_since(first)
        found[kind] = [(last["blocks"] - first["blocks"]) / calls, 1024 * (last["live"] - first["live"]) / calls]
        assert [name for name in STEADY if last[name] > first[name]] == [], kind
    return found


@pytest.mark.timeout(180)
def test_calls_leave_nothing_behind() -> None:
    for grown in run_on(2, _grown):
        for kind, (blocks, live) in grown.items():
            assert blocks < REPEATED[kind][2], grown
            assert live < REPEATED[kind][3], grown
