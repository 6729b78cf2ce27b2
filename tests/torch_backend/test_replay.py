"""Remembered calls: found by calls that are the same, made only when it is their turn; in Python and in C alike."""

from __future__ import annotations

import gc
import threading
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from commlib.errors import DeadlineError
from commlib.runtime.shm.interface import RefusedError
from commlib.runtime.shm.load import load_native
from commlib.torch_backend.compat import OPTIONS_TELL
from commlib.torch_backend.replay import Replay, converted, key_of_one, key_of_two

KINDS = [Replay] + ([load_native().Replay] if load_native() is not None else [])
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__module__.rpartition(".")[2])


class Stage:
    """A Replay with what it looks at; ``made`` counts the calls."""

    def __init__(self, kind: Any) -> None:
        self.hot: dict[Any, Any] = {}
        self.worker = SimpleNamespace(submitted=7, ended=7)
        self.lock = threading.RLock()
        self.watched = False
        self.made = 0
        self.replay = kind(
            self.hot, self.worker, self.lock.acquire, self.lock.release, lambda: self.watched, RefusedError, converted
        )

    def call(self) -> None:
        """What is remembered."""
        assert self.lock._is_owned()  # type: ignore[attr-defined]
        self.made += 1


def options(op: Any = dist.ReduceOp.SUM, asynchronous: bool = False) -> Any:
    """Options of an allreduce; as ``TellingReplay`` hands them on where torch's own do not say who waits (2.6)."""
    made = dist.AllreduceOptions()
    made.reduceOp = op
    if not OPTIONS_TELL:
        return SimpleNamespace(reduceOp=made.reduceOp, asyncOp=asynchronous)
    made.asyncOp = asynchronous
    return made


def remembered(kind: Any, tensor: torch.Tensor) -> Stage:
    """A stage that knows an allreduce of this tensor."""
    stage = Stage(kind)
    stage.hot[key_of_one(tensor, options())] = stage.call
    return stage


@each_kind
def test_the_same_call_is_made_again(kind: Any) -> None:
    tensor = torch.zeros(6)
    stage = remembered(kind, tensor)
    assert stage.replay.one([tensor], options())
    assert stage.replay.one([tensor.view(2, 3)], options())
    assert (stage.made, stage.replay.calls) == (2, 2)
    assert not stage.lock._is_owned()  # type: ignore[attr-defined]


@each_kind
def test_other_calls_are_not_found(kind: Any) -> None:
    tensor = torch.zeros(6)
    stage = remembered(kind, tensor)
    others: list[Any] = [
        [tensor[:5]],
        [tensor[1:]],
        [tensor.view(torch.int32)],
        [torch._neg_view(tensor)],
        [tensor.view(2, 3).t()],
        [torch.zeros(6)],
        [tensor.to_sparse()],
        [torch.zeros(6, device="meta")],
        [tensor, tensor],
        [],
        [None],
        None,
        7,
    ]
    assert not any(stage.replay.one(tensors, options()) for tensors in others)
    assert not stage.replay.one([tensor], options(dist.ReduceOp.MAX))
    assert not stage.replay.one([tensor], options(asynchronous=True))
    assert not any(stage.replay.one([tensor], other) for other in (None, object(), dist.BarrierOptions()))
    assert (stage.made, stage.replay.calls) == (0, 0)


@each_kind
def test_two_tensors_and_the_option_that_matters(kind: Any) -> None:
    stage, out, given_ = Stage(kind), torch.zeros(4), torch.ones(2)
    rooted = dist.BroadcastOptions()
    rooted.rootRank, rooted.asyncOp = 3, False
    stage.hot[key_of_two("all_gather", out, given_, options(), None)] = stage.call
    stage.hot[key_of_two("reduce_scatter", given_, out, options(), "reduceOp")] = stage.call
    stage.hot[key_of_two("broadcast", out, out, rooted, "rootRank")] = stage.call
    replay = stage.replay
    assert replay.two("all_gather", out, given_, options(), None)
    assert replay.two("all_gather", out, given_, options(dist.ReduceOp.MAX), None)
    assert replay.two("reduce_scatter", given_, out, options(), "reduceOp")
    assert replay.two("broadcast", out, out, rooted, "rootRank")
    rooted.rootRank = 2
    assert not replay.two("broadcast", out, out, rooted, "rootRank")
    assert not replay.two("reduce_scatter", given_, out, options(dist.ReduceOp.MAX), "reduceOp")
    assert not replay.two("all_to_all", out, given_, options(), None)
    assert not replay.two("all_gather", given_, out, options(), None)
    assert not replay.two("all_gather", out, torch._neg_view(given_), options(), None)
    assert not replay.two("all_gather", torch._neg_view(out), given_, options(), None)
    assert not replay.two("all_gather", out, None, options(), None)
    assert stage.made == replay.calls == 4


