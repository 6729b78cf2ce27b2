"""Which error ``launch`` raises when several ranks have one."""

import time

import pytest

from commlib.errors import CommlibError, DeadlineError, ExecutionError
from commlib.runtime import launch


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
        launch(_one_fails, 3, (failing,), timeout=6.0)


def _late(rank: int) -> None:
    if rank:
        raise DeadlineError("rank 1 has waited for a message of rank 0", rank=1)
    time.sleep(30)


@pytest.mark.timeout(40)
def test_what_a_rank_says_of_its_waiting_comes_before_what_the_launcher_saw():
    with pytest.raises(CommlibError, match="for a message of rank 0") as caught:
        launch(_late, 2, timeout=6.0)
    assert isinstance(caught.value, DeadlineError)
