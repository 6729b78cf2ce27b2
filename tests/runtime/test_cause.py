"""Who is to blame: following who waits for whom, and the error that a rank then raises."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from timely import wait_until

from commlib.errors import DeadlineError, MismatchError, PeerFailedError
from commlib.runtime.cause import Cause, Status, failure, loads_cause, loads_status
from commlib.runtime.diagnosis import Patience, Sighting, diagnose
from commlib.runtime.liveness import condition, this_process
from commlib.runtime.monitor import Monitor
from commlib.runtime.transport import Wait
from commlib.runtime.wire import HEADER_BYTES, Call, Kind, read_header, write_header

STUCK = Status(1, 5, "running", (1,), "aa", "ring")


def running(*waits_for: int) -> Sighting:
    return Sighting(Status(1, 5, "running", waits_for, "aa", "ring"))


def blame(sightings: dict, late: bool = False) -> tuple | None:
    found = diagnose(0, STUCK, sightings, Patience(2.0, 4.0, late))
    return None if found is None else (found.kind, found.rank)


def why(sighting: Sighting, late: bool = True) -> str:
    found = diagnose(0, STUCK, {1: sighting}, Patience(2.0, 4.0, late))
    return "" if found is None else found.text


@pytest.mark.parametrize(
    ("silent", "condition", "kind"),
    [
        (1.9, "stopped", None),
        (2.0, "stopped", "stopped"),
        (2.0, "ended", "gone"),
        (9.0, "lives", None),
        (3.9, None, None),
        (4.0, None, "stopped"),
    ],
)
def test_the_chain_of_waits_is_followed_to_the_silent_rank(silent, condition, kind) -> None:
    """A process that holds Python's lock is silent, and lives; of one on another machine it is known only later."""
    sightings = {1: running(2), 2: running(3), 3: replace(running(), silent=silent, condition=condition)}
    assert blame(sightings) == (None if kind is None else (kind, 3))


def test_a_living_rank_that_says_nothing_is_named_when_time_is_up() -> None:
    text = why(replace(running(), silent=5.0, condition="lives"))
    assert text.startswith("rank 1 does not answer: its process runs, but has shown no sign of life for 5.0 s")


def test_a_cycle_of_waits_ends() -> None:
    assert blame({1: running(0, 1)}, late=True) is None


def test_a_stopped_rank_that_nobody_waits_for_is_not_blamed() -> None:
    assert blame({1: running(), 2: replace(running(), silent=9.0, condition="stopped")}) is None


def test_ranks_in_the_same_call_that_differ_are_named_at_once() -> None:
    tree = Sighting(Status(1, 5, "running", (0,), "bb", "tree"))
    assert why(tree, late=False) == "rank 1 is in call 5 (tree), rank 0 in call 5 (ring)"
    assert blame({1: running(), 2: running(), 3: tree}) == ("mismatch", 3)
    assert blame({1: tree, 2: tree, 3: tree}) == ("mismatch", 0)
    assert blame({1: Sighting(Status(1, 4, "idle", (), "bb", "tree"))}) is None
    assert blame({1: running(), 2: Sighting(Status(1, 5, "idle", (), "bb", "tree"))}) == ("mismatch", 2)


def test_an_absent_rank_is_named_only_when_time_is_up() -> None:
    idle = Sighting(Status(1, 4, "idle"))
    assert blame({1: idle}) is None
    assert why(idle) == "rank 1 never came to call 5: it is alive, and its last call was 4"
    assert blame({1: None}, late=True) == ("absent", 1)
    assert "has said nothing since this rank began to wait" in why(replace(idle, fresh=False))


def test_a_closed_rank_is_named_at_once() -> None:
    assert blame({1: Sighting(Status(1, 4, "closed"))}) == ("absent", 1)


def test_a_rank_that_finished_and_closed_is_not_stopped() -> None:
    closed = Sighting(Status(1, 5, "closed", (), "aa", "ring"), silent=60.0, condition="ended")
    assert blame({1: closed}) is None
    assert why(closed) == "rank 1 has finished call 5 and closed its communicator, but is still waited for"
    stopped = replace(running(), silent=60.0, condition="stopped")
    found = diagnose(0, replace(STUCK, waits_for=(1, 2)), {1: closed, 2: stopped}, Patience(2.0, 4.0, True))
    assert found is not None
    assert (found.kind, found.rank) == ("stopped", 2)
    ahead = Sighting(Status(1, 6, "running", (), "cc", "ring"))
    assert why(ahead) == "rank 1 has finished call 5 and went on to call 6, but is still waited for"


