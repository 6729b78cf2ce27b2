"""Mixed calls in many groups, synchronous and not, messages among them: all exact, and nothing grows.

COMMLIB_FULL=1 makes 100000 calls on 8 ranks (half an hour at most); otherwise a sample.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from soak import plan, soak
from soak_calls import KINDS, Call

from commlib.runtime.tensors import DTYPES

FULL = bool(os.environ.get("COMMLIB_FULL"))
GROWTH = 32 << 10
"""KiB by which a process may grow after the first fifth: plans of calls are kept up to a number, and malloc keeps
what the largest calls took."""


def _check(found: list[dict[str, Any]]) -> None:
    for rank, soaked in enumerate(found):
        assert soaked["wrong"] == [], rank
        first, *rest = soaked["samples"][len(soaked["samples"]) // 5 :]
        for sample in rest:
            for name in ("descriptors", "threads", "tasks", "names"):
                assert sample[name] == first[name], (rank, name, soaked["samples"])
        for name in ("own", "shared"):
            assert rest[-1][name] - first[name] < GROWTH, (rank, name, soaked["samples"])


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


@pytest.mark.timeout(60)
def test_a_sample_of_mixed_calls() -> None:
    _check(soak(8, 100, 2, seed=3, life=400))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_a_sample_without_the_native_core_and_over_gloo(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMLIB_NATIVE", "0")
    _check(soak(3, 40, 2, seed=4, life=400, transport=transport))


@pytest.mark.skipif(not FULL, reason="takes up to half an hour: set COMMLIB_FULL=1")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("native", "calls"), [("1", 100_000), ("0", 5_000)])
def test_all_of_it(native: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMLIB_NATIVE", native)
    _check(soak(8, calls, 20, life=4000, limit=3400, timeout=120))