@each_kind
def test_it_waits_for_its_turn(kind: Any) -> None:
    tensor = torch.zeros(6)
    stage = remembered(kind, tensor)
    stage.worker.submitted += 1
    assert not stage.replay.one([tensor], options())
    stage.worker.ended += 1
    stage.watched = True
    assert not stage.replay.one([tensor], options())
    stage.watched = False
    taken, free = threading.Event(), threading.Event()

    def hold() -> None:
        with stage.lock:
            taken.set()
            free.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(20)
    assert not stage.replay.one([tensor], options())
    free.set()
    holder.join(20)
    assert stage.replay.one([tensor], options())
    assert stage.made == 1


@each_kind
def test_a_refused_call_makes_all_be_forgotten(kind: Any) -> None:
    stage, tensor = Stage(kind), torch.zeros(6)

    def refuse() -> None:
        raise RefusedError("not any more")

    stage.hot[key_of_one(tensor, options())] = refuse
    assert not stage.replay.one([tensor], options())
    assert stage.hot == {}
    assert not stage.lock._is_owned()  # type: ignore[attr-defined]
    assert stage.replay.calls == 0


@each_kind
def test_errors_are_torch_errors_too_with_their_cause(kind: Any) -> None:
    stage, cause = Stage(kind), ValueError("why")

    def fail() -> None:
        raise DeadlineError("too late", rank=3) from cause

    with pytest.raises(dist.DistBackendError, match="too late") as caught:
        stage.replay.again(fail)
    assert isinstance(caught.value, DeadlineError)
    assert caught.value.__cause__ is cause
    assert not stage.lock._is_owned()  # type: ignore[attr-defined]
    assert stage.replay.calls == 0

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.replay.again(interrupt)
    assert not stage.lock._is_owned()  # type: ignore[attr-defined]


@each_kind
def test_an_error_of_what_it_looks_at_is_not_swallowed(kind: Any) -> None:
    class Tensor:
        def data_ptr(self) -> int:
            raise MemoryError

    with pytest.raises(MemoryError):
        Stage(kind).replay.one([Tensor()], options())


@each_kind
def test_a_call_may_forget_itself(kind: Any) -> None:
    stage, tensor = Stage(kind), torch.zeros(6)
    stage.hot[key_of_one(tensor, options())] = lambda: stage.hot.clear()
    assert stage.replay.one([tensor], options())
    assert stage.hot == {}


@each_kind
def test_it_is_collected_with_what_it_holds(kind: Any) -> None:
    class Call:
        def __call__(self) -> None:
            pass

    stage, call = Stage(kind), Call()
    stage.hot["cycle"], stage.hot["call"] = stage.replay, call
    gone = weakref.ref(call)
    del stage, call
    gc.collect()
    assert gone() is None


@given(st.data())
def test_python_and_native_agree(data: st.DataObject) -> None:
    base = torch.zeros(12)
    views = [base, base[:6], base[6:], base.view(3, 4).t(), base.view(torch.int32), torch._neg_view(base), base[::2]]
    stages = [remembered(kind, base[:6]) for kind in KINDS]
    for stage in stages:
        stage.hot[key_of_two("all_gather", base, base[6:], options(), None)] = stage.call
    made = options(data.draw(st.sampled_from([dist.ReduceOp.SUM, dist.ReduceOp.MIN])), data.draw(st.booleans()))
    first, second = (data.draw(st.sampled_from(views)) for _ in range(2))
    assert len({stage.replay.one([first], made) for stage in stages}) == 1
    assert len({stage.replay.two("all_gather", first, second, made, None) for stage in stages}) == 1
    assert len({stage.made for stage in stages}) == 1
