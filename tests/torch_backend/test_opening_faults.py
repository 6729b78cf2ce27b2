"""Ranks that are killed or stopped, or that leave, while a group opens: the others are told at once who."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

import commlib.torch_backend
from commlib.errors import ExecutionError, PeerFailedError
from commlib.runtime import communicator, launch, launch_outcomes
from commlib.runtime.gloo_group import cloned, number_of
from commlib.runtime.shm import near, rendezvous
from commlib.torch_backend import opening
from commlib.torch_backend.messages import gloo_group
from commlib.torch_backend.request import Request

pytestmark = pytest.mark.timeout(120)
TIMEOUT = 8.0
ONE_HOST, TWO_HOSTS, THREE_HOSTS = (0, 0, 0), (0, 0, 1), (0, 1, 2)
STAGES: dict[str, tuple[Any, str, tuple[int, ...]]] = {
    "making a segment": (rendezvous, "_own", ONE_HOST),
    "mapping segments": (rendezvous, "_attach_all", ONE_HOST),
    "leaving the store": (rendezvous.Board, "leave_together", ONE_HOST),
    "connecting gloo": (opening, "gloo_group", TWO_HOSTS),
    "after gloo": (opening, "MessageRunner", THREE_HOSTS),
    "agreeing on hosts": (communicator.Communicator, "connect", THREE_HOSTS),
    "messages on a host": (near, "meet", TWO_HOSTS),
}
"""Where rank 1 is struck, and on which hosts the ranks are. Rank 0 hosts no store: the launcher does."""


FULL = bool(os.environ.get("COMMLIB_FULL"))
STRIKES = [(stage, signal.SIGKILL) for stage in STAGES]
STRIKES += [(stage, signal.SIGSTOP) for stage in (STAGES if FULL else ("mapping segments", "messages on a host"))]


def _open(rank: int, hosts: tuple[int, ...], transport: str = "auto") -> None:
    """A group on the launcher's store, under other keys than the launcher's."""
    os.environ["COMMLIB_HOST"] = str(hosts[rank])
    store = dist.distributed_c10d._get_default_store()  # type: ignore[attr-defined]
    dist.destroy_process_group()
    options = commlib.torch_backend.Options(transport=transport)
    keys, limit = dist.PrefixStore("again", store), timedelta(seconds=TIMEOUT)  # type: ignore[attr-defined]
    dist.init_process_group("commlib", store=keys, rank=rank, world_size=len(hosts), timeout=limit, pg_options=options)


def _strike(how: signal.Signals) -> None:
    """Nothing of this process goes on: a signal stops its threads one after the other."""
    os.kill(os.getpid(), how)
    time.sleep(60)


def _struck_at(rank: int, stage: str, how: signal.Signals, transport: str = "auto") -> tuple[str, float]:
    place, name, hosts = STAGES[stage]
    if rank == 1:
        setattr(place, name, lambda *_, **__: _strike(how))
    began = time.monotonic()
    with pytest.raises(PeerFailedError) as raised:
        _open(rank, hosts, transport)
    assert isinstance(raised.value, dist.DistBackendError)
    return str(raised.value), time.monotonic() - began


def _check(text: str, how: signal.Signals) -> None:
    assert "rank 1 is gone" in text if how == signal.SIGKILL else "rank 1 stopped" in text, text


@pytest.mark.parametrize(("stage", "how"), STRIKES)
def test_a_rank_that_is_lost_while_a_group_opens_is_named_at_once(stage: str, how: signal.Signals) -> None:
    _is_named(stage, how, "auto")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_lost_before_gloo_connects_is_named_at_once(how: signal.Signals) -> None:
    """With no meeting before."""
    _is_named("connecting gloo", how, "gloo")


def _is_named(stage: str, how: signal.Signals, transport: str) -> None:
    outcomes = launch_outcomes(_struck_at, 3, (stage, how, transport), 60.0, None)
    assert outcomes[1].signal == how
    for rank in (0, 2):
        assert outcomes[rank].error is None, outcomes[rank].error
        text, seconds = outcomes[rank].value
        _check(text, how)
        assert seconds < TIMEOUT


def _fails_at(rank: int, stage: str) -> tuple[str, bool]:
    """Rank 1 fails by itself, and its process ends; the others make a group without it then."""
    place, name, hosts = STAGES[stage]
    store = dist.distributed_c10d._get_default_store()  # type: ignore[attr-defined]
    if rank == 1:
        setattr(place, name, _fail)
        with pytest.raises(ValueError, match="no such thing"):
            _open(rank, hosts)
        return "", True
    with pytest.raises(PeerFailedError) as raised:
        _open(rank, hosts)
    if cloned(store) is None:  # gloo, which is left behind, holds the store then
        return str(raised.value), True
    again = opening.open_group(
        dist.PrefixStore("without 1", store),  # type: ignore[attr-defined]
        rank // 2,
        2,
        TIMEOUT,
        "again",
        commlib.torch_backend.Options(),
    )
    again.close()
    again.runner.close()
    return str(raised.value), True


def _fail(*_: object, **__: object) -> None:
    raise ValueError("no such thing")


@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_that_fails_tells_the_others_and_they_can_make_another_group(stage: str) -> None:
    if stage == "connecting gloo" and cloned(dist.HashStore()) is None:
        pytest.skip("nobody can ask the store while gloo waits there: torch 2.6 has one connection to it")
    began = time.monotonic()
    for text, made in launch(_fails_at, 3, (stage,), 60.0)[::2]:
        assert "rank 1 failed: no such thing" in text or "rank 1 closed" in text, text
        assert made
    assert time.monotonic() - began < TIMEOUT


def _never_comes(rank: int, transport: str) -> str:
    if rank == 1:
        return ""
    store, options = dist.distributed_c10d._get_default_store(), commlib.torch_backend.Options(transport=transport)  # type: ignore[attr-defined]
    keys = dist.PrefixStore("again", store)  # type: ignore[attr-defined]
    with pytest.raises(ExecutionError) as raised:
        opening.open_group(keys, rank, 3, 2.0, "test", options)
    return str(raised.value)


@pytest.mark.parametrize("transport", ["auto", "gloo"])
def test_a_rank_that_never_comes_is_named(transport: str) -> None:
    for text in launch(_never_comes, 3, (transport,), 60.0)[::2]:
        assert "rank(s) 1 did not come" in text


def _struck_in(rank: int, hosts: tuple[int, ...], how: signal.Signals, seconds: float) -> tuple[str, float]:
    """Rank 1 is struck so many seconds after it has shown that it is there: about as many as opening takes."""
    if rank == 1:
        attendance, timer = opening.Attendance, threading.Timer(seconds, os.kill, (os.getpid(), how))
        opening.Attendance = lambda *given: (attendance(*given), timer.start())[0]  # type: ignore[misc, assignment]
    begun = [time.monotonic()]
    with pytest.raises(PeerFailedError) as raised:
        _open_and_call(rank, hosts, begun)
    return str(raised.value), time.monotonic() - begun[-1]


def _open_and_call(rank: int, hosts: tuple[int, ...], begun: list[float]) -> None:
    _open(rank, hosts)
    while True:
        begun.append(time.monotonic())
        dist.all_reduce(torch.ones(1))


@pytest.mark.parametrize("seed", range(60 if FULL else 2))
def test_a_rank_that_is_lost_at_any_moment_of_opening_is_named(seed: int) -> None:
    draw, hosts = random.Random(seed), (ONE_HOST, TWO_HOSTS, THREE_HOSTS)[seed % 3]
    how, seconds = draw.choice([signal.SIGKILL, signal.SIGSTOP]), draw.uniform(0.0, 0.15)
    outcomes = launch_outcomes(_struck_in, 3, (hosts, how, seconds), 60.0, None)
    for rank in (0, 2):
        assert outcomes[rank].error is None, outcomes[rank].error
        text, waited = outcomes[rank].value
        _check(text, how)
        assert waited < TIMEOUT


def _host_is_struck(rank: int, how: signal.Signals) -> str:
    """Rank 0 hosts the store of the group, and is struck while the others wait for it."""
    world, port = dist.distributed_c10d._get_default_store(), 0  # type: ignore[attr-defined]
    limit = timedelta(seconds=60)
    if rank == 0:
        own = dist.TCPStore("127.0.0.1", 0, None, True, limit, wait_for_workers=False)  # type: ignore[attr-defined]
        world.set("port", str(own.port))
        rendezvous._own = lambda *_: _strike(how)  # type: ignore[assignment]
    else:
        port = int(world.get("port"))
        own = dist.TCPStore("127.0.0.1", port, None, False, limit, wait_for_workers=False)  # type: ignore[attr-defined]
    world.set(f"has connected/{rank}", "")
    world.wait([f"has connected/{peer}" for peer in range(3)])
    with pytest.raises(ExecutionError) as raised:
        opening.open_group(own, rank, 3, 3.0, "test", commlib.torch_backend.Options())
    assert isinstance(raised.value, dist.DistBackendError)
    return str(raised.value)


def test_the_store_goes_with_the_rank_that_hosts_it() -> None:
    for outcome in launch_outcomes(_host_is_struck, 3, (signal.SIGKILL,), 60.0, None)[1:]:
        assert outcome.error is None, outcome.error
        assert "the group's store was lost" in outcome.value


def test_a_store_whose_host_is_stopped_keeps_nobody_beyond_the_deadline() -> None:
    began = time.monotonic()
    for outcome in launch_outcomes(_host_is_struck, 3, (signal.SIGSTOP,), 60.0, None)[1:]:
        assert outcome.error is None, outcome.error
        assert "the group's store does not answer: has the process that hosts it" in outcome.value
    assert time.monotonic() - began < 30


def _all_are_in(rank: int) -> list[bool]:
    """Whether gloo has connected all when this rank goes on after that; and whether nothing is left in the store."""
    store, found = dist.distributed_c10d._get_default_store(), list[bool]()  # type: ignore[attr-defined]
    connect, goes_on = opening.gloo_group, opening.MessageRunner

    def slow(*args: Any) -> Any:
        group = connect(*args)
        time.sleep(0.3 * rank)
        store.set(f"connected/{rank}", "")
        return group

    def look(*args: Any) -> Any:
        found.append(store.check([f"connected/{peer}" for peer in range(3)]))
        return goes_on(*args)

    opening.gloo_group, opening.MessageRunner = slow, look  # type: ignore[assignment, misc]
    keys = dist.PrefixStore("again", store)  # type: ignore[attr-defined]
    opened = opening.open_group(keys, rank, 3, TIMEOUT, "test", commlib.torch_backend.Options(transport="gloo"))
    found.append(not keys.check([f"commlib/1/process/{rank}"]))
    opened.close()
    opened.runner.close()
    return found


def test_no_rank_goes_on_before_gloo_has_connected_all() -> None:
    assert launch(_all_are_in, 3, (), 60.0) == [[True, True]] * 3


def test_of_a_group_that_the_backend_makes_all_ranks_count_communicators_alike() -> None:
    """By its name each rank would count those of earlier groups, too."""
    groups = [gloo_group(dist.HashStore(), 0, 1, 5.0, "same") for _ in range(2)]
    assert [number_of(group) for group in groups + groups] == [0] * 4


class _InPython(dist.Store):
    """A store that somebody wrote in Python; it cannot be cloned."""

    def __init__(self, store: Any) -> None:
        super().__init__()
        self._store = store

    def set_timeout(self, _timeout: timedelta) -> None:
        """Waits have their own."""


def _passed_on(name: str) -> Any:
    return lambda self, *given: getattr(self._store, name)(*given)


for _name in ("set", "get", "add", "check", "wait", "delete_key", "compare_set"):
    setattr(_InPython, _name, _passed_on(_name))  # the class must have them


def _opens_with_a_store_in_python(rank: int, transport: str) -> float:
    store = dist.PrefixStore("again", dist.distributed_c10d._get_default_store())  # type: ignore[attr-defined]
    assert cloned(_InPython(store)) is None
    options = commlib.torch_backend.Options(transport=transport)
    opened = opening.open_group(_InPython(store), rank, 2, TIMEOUT, "test", options)
    line = torch.full((3,), rank + 1.0)
    opened.runner.run(opened.runner.prepare(Request("allreduce", 3, torch.float32, "sum")), line, line, None, TIMEOUT)
    opened.close()
    opened.runner.close()
    return float(line.sum())


@pytest.mark.parametrize("transport", ["auto", "gloo"])
def test_a_store_may_be_written_in_python(transport: str) -> None:
    assert launch(_opens_with_a_store_in_python, 2, (transport,), 60.0) == [9.0, 9.0]
