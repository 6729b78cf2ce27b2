"""Which error ``launch`` raises when several ranks have one."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import numpy as np
import pytest
import torch.distributed as dist

from commlib.errors import CommlibError, DeadlineError, ExecutionError
from commlib.runtime import launch, launch_outcomes


def _one_fails(rank: int, failing: int) -> None:
    """One rank raises outside of a call; the others wait for it, some longer than they may."""
    if rank == failing:
        raise ValueError("the real reason")
    if rank == (failing + 1) % 3:
        raise DeadlineError(f"rank {rank} has waited in vain", rank=rank)
    time.sleep(30)


@pytest.mark.parametrize("failing", [2, 1])
@pytest.mark.timeout(40)
def test_the_real_reason_comes_before_those_who_waited_in_vain(failing):
    with pytest.raises(ExecutionError, match="the real reason"):
        launch(_one_fails, 3, (failing,), timeout=30.0, grace=1.0)


def _late(rank: int) -> None:
    if rank:
        raise DeadlineError("rank 1 has waited for a message of rank 0", rank=1)
    time.sleep(30)


@pytest.mark.timeout(40)
def test_what_a_rank_says_of_its_waiting_comes_before_what_the_launcher_saw():
    with pytest.raises(CommlibError, match="for a message of rank 0") as caught:
        launch(_late, 2, timeout=5.0)
    assert isinstance(caught.value, DeadlineError)


def _one_ends(rank: int, how: str) -> int:
    if rank == 1:
        time.sleep(0.5)  # so that rank 2 has said what it says; it has until the grace ends
    if rank == 1 and how == "raises":
        raise ValueError("the real reason")
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 2:
        raise DeadlineError("rank 2 has waited in vain", rank=2)
    time.sleep(30 if rank == 0 else 0)
    return rank


@pytest.mark.parametrize(("how", "why"), [("raises", "the real reason"), ("dies", "killed by SIGKILL")])
@pytest.mark.timeout(40)
def test_ranks_that_do_not_end_when_one_has_failed_are_killed(how, why):
    began = time.monotonic()
    with pytest.raises(ExecutionError, match=rf"{why}.*\(still running, and killed: rank 0, 3\)") as caught:
        launch(_and_another, 4, (how,), timeout=25.0, grace=2.5)
    assert time.monotonic() - began < 12
    assert caught.value.fields["running"] == [0, 3]


def _and_another(rank: int, how: str) -> int:
    return _one_ends(0 if rank == 3 else rank, how)


_joined: list[float] = []


def _begins(_rank: int) -> list[float]:
    return [*_joined, time.monotonic()]


@pytest.mark.timeout(40)
def test_no_rank_begins_before_all_are_in_the_group(monkeypatch):
    """It might die at once, and gloo fail in those that are still to connect to it."""
    begin = dist.init_process_group

    def late(*args, rank, **options):
        begin(*args, rank=rank, **options)
        time.sleep(0.0 if rank else 0.5)
        _joined.append(time.monotonic())

    monkeypatch.setattr(dist, "init_process_group", late)  # the ranks are forks of this process
    times = launch(_begins, 2, (), 20.0)
    assert max(joined for joined, _ in times) <= min(begun for _, begun in times)


def _two_fail(rank: int) -> int:
    if rank < 2:
        time.sleep(rank * 1.0)
        raise ValueError(f"reason {rank}")
    time.sleep(1.5)
    return rank


@pytest.mark.timeout(40)
def test_within_the_grace_every_rank_has_its_say():
    outcomes = launch_outcomes(_two_fail, 3, (), 20.0, 5.0)
    assert [str(outcome.error).split(" (")[0] for outcome in outcomes[:2]] == [
        f"rank {n}: ValueError: reason {n}" for n in (0, 1)
    ]
    assert (outcomes[2].value, outcomes[2].late) == (2, False)


@pytest.mark.timeout(40)
def test_without_a_grace_ranks_have_their_time():
    outcomes = launch_outcomes(_slow, 2, (), 20.0)
    assert (outcomes[0].value, outcomes[1].error is None) == (0, False)


def _slow(rank: int) -> int:
    if rank:
        raise ValueError("at once")
    time.sleep(1.0)
    return rank


class _Halting:
    """A way back to the launcher on which a rank is stopped when it has written half of its result."""

    def __init__(self, descriptor: int, _mode: str) -> None:
        self.descriptor = descriptor

    def __enter__(self) -> _Halting:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def write(self, data: bytes) -> None:
        os.write(self.descriptor, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGSTOP)


def _stops_while_it_reports(rank: int) -> list[int]:
    if rank == 1:
        os.fdopen = _Halting
    return [rank] * 3000


@pytest.mark.timeout(40)
def test_a_rank_that_is_stopped_while_it_reports_holds_nobody_up():
    outcomes = launch_outcomes(_stops_while_it_reports, 2, (), 30.0)
    assert outcomes[0].value == [0] * 3000
    assert (outcomes[1].signal, str(outcomes[1].error)) == (signal.SIGSTOP, "rank 1 was stopped by a signal")


def _hangs_up(rank: int) -> int:
    if rank == 1:
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}").startswith("pipe:"):
                    os.close(int(name))
        time.sleep(30)
    return rank


@pytest.mark.timeout(40)
def test_a_rank_that_closes_its_way_back_is_ended():
    outcomes = launch_outcomes(_hangs_up, 2, (), 30.0)
    assert (outcomes[0].value, outcomes[1].signal) == (0, signal.SIGKILL)
    assert "rank 1 closed its way back to the launcher, ran on, and was killed" in str(outcomes[1].error)


def test_large_values_come_whole():
    values = launch(_large, 2)
    assert [int(value.sum()) for value in values] == [0, 300_000]


def _large(rank: int) -> np.ndarray:
    return np.full(300_000, rank)
