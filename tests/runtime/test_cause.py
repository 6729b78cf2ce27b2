"""Who is to blame: following who waits for whom, and the error that a rank then raises."""

import threading

import numpy as np
import pytest

from commlib.errors import DeadlineError, MismatchError, PeerFailedError
from commlib.runtime.cause import Cause, Patience, Status, diagnose, failure, loads_cause, loads_status
from commlib.runtime.monitor import Monitor
from commlib.runtime.transport import Wait
from commlib.runtime.wire import HEADER_BYTES, Call, Kind, read_header, write_header

STUCK = Status(1, 5, "running", (1,))


def blame(statuses: dict, silent: dict | None = None, late: bool = False) -> tuple | None:
    found = diagnose(0, STUCK, statuses, silent or {}, Patience(2.0, late))
    return None if found is None else (found.kind, found.rank)


def test_the_chain_of_waits_is_followed_to_the_stopped_rank() -> None:
    statuses = {1: Status(1, 5, "running", (2,)), 2: Status(1, 5, "running", (3,)), 3: Status(1, 5, "running", ())}
    assert blame(statuses) is None
    assert blame(statuses, {3: 1.9}) is None
    assert blame(statuses, {3: 2.0}) == ("stopped", 3)


def test_a_cycle_of_waits_ends() -> None:
    assert blame({1: Status(1, 5, "running", (0, 1))}, late=True) is None


def test_a_stopped_rank_that_nobody_waits_for_is_not_blamed() -> None:
    assert blame({1: Status(1, 5, "running", ()), 2: Status(1, 5, "running", ())}, {2: 9.0}) is None


def test_an_absent_rank_is_named_only_when_time_is_up() -> None:
    idle = {1: Status(1, 4, "idle")}
    assert blame(idle) is None
    assert blame(idle, late=True) == ("absent", 1)
    assert blame({1: None}, late=True) == ("absent", 1)
    assert blame({1: Status(1, 5, "idle")}, late=True) is None


def test_a_closed_rank_is_named_at_once() -> None:
    assert blame({1: Status(1, 4, "closed")}) == ("absent", 1)


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
    monitors = [Monitor(store, rank, 2, beat=0.05) for rank in range(2)]
    first = Cause("gone", 1, "rank 1 is gone", 0)
    assert monitors[0].report(first) == first
    assert monitors[1].report(Cause("gone", 0, "rank 0 is gone", 1)) == first
    for monitor in monitors:
        monitor.close()


def test_a_store_that_fails_leaves_the_own_cause() -> None:
    class Broken(_Memory):
        def set(self, key: str, _value: str) -> None:
            raise RuntimeError(f"the host of the store is gone: {key}")

    own = Cause("gone", 1, "rank 1 is gone", 0)
    assert Monitor(Broken(), 0, 2).report(own) == own


@pytest.mark.parametrize("store", [None])
def test_without_a_store_nothing_is_known(store: None) -> None:
    monitor = Monitor(store, 0, 2)
    monitor.enter(1, 10.0)
    assert monitor.stalled((1,), late=True) is None
