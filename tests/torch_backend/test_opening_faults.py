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
from commlib.errors import PeerFailedError
from commlib.runtime import communicator, launch, launch_outcomes
from commlib.runtime.shm import near, rendezvous
from commlib.torch_backend import opening

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


def _open(rank: int, hosts: tuple[int, ...], transport: str = "auto") -> None:
    """A group on the launcher's store, under other keys than the launcher's."""
    os.environ["COMMLIB_HOST"] = str(hosts[rank])
    store = dist.distributed_c10d._get_default_store()  # type: ignore[attr-defined]
    dist.destroy_process_group()
    options = commlib.torch_backend.Options(transport=transport)
    keys, limit = dist.PrefixStore("again", store), timedelta(seconds=TIMEOUT)  # type: ignore[attr-defined]
    dist.init_process_group("commlib", store=keys, rank=rank, world_size=len(hosts), timeout=limit, pg_options=options)


def _struck_at(rank: int, stage: str, how: signal.Signals) -> tuple[str, float]:
    place, name, hosts = STAGES[stage]
    if rank == 1:
        setattr(place, name, lambda *_, **__: os.kill(os.getpid(), how))
    began = time.monotonic()
    with pytest.raises(PeerFailedError) as raised:
        _open(rank, hosts)
    assert isinstance(raised.value, dist.DistBackendError)
    return str(raised.value), time.monotonic() - began


def _check(text: str, how: signal.Signals) -> None:
    assert "rank 1 is gone" in text if how == signal.SIGKILL else "rank 1 stopped" in text, text


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_that_is_lost_while_a_group_opens_is_named_at_once(stage: str, how: signal.Signals) -> None:
    outcomes = launch_outcomes(_struck_at, 3, (stage, how), 60.0, None)
    assert outcomes[1].signal == how
    for rank in (0, 2):
        assert outcomes[rank].error is None, outcomes[rank].error
        text, seconds = outcomes[rank].value
        _check(text, how)
        assert seconds < TIMEOUT


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


@pytest.mark.parametrize("seed", range(20 if os.environ.get("COMMLIB_FULL") else 1))
def test_a_rank_that_is_lost_at_any_moment_of_opening_is_named(seed: int) -> None:
    draw = random.Random(seed)
    for hosts in (ONE_HOST, TWO_HOSTS, THREE_HOSTS):
        how, seconds = draw.choice([signal.SIGKILL, signal.SIGSTOP]), draw.uniform(0.0, 0.15)
        outcomes = launch_outcomes(_struck_in, 3, (hosts, how, seconds), 60.0, None)
        for rank in (0, 2):
            assert outcomes[rank].error is None, outcomes[rank].error
            text, waited = outcomes[rank].value
            _check(text, how)
            assert waited < TIMEOUT


def _all_are_in(rank: int) -> bool:
    store = dist.distributed_c10d._get_default_store()  # type: ignore[attr-defined]
    connect = opening.gloo_group

    def slow(*args: Any) -> Any:
        group = connect(*args)
        time.sleep(0.3 * rank)
        store.set(f"connected/{rank}", "")
        return group

    opening.gloo_group = slow
    _open(rank, ONE_HOST, "gloo")
    return bool(store.check([f"connected/{peer}" for peer in range(3)]))


def test_no_rank_leaves_before_gloo_has_connected_all() -> None:
    assert launch(_all_are_in, 3, (), 60.0) == [True] * 3
