"""Ranks of shared-memory sessions that are killed, stopped, late or absent: the others end in time and say why.

COMMLIB_FULL=1 strikes 200 times; otherwise a few.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from beginning import come, meet, wait_for
from fault_campaign import TIMEOUT, Strike, call_once, calls, programs, store, strikes, struck, traces
from timely import timely, wait_until, wait_until_gone

from commlib.collectives import Buffer, Placement
from commlib.errors import ExecutionError, MismatchError, PeerFailedError
from commlib.ir.algorithm import Algorithm
from commlib.runtime import Fault, FaultScript, RankOutcome, launch, launch_outcomes, simulate_run
from commlib.runtime.liveness import process_condition, start_time
from commlib.runtime.shm.session import Prepared, ShmOptions, ShmSession
from commlib.runtime.shm.views import read_view

FULL = bool(os.environ.get("COMMLIB_FULL"))
RANKS = 4
CORES = [True, False]
SOME = CORES if FULL else [True]


@pytest.mark.parametrize("strike", strikes(200 if FULL else 4, 4), ids=str)
def test_whoever_depends_on_the_lost_rank_names_it_in_time(strike: Strike) -> None:
    before = traces()
    outcomes = launch_outcomes(struck, strike.ranks, (strike,), timeout=40)
    wait_until_gone(traces, before)
    for outcome in outcomes:
        if outcome.rank == strike.victim:
            assert outcome.signal == strike.number
        else:
            _check_survivor(outcome, strike)


def _check_survivor(outcome: RankOutcome, strike: Strike) -> None:
    assert outcome.error is None, outcome.error
    answer = outcome.value
    assert answer["wrong"] == []
    assert answer["kind"] == "PeerFailedError", answer["error"]
    assert answer["seconds"] < TIMEOUT
    fields, cause = answer["fields"], "gone" if strike.number == signal.SIGKILL else "stopped"
    assert (fields["root"], fields["cause"], fields["rank"]) == (strike.victim, cause, outcome.rank), answer["error"]
    assert fields["call"] == answer["call"] + 1
    assert f"rank {strike.victim} " in answer["error"]
    assert f"rank {strike.victim} " in answer["next"]
    assert "this group has failed before call" in answer["next"]
    assert answer["again"] is True


def _named(name: str, ranks: int = RANKS) -> Algorithm:
    return next(algorithm for algorithm in programs(ranks) if algorithm.name == name)


def _prepared(session: ShmSession, name: str, elements: int = 24, dtype: torch.dtype = torch.int64) -> Prepared:
    algorithm = _named(name)
    return session.prepare(algorithm, Placement.OUT, elements, dtype, "sum" if algorithm.collective.reduces else None)


def _open(name: str, rank: int, native: bool, timeout: float = 10.0, slice_seconds: float = 0.02) -> ShmSession:
    options = ShmOptions(lane_bytes=1 << 20, native=native, slice_seconds=slice_seconds)
    return ShmSession.open(store(name), rank, RANKS, options, timeout)


def _at(session: ShmSession, fault: Fault) -> Callable[[int, int, int], None]:
    """A trace hook: the fault's action when the rank comes to that step (steps may be joined) or a later one, and all
    are in the first call: who came to it later would be refused."""
    rank = session.rank
    script = FaultScript(rank, (Fault(fault.rank, 0, fault.action, fault.seconds),))

    def hook(threadblock: int, step: int, tile: int) -> None:
        if rank == fault.rank and step >= fault.step and script.steps == 0:
            wait_until(lambda: all_in(session, 1))
            script(threadblock, step, tile)

    return hook


def all_in(session: ShmSession, call: int) -> bool:
    """Whether the other ranks have all begun a call."""
    ranks = (rank for rank in range(RANKS) if rank != session.rank)
    return all(read_view(session.watch._controls[rank]).entered >= call for rank in ranks)


def _struck_at(rank: int, name: str, fault: Fault, native: bool) -> dict[str, Any]:
    session = _open("session", rank, native)
    prepared = _prepared(session, name)
    session.context.trace = _at(session, fault)
    answer: dict[str, Any] = {}
    try:
        answer["right"] = call_once(session, prepared, 0, 5.0)
    except PeerFailedError as error:
        answer["fields"] = {key: error.fields[key] for key in ("root", "cause", "call", "collective", "peer", "step")}
    session.context.trace = None
    time.sleep(0.8)
    with pytest.raises(PeerFailedError) as caught:
        calls(session, prepared, range(1, 4), 5.0)
    answer["next"] = str(caught.value)
    return answer


STEPS = [
    (name, victim, step)
    for name, victim, steps in (
        ("one_shot_allreduce", 1, range(8)),
        ("staged_allreduce", 2, range(19)),
        ("staged_broadcast", 0, range(5)),
        ("staged_broadcast", 3, range(2)),
        ("chain_broadcast", 2, range(3)),
        ("ring_allreduce", 3, range(7)),
    )
    for step in (steps if FULL else (len(steps) // 2,))
]


@pytest.mark.parametrize(("name", "victim", "step"), STEPS)
def test_whoever_does_not_depend_on_the_lost_rank_gets_its_right_result(name: str, victim: int, step: int) -> None:
    algorithm, fault = _named(name), Fault(victim, step, "kill")
    outcomes = launch_outcomes(_struck_at, RANKS, (name, fault, (victim + step) % 2 == 0), timeout=40)
    given = [torch.zeros(24 if algorithm.collective.input_chunks(rank) else 0).numpy() for rank in range(RANKS)]
    simulated = simulate_run(algorithm, given, elements=24, faults=(fault,))
    assert outcomes[victim].signal == signal.SIGKILL
    for outcome, error in zip(outcomes, simulated.errors, strict=True):
        if outcome.rank != victim:
            assert outcome.error is None, outcome.error
            assert f"rank {victim} is gone" in outcome.value["next"]
            assert ("fields" in outcome.value) == (error is not None), (outcome, error)
            _check_step(outcome.value, algorithm, victim)


def _check_step(answer: dict[str, Any], algorithm: Algorithm, victim: int) -> None:
    if "fields" in answer:
        fields = answer["fields"]
        assert (fields["root"], fields["cause"], fields["call"]) == (victim, "gone", 1)
        assert fields["collective"] == algorithm.collective.name
        assert fields["peer"] is not None
        assert fields["step"] >= 0
    else:
        assert answer["right"] is True


Case = Callable[[int, bool], Any]


def _late(rank: int, native: bool) -> list[Any]:
    """Rank 2 stays away from the second call until the others, who begin it together, have given up."""
    session, others = _open("late", rank, native), (0, 1, 3)
    prepared = _prepared(session, "ring_allreduce")
    assert call_once(session, prepared, 0)
    if rank == 2:
        wait_for("gave up", others)
        return ["", 0.0]
    meet("second call", rank, others)
    begun, text = time.monotonic(), "done"
    try:
        call_once(session, prepared, 1, 1.0)
    except ExecutionError as error:
        text = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - begun
    come("gave up", rank)
    return [text, seconds]


@pytest.mark.parametrize("native", CORES)
def test_a_rank_that_never_comes_is_named_by_all_before_the_deadline(native: bool) -> None:
    before = traces()
    _is_named_in_time(native)
    wait_until_gone(traces, before)


@timely
def _is_named_in_time(native: bool) -> None:
    for rank, (text, seconds) in enumerate(launch(_late, RANKS, (native,), 30)):
        if rank != 2:
            assert text.startswith("PeerFailedError: ")
            assert "rank 2 never came to call 2: it is alive, and its last call was 1" in text
            assert seconds < 1.0


def _interrupt(session: ShmSession) -> None:
    wait_until(session.watch.waits)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)


def _raises(rank: int, native: bool, interrupt: bool) -> list[str]:
    """Rank 1 ends a call with an error of its own: at a step, or in a wait for rank 0 when the user presses Ctrl-C.
    Rank 0 comes when the others have heard of that."""
    session = _open("raises", rank, native)
    prepared = _prepared(session, "ring_allreduce")
    if rank == 1 and not interrupt:
        session.context.trace = _at(session, Fault(1, 2, "raise"))
    if rank == 1 and interrupt:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        threading.Thread(target=_interrupt, args=(session,)).start()
    if rank == 0 and interrupt:
        wait_for("heard", (1, 2, 3))
    with pytest.raises((ExecutionError, KeyboardInterrupt)) as caught:
        call_once(session, prepared, 0, 30.0)
    come("heard", rank)
    return [type(caught.value).__name__, str(caught.value)]


@pytest.mark.parametrize("native", SOME)
def test_a_rank_that_raises_tells_the_others(native: bool) -> None:
    for name, text in launch(_raises, RANKS, (native, False), 30):
        assert name in ("PeerFailedError", "ExecutionError")
        assert "rank 1 threadblock 0 step 2 tile 0: the scripted failure" in text


@pytest.mark.parametrize("native", CORES)
def test_an_interrupt_ends_a_wait_and_the_others_hear_of_it(native: bool) -> None:
    found = launch(_raises, RANKS, (native, True), 30)
    assert found[1][0] == "KeyboardInterrupt"
    for rank in (0, 2, 3):
        assert "rank 1 failed: KeyboardInterrupt" in found[rank][1]


def _slow(rank: int, native: bool) -> list[bool]:
    """Ranks that are late in turn, in user code and in the middle of a step, are waited for."""
    session = _open("slow", rank, native)
    prepared = _prepared(session, "staged_allreduce")
    session.context.trace = _at(session, Fault(1, 3, "delay", 0.7))
    found = [call_once(session, prepared, 0, 20.0)]
    session.context.trace = None
    for call in range(1, 4):
        time.sleep(0.4 if rank == call else 0.0)
        found.append(call_once(session, prepared, call, 20.0))
    session.close()
    return found


@pytest.mark.parametrize("native", SOME)
def test_a_slow_rank_is_waited_for(native: bool) -> None:
    assert launch(_slow, RANKS, (native,), 30) == [[True] * 4] * RANKS


def _paused(rank: int, native: bool) -> bool:
    """Rank 2 is stopped, and goes on before the others lose patience."""
    session = _open("paused", rank, native)
    prepared = _prepared(session, "ring_allreduce")
    if rank == 2:
        child = os.fork()
        if child == 0:
            wait_until(lambda: process_condition(os.getppid(), start_time(os.getppid())) == "stopped")
            time.sleep(0.8)
            os.kill(os.getppid(), signal.SIGCONT)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.waitpid(child, 0)
    return all(calls(session, prepared, range(3), 40.0))  # stopped ranks have 0.3 of it


def test_a_rank_that_is_stopped_and_goes_on_is_waited_for() -> None:
    assert launch(_paused, RANKS, (True,), 30) == [True] * RANKS


def _closed(rank: int, native: bool) -> str:
    session = _open("closed", rank, native)
    prepared = _prepared(session, "ring_allreduce")
    assert call_once(session, prepared, 0)
    if rank == 3:
        session.close()
        return ""
    with pytest.raises(PeerFailedError) as caught:
        call_once(session, prepared, 1, 20.0)
    return str(caught.value)


@pytest.mark.parametrize("native", SOME)
def test_a_rank_that_closed_is_named(native: bool) -> None:
    found = launch(_closed, RANKS, (native,), 30)
    assert all("rank 3 closed its session after call 1" in found[rank] for rank in range(3))


MISMATCHES: dict[str, tuple[tuple[str, int, str], tuple[str, int, str]]] = {
    "size": (("ring_allreduce", 24, "int64"), ("ring_allreduce", 40, "int64")),
    "size beyond a slot": (("ring_allreduce", 24, "int64"), ("ring_allreduce", 60_000, "int64")),
    "dtype": (("one_shot_allreduce", 24, "float32"), ("one_shot_allreduce", 24, "int32")),
    "algorithm": (("one_shot_allreduce", 24, "int64"), ("staged_allreduce", 24, "int64")),
    "collective": (("staged_allgather", 24, "int64"), ("staged_alltoall", 24, "int64")),
    "signals against messages": (("staged_allreduce", 24, "int64"), ("chain_broadcast", 24, "int64")),
}


def _differ(rank: int, native: bool, odd: int) -> list[list[Any]]:
    return [_differs(rank, native, odd, number, case) for number, case in enumerate(MISMATCHES.values())]


def _differs(rank: int, native: bool, odd: int, number: int, case: Any) -> list[Any]:
    """One session: the odd rank calls something else; what each call and the time that it took said."""
    session = _open(f"differ{number}", rank, native)
    name, elements, dtype = case[rank == odd]
    prepared = _prepared(session, name, elements, getattr(torch, dtype))
    given = torch.ones(prepared.layout.buffer_elements(rank, Buffer.INPUT), dtype=prepared.launch.dtype)
    output = torch.empty(prepared.layout.buffer_elements(rank, Buffer.OUTPUT), dtype=prepared.launch.dtype)
    begun, text = time.monotonic(), ""
    try:
        for _ in range(4):
            session.run(prepared, given.data_ptr(), output.data_ptr(), 5.0)
    except MismatchError as error:
        text = str(error)
    session.close()
    return [text, time.monotonic() - begun]


@pytest.mark.parametrize(("native", "odd"), [(True, 2), (False, 2), (True, 0)])
def test_ranks_that_call_differently_all_say_who_did_what(native: bool, odd: int) -> None:
    found = launch(_differ, RANKS, (native, odd), 60)
    for number, (usual, unusual) in enumerate(MISMATCHES.values()):
        for rank in range(RANKS):
            text, seconds = found[rank][number]
            assert f"rank {odd} " in text, (usual, unusual, text)
            for name, elements, dtype in (usual, unusual):
                assert f" {name} {dtype} " in text
                assert f" {elements} out" in text
            assert seconds < 2.5


@pytest.mark.parametrize("native", SOME)
def test_ranks_that_are_all_killed_leave_nothing(native: bool) -> None:
    """Each kills itself, the last ones in a call that waits for the first: before they could notice that."""
    before = traces()
    outcomes = launch_outcomes(_kill_all, RANKS, (native,), timeout=30)
    assert [outcome.signal for outcome in outcomes] == [signal.SIGKILL] * RANKS
    wait_until_gone(traces, before)


def _kill_all(rank: int, native: bool) -> None:
    """All ranks tell each other who they are; rank 0 kills the others, then itself, while all are in calls. It may have
    no core between two kills: only after a slice do the others look."""
    session = _open("all", rank, native, slice_seconds=1.0)
    prepared = _prepared(session, "staged_allreduce", 30_000)
    begun, call = time.monotonic(), 0
    while True:
        if rank == 0 and time.monotonic() > begun + 0.2:
            for pid in (*session.pids[1:], session.pids[0]):
                os.kill(pid, signal.SIGKILL)
        assert call_once(session, prepared, call, 20.0)
        call += 1


def _recorded(rank: int, native: bool) -> list[Any]:
    """The flight record of a rank whose peer does not come to the call, but closes, as the error carries it and as it
    is asked for."""
    session = _open("record", rank, native)
    prepared = _prepared(session, "one_shot_allreduce")
    for call in range(3):
        call_once(session, prepared, call)
    if rank == 1:
        wait_until(lambda: all_in(session, 4))
        session.close()
        return []
    with pytest.raises(PeerFailedError) as caught:
        call_once(session, prepared, 3, 20.0)
    record = session.flight()
    return [caught.value.fields["flight"], record.text(), record.json()]


@pytest.mark.parametrize("native", SOME)
def test_the_flight_record_shows_the_last_calls(native: bool) -> None:
    for rank, answer in enumerate(launch(_recorded, RANKS, (native,), 30)):
        if rank != 1:
            attached, text, _ = answer
            assert [call["state"] for call in attached] == ["done"] * 3 + ["running"]
            assert [call["call"] for call in attached] == [1, 2, 3, 4]
            assert all(call["collective"] == "allreduce" for call in attached)
            assert all(call["algorithm"] == "one_shot_allreduce" for call in attached)
            lines = text.splitlines()
            assert lines[-1].split()[:3] == ["4", "allreduce", "one_shot_allreduce"]
            assert " failed " in lines[-1]


def _waits_for(session: ShmSession, rank: int) -> bool:
    """Whether a rank waits for this one."""
    where = read_view(session.watch._controls[rank]).where
    return bool(where.kind) and where.peer == session.rank


def _asked(rank: int, native: bool, place: str) -> bool:
    """Rank 1 sends rank 0 a signal when that waits in a call for it, and comes when it sees the record."""
    os.environ |= {"COMMLIB_FLIGHT": place, "COMMLIB_FLIGHT_SIGNAL": "USR2"}
    session = _open("asked", rank, native)
    prepared = _prepared(session, "one_shot_allreduce")
    if rank == 1:
        wait_until(lambda: _waits_for(session, 0))
        os.kill(session.pids[0], signal.SIGUSR2)
        wait_until(lambda: any(name.endswith(".txt") for name in os.listdir(place)))
    return call_once(session, prepared, 0)


@pytest.mark.parametrize("native", SOME)
def test_the_flight_record_is_written_on_a_signal_while_a_rank_waits(native: bool, tmp_path: Path) -> None:
    assert launch(_asked, RANKS, (native, str(tmp_path)), 30) == [True] * RANKS
    texts = [file.read_text() for file in tmp_path.iterdir() if file.suffix == ".txt"]
    assert len(texts) == 1
    assert texts[0].startswith("rank 0 of 4, process ")
    assert "\nwhy: signal SIGUSR2\nwaits for a signal of rank 1 on channel 0 (threadblock 0 step " in texts[0]
    assert texts[0].splitlines()[-1].split()[:3] == ["1", "allreduce", "one_shot_allreduce"]