def test_the_error_names_the_rank_its_place_and_the_root() -> None:
    waits = [
        Wait(0, 3, "to receive from rank 1 on channel 0", 1, 0),
        Wait(2, 1, "for room to send to rank 7 on channel 2", 7, 2),
    ]
    error = failure(4, "call 5 (ring)", waits, Cause("stopped", 7, "rank 7 stopped", 6))
    assert isinstance(error, PeerFailedError)
    assert error.message.startswith(
        "rank 4 threadblock 2 step 1 waits for room to send to rank 7 on channel 2 in call 5 (ring): "
        "rank 7 stopped (noticed by rank 6)."
    )
    wanted = {"rank": 4, "peer": 7, "channel": 2, "threadblock": 2, "step": 1, "root": 7, "cause": "stopped"}
    assert wanted.items() <= error.fields.items()
    assert isinstance(failure(0, "", waits, Cause("mismatch", 1, "", 0)), MismatchError)
    assert isinstance(failure(0, "", waits, Cause("deadline", 0, "", 0)), DeadlineError)


def test_causes_and_statuses_travel_as_text() -> None:
    cause = Cause("gone", 3, "rank 3 is gone", 1)
    assert loads_cause(cause.dumps()) == cause
    assert loads_status(STUCK.dumps()) == STUCK


def test_a_process_is_seen_to_live_to_be_stopped_and_to_end() -> None:
    me = this_process()
    assert condition(me) == "lives"
    assert condition("") is None
    assert condition("elsewhere " + me) is None
    code = "from commlib.runtime.liveness import this_process as p; print(p(), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as child:
        process = child.stdout.readline().strip()
        assert condition(process) == "lives"
        os.kill(child.pid, signal.SIGSTOP)
        wait_until(lambda: condition(process) == "stopped")
        child.kill()
        child.wait()
        assert condition(process) == "ended"


def test_headers_travel_as_bytes() -> None:
    frame = np.zeros(HEADER_BYTES, dtype=np.uint8)
    call = Call(7, b"12345678", "ring float32 sum 100 out")
    write_header(frame, call, Kind.CREDIT, 3, 99, 0)
    header = read_header(frame)
    assert header is not None
    assert (header.kind, header.channel, header.message, header.size, header.call) == (Kind.CREDIT, 3, 99, 0, call)
    frame[0] = 0
    assert read_header(frame) is None


class _Memory:
    """A store in memory, with what the monitor uses of one."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def compare_set(self, key: str, _expected: str, desired: str) -> bytes:
        with self.lock:
            return self.values.setdefault(key, desired.encode())


def test_the_first_published_cause_wins() -> None:
    store = _Memory()
    monitors = [Monitor(store, rank, 2, beat=10.0) for rank in range(2)]  # what they report is published at once
    first = Cause("gone", 1, "rank 1 is gone", 0)
    assert monitors[0].report(first) == first
    assert monitors[1].report(Cause("gone", 0, "rank 0 is gone", 1)) == first
    for monitor in monitors:
        monitor.close()


def test_a_store_whose_host_is_gone_is_not_touched_again() -> None:
    store = _Memory()
    monitor = Monitor(store, 1, 2, beat=0.02, host=0)
    gone = Cause("gone", 0, "rank 0 is gone", 1)
    assert monitor.report(gone) == gone
    monitor.close()
    wait_until(lambda: not monitor._thread.is_alive())
    store.values.clear()
    time.sleep(0.1)
    assert not store.values
    assert monitor.cause == gone


def test_a_store_that_fails_leaves_the_own_cause() -> None:
    class Broken(_Memory):
        def set(self, key: str, _value: str) -> None:
            raise RuntimeError(f"the host of the store is gone: {key}")

    own = Cause("gone", 1, "rank 1 is gone", 0)
    assert Monitor(Broken(), 0, 2).report(own) == own


@pytest.mark.parametrize("store", [None])
def test_without_a_store_nothing_is_known(store: None) -> None:
    monitor = Monitor(store, 0, 2)
    monitor.enter(Call(1, b"aa", "ring"), 10.0)
    assert monitor.stalled((1,), late=True) is None
