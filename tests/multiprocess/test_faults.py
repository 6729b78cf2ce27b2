"""Ranks that are killed, stopped, late or absent: the others end in time with an error that names the root cause."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from beginning import ScriptForAll, come, meet, wait_for
from runtime_algorithms import allpairs_allreduce, chain, ring_allreduce
from timely import timely, wait_until, wait_until_gone

from commlib.errors import CommlibError, DeadlineError, ExecutionError, PeerFailedError
from commlib.ir.algorithm import Algorithm
from commlib.runtime import Communicator, Fault, FaultScript, RankOutcome, launch, launch_outcomes, simulate_run

TIMEOUT = 6.0
TWO_BEATS = 1.2
"""Seconds after which a rank has heard of a cause that another published."""
ALGORITHMS = {"ring": ring_allreduce(4), "allpairs": allpairs_allreduce(4), "chain": chain("broadcast", 4, 3)}
FULL = bool(os.environ.get("COMMLIB_FULL"))
STEPS = range(13) if FULL else (0, 2, 5)


def _inputs(algorithm: Algorithm, rank: int) -> torch.Tensor:
    return torch.arange(24) + rank if algorithm.collective.input_chunks(rank) else torch.zeros(0, dtype=torch.int64)


def _struck(rank: int, name: str, fault: Fault) -> dict[str, Any]:
    """Run under a fault; what this rank got, how long it took, and what its next call says."""
    algorithm = ALGORITHMS[name]
    transport = "auto" if fault.step % 2 else "gloo"
    comm = Communicator(timeout=TIMEOUT, hook=ScriptForAll(rank, 4, fault), transport=transport)
    start, answer = time.monotonic(), dict[str, Any]()
    try:
        answer["output"] = comm.run(algorithm, _inputs(algorithm, rank), in_place=False, elements=24)
    except ExecutionError as error:
        answer["error"], answer["fields"] = str(error), {key: str(value) for key, value in error.fields.items()}
    answer["seconds"] = time.monotonic() - start
    comm.hook = None
    time.sleep(TWO_BEATS)
    try:
        comm.run(algorithm, _inputs(algorithm, rank), in_place=False, elements=24)
    except ExecutionError as error:
        answer["next"] = str(error)
    return answer


def _traces() -> set[str]:
    """Children of this process, entries of /dev/shm, and the session's listening TCP ports."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    sockets = {os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink() and entry.exists()}
    return {*children, *os.listdir("/dev/shm"), *(name for name in sockets if name.startswith("socket:"))}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("action", ["kill", "stop"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_others_end_in_time_and_name_the_rank(name: str, action: str, step: int) -> None:
    before, algorithm = _traces(), ALGORITHMS[name]
    victim = (step + len(name)) % 4
    fault = Fault(victim, step, action)  # type: ignore[arg-type]
    outcomes = launch_outcomes(_struck, 4, (name, fault), timeout=30)
    wait_until_gone(_traces, before)
    inputs = [_inputs(algorithm, rank).numpy() for rank in range(4)]
    expected = simulate_run(algorithm, inputs, elements=24)
    struck = outcomes[victim].signal is not None
    assert struck == (step < int((algorithm.step_rank == victim).sum()))
    for outcome in outcomes:
        if outcome.rank != victim or not struck:
            _check(outcome, victim, struck, expected.outputs[outcome.rank])


def _check(outcome: RankOutcome, victim: int, struck: bool, expected: Any) -> None:
    assert outcome.error is None, outcome.error
    answer = outcome.value
    assert answer["seconds"] < TIMEOUT
    if "output" in answer:
        assert answer["output"].tolist() == expected.tolist()
    else:
        assert f"rank {outcome.rank} threadblock " in answer["error"]
        assert {"rank", "peer", "channel", "threadblock", "step"} <= set(answer["fields"])
        assert answer["fields"]["root"] == str(victim), answer["error"]
        assert f"rank {victim} " in answer["error"].split(": ", 1)[1]
    assert not struck or "output" in answer or "failed before call 2" in answer["next"]
    assert struck or "next" not in answer


def _absent(rank: int) -> str:
    """Rank 2 stays away from the second call until the others, who begin it together, have given up."""
    comm, others = Communicator(timeout=2.5), (0, 1, 3)
    comm.run(ring_allreduce(4), torch.ones(8), timeout=30.0)
    if rank == 2:
        wait_for("gave up", others)
        return "absent"
    meet("second call", rank, others)
    try:
        comm.run(ring_allreduce(4), torch.ones(8))
    except ExecutionError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        come("gave up", rank)
    return "done"


@timely
def test_a_rank_that_never_comes_is_named() -> None:
    found = launch(_absent, 4, timeout=30)
    for rank in (0, 1, 3):
        assert f"PeerFailedError: rank {rank} threadblock 0 step " in found[rank]
        assert "rank 2 never came to call 2: it is alive, and its last call was 1" in found[rank]


def _gone(rank: int) -> str:
    comm = Communicator(timeout=20)
    if rank == 3:
        comm.close()
        return "closed"
    with pytest.raises(ExecutionError) as caught:
        comm.run(ring_allreduce(4), torch.ones(8))
    return str(caught.value)


def test_a_rank_that_closed_is_named() -> None:
    found = launch(_gone, 4, timeout=30)
    assert all("rank 3 closed its communicator after call 0" in found[rank] for rank in range(3))


def _slow(rank: int) -> float:
    comm = Communicator(timeout=20, hook=FaultScript(rank, (Fault(1, 3, "delay", 1.5),)))
    return float(comm.run(ring_allreduce(4), torch.ones(8), in_place=False).sum())


def test_a_slow_rank_is_waited_for() -> None:
    assert launch(_slow, 4, timeout=30) == [32.0] * 4


def _holds_the_lock(rank: int) -> float:
    """Rank 1 computes in Python for longer than 0.3 of the timeout, and shows no sign of life meanwhile."""
    comm = Communicator(timeout=9)
    comm.run(ring_allreduce(4), torch.ones(8))
    if rank == 1:
        held = sys.getswitchinterval()
        sys.setswitchinterval(30.0)
        end = time.monotonic() + 3.0
        while time.monotonic() < end:
            pass
        sys.setswitchinterval(held)
    return float(comm.run(ring_allreduce(4), torch.ones(8), in_place=False).sum())


def test_a_rank_that_holds_pythons_lock_is_waited_for() -> None:
    assert launch(_holds_the_lock, 4, timeout=30) == [32.0] * 4


def _in_a_second(rank: int, action: str) -> list[Any]:
    comm, ring, others = Communicator(timeout=1), ring_allreduce(4), (0, 1, 3)
    comm.run(ring, torch.ones(8), timeout=20.0)
    if rank == 2:
        if action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        wait_for("gave up", others)
        return []
    meet("second call", rank, others)
    start, text = time.monotonic(), "done"
    try:
        comm.run(ring, torch.ones(8))
    except ExecutionError as error:
        text = str(error)
    seconds = time.monotonic() - start
    come("gave up", rank)
    return [text, seconds]


@pytest.mark.parametrize(("action", "wanted"), [("stop", "rank 2 stopped"), ("absent", "rank 2 never came to call 2")])
@timely
def test_short_timeouts_end_in_time_and_name_the_rank(action: str, wanted: str) -> None:
    for outcome in launch_outcomes(_in_a_second, 4, (action,), timeout=20):
        if outcome.rank != 2:
            assert outcome.error is None, outcome.error
            text, seconds = outcome.value
            assert wanted in text
            assert seconds < 1.0


def _raising(rank: int) -> str:
    comm = Communicator(timeout=5, hook=FaultScript(rank, (Fault(1, 2, "raise"),)))
    with pytest.raises(ExecutionError) as caught:
        comm.run(ring_allreduce(4), torch.ones(8), in_place=False)
    return str(caught.value)


def test_a_rank_that_raises_tells_the_others() -> None:
    found = launch(_raising, 4, timeout=30)
    assert all("rank 1 threadblock 0 step 2 tile 0: the scripted failure" in text for text in found)


def _done_early(rank: int) -> list[Any]:
    """The root of a broadcast has its result before the last rank of the chain fails: that waits for the first two to
    be done. The third then waits for room for its last message, and sees the last one go."""

    def fails(*_: int) -> None:
        wait_for("done", (0, 1))
        os.kill(os.getpid(), signal.SIGKILL)

    comm = Communicator(timeout=30, hook=fails if rank == 3 else None, transport="gloo", fifo_depth=2)
    algorithm = ALGORITHMS["chain"]
    output = comm.run(algorithm, _inputs(algorithm, rank), in_place=False, elements=24)
    come("done", rank)
    wait_until(lambda: comm.monitor.cause)
    with pytest.raises(PeerFailedError, match="rank 3 is gone"):
        comm.run(algorithm, _inputs(algorithm, rank), in_place=False, elements=24)
    return output.tolist()


def test_a_rank_that_was_done_keeps_its_result_and_fails_next_time() -> None:
    outcomes = launch_outcomes(_done_early, 4, timeout=30)
    assert outcomes[0].value == list(range(24))
    assert outcomes[1].value == list(range(24))
    assert outcomes[3].signal == signal.SIGKILL


def _forever(rank: int) -> None:
    time.sleep(60 if rank == 1 else 0)


def test_the_launcher_ends_a_rank_that_is_late() -> None:
    before = _traces()
    start = time.monotonic()
    with pytest.raises(DeadlineError, match=r"rank 1 was not done after 5.0 s"):
        launch(_forever, 2, timeout=5.0)  # in which both must have come so far
    assert time.monotonic() - start < 20
    wait_until_gone(_traces, before)


def _unpackable(_rank: int) -> object:
    return object()


def test_a_value_that_cannot_be_sent_is_an_error() -> None:
    with pytest.raises(CommlibError, match="not JSON serializable"):
        launch(_unpackable, 1, timeout=20)


LAUNCH_AND_WAIT = """
import os, time
from commlib.runtime import launch
def stay(rank):
    os.write(1, b"here\\n")
    time.sleep(30)
launch(stay, 2, timeout=20)
"""


def test_ranks_die_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "stays.py"
    script.write_text(LAUNCH_AND_WAIT)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert [launcher.stdout.readline() for _ in range(2)] == ["here\n"] * 2
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        assert len(children) == 2
        launcher.kill()
    wait_until(lambda: not any(_lives(child) for child in children))


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
