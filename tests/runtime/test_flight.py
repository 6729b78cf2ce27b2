"""The flight record: decoded, printed, written on errors and signals."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from commlib.errors import PeerFailedError
from commlib.runtime import flight
from commlib.runtime.flight import RECORD, Entry, FlightRecord, Recorder, asked_signal, decode, listen, merged

NAMES = {0: "allreduce one_shot float32 sum 1024 in", 1: "barrier", 2: "broadcast chain uint8 move 7 out"}
RING = b"".join(
    RECORD.pack(*row)
    for row in (
        (7, 0, 1, 8192, 2_000_000_000, 2_000_012_300),
        (8, 1, 1, 0, 2_100_000_000, 2_100_000_500),
        (9, 2, 2, 14, 2_200_000_000, 3_200_000_000),
        (10, 0, 0, 4096, 4_000_000_000, 0),
    )
)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (flight.PLACE, flight.SIGNAL):
        monkeypatch.delenv(name, raising=False)


def recorder(rank: int = 1) -> Recorder:
    return Recorder(rank, 4, lambda: RING, NAMES.__getitem__, lambda: "for a signal of rank 2 on channel 0")


def test_records_are_decoded_with_names_and_times() -> None:
    assert decode(RING, NAMES.__getitem__, 100.0) == (
        Entry(7, "allreduce", "one_shot", "float32 sum 1024 in", 8192, "done", 102.0, 102.0000123),
        Entry(8, "barrier", "", "", 0, "done", 102.1, 102.1000005),
        Entry(9, "broadcast", "chain", "uint8 move 7 out", 14, "failed", 102.2, 103.2),
        Entry(10, "allreduce", "one_shot", "float32 sum 1024 in", 4096, "running", 104.0, None),
    )


def test_empty_and_torn_records_are_left_out() -> None:
    assert decode(bytes(RECORD.size) + RING[:45], NAMES.__getitem__, 0.0) == decode(RING[:40], NAMES.__getitem__, 0.0)
    assert decode(b"", NAMES.__getitem__, 0.0) == ()


def test_a_state_that_is_not_known_is_told_as_it_is() -> None:
    row = RECORD.pack(1, 0, 9, 0, 5, 6)
    assert decode(row, NAMES.__getitem__, 0.0)[0].state == "state 9"


def test_text_is_an_aligned_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight.time, "localtime", flight.time.gmtime)
    calls = decode(RING, NAMES.__getitem__, 0.0)
    assert FlightRecord(1, 4, calls, "rank 2 is gone", "for rank 2", "here", 77, 5.25).text() == (
        "rank 1 of 4, process 77 on here, at 00:00:05.250000\n"
        "why: rank 2 is gone\n"
        "waits for rank 2\n"
        "call  collective  algorithm  what                 bytes  state              began  microseconds\n"
        "   7  allreduce   one_shot   float32 sum 1024 in   8192  done     00:00:02.000000          12.3\n"
        "   8  barrier                                         0  done     00:00:02.100000           0.5\n"
        "   9  broadcast   chain      uint8 move 7 out        14  failed   00:00:02.200000     1000000.0\n"
        "  10  allreduce   one_shot   float32 sum 1024 in   4096  running  00:00:04.000000\n"
    )


def test_json_holds_the_same() -> None:
    record = recorder().record("asked", last=2)
    found = json.loads(record.json())
    assert (found["version"], found["rank"], found["ranks"], found["reason"], found["pid"]) == (
        1,
        1,
        4,
        "asked",
        os.getpid(),
    )
    assert found["waits"] == "for a signal of rank 2 on channel 0"
    assert [(call["call"], call["state"], call["ended"] is None) for call in found["calls"]] == [
        (9, "failed", False),
        (10, "running", True),
    ]
    assert len(recorder().record(last=0).calls) == 0


def test_an_error_is_told_once_in_files_that_nobody_else_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(flight.PLACE, str(tmp_path / "new") + os.sep)
    monkeypatch.setattr(flight, "_numbers", itertools.count(1))  # or 10 is sorted before 9
    error, later = PeerFailedError("rank 2 is gone", rank=1), PeerFailedError("refused", rank=1)
    one, other = recorder(), recorder()
    for each in (one, other):
        each.on_error(error)
        each.on_error(later)
    files = sorted((tmp_path / "new").iterdir())
    assert [file.suffix for file in files] == [".json", ".txt"] * 2
    assert all(f".{os.getpid()}." in file.name and ".rank1." in file.name for file in files)
    assert json.loads(files[0].read_text())["reason"] == "rank 2 is gone"
    assert "why: rank 2 is gone\n" in files[1].read_text()
    assert [call["call"] for call in error.fields["flight"]] == [7, 8, 9, 10]  # type: ignore[attr-defined]
    assert error.__notes__ == [f"the last calls of rank 1 stand in {file}" for file in (files[1], files[3])]
    assert "flight" not in later.fields


def test_a_name_that_is_no_directory_is_the_beginning_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(flight.PLACE, str(tmp_path / "job7"))
    recorder().on_error(KeyboardInterrupt())
    names = sorted(file.name for file in tmp_path.iterdir())
    assert len(names) == 2
    assert all(name.startswith("job7.") for name in names)


def test_without_a_place_an_error_is_told_to_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    error = PeerFailedError("rank 2 is gone")
    recorder().on_error(error)
    assert capfd.readouterr() == ("", "")
    assert not hasattr(error, "__notes__")
    assert len(error.fields["flight"]) == 4  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(flight.PLACE, str(tmp_path / "file" / "below") + os.sep)
    error = PeerFailedError("rank 2 is gone")
    recorder().on_error(error)
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("name", ["USR2", "SIGUSR2", "sigusr2", str(int(signal.SIGUSR2)), " usr2 "])
def test_the_signal_is_named_in_several_ways(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(flight.SIGNAL, name)
    assert asked_signal() is signal.SIGUSR2


@pytest.mark.parametrize("name", ["", "nothing", "0", "KILL"])
def test_without_a_signal_that_can_be_caught_nothing_is_set_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(flight.SIGNAL, name)
    before = [signal.getsignal(known) for known in signal.valid_signals()]
    assert not listen()
    assert [signal.getsignal(known) for known in signal.valid_signals()] == before


def test_other_threads_set_no_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(flight.SIGNAL, "USR2")
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(listen()))
    thread.start()
    thread.join()
    assert found == [False]
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


ON_A_SIGNAL = """
import faulthandler, os, signal, sys
from commlib.runtime import flight
from commlib.runtime.flight import RECORD, Recorder, listen
one = Recorder(3, 8, lambda: RECORD.pack(5, 0, 1, 64, 1000, 3000), lambda _: "alltoall pairwise")
heard = []
if "own" in sys.argv:
    signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
if "outside" in sys.argv:
    faulthandler.register(signal.SIGUSR2, file=open(os.devnull, "w"))
print(listen(), listen())
signal.raise_signal(signal.SIGUSR2)
print(len(heard))
"""


@pytest.mark.parametrize(("handler", "told", "heard"), [("none", True, 0), ("own", True, 1), ("outside", False, 0)])
def test_a_signal_tells_all_records_and_leaves_the_programs_handler(handler: str, told: bool, heard: int) -> None:
    environment = {**os.environ, flight.SIGNAL: "USR2"}
    command = [sys.executable, "-c", ON_A_SIGNAL, handler]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [str(told), str(told), str(heard)]
    assert ("rank 3 of 8" in done.stderr) == told
    assert ("why: signal SIGUSR2" in done.stderr) == told


def test_recorders_that_another_thread_makes_meanwhile_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one more at each line that runs while the handler goes through them."""
    kept = [recorder(rank) for rank in (70, 71, 72)]
    told: list[int] = []
    monkeypatch.setattr(Recorder, "tell", lambda self, reason: told.append(self.rank))

    def at_each_line(_frame: FrameType, _event: str, _value: object) -> Any:
        thread = threading.Thread(target=lambda: kept.append(recorder(9)))
        thread.start()
        thread.join()
        return at_each_line

    handler, before = flight._Handler(None), sys.gettrace()
    sys.settrace(at_each_line)
    try:
        handler(signal.SIGUSR2, None)
    finally:
        sys.settrace(before)
    assert [rank for rank in told if rank >= 70] == [70, 71, 72]
    assert len(kept) > 10


def test_merged_records_say_who_is_behind() -> None:
    calls = decode(RING, NAMES.__getitem__, 0.0)
    records = [FlightRecord(1, 2, calls[:2]), FlightRecord(0, 2, calls)]
    lines = merged(records).splitlines()
    assert lines[0] == "behind call 10: rank 1 (call 8)"
    assert lines[1].startswith("rank 0 of 2")
    assert merged([records[1]]).startswith("all ranks have begun call 10\n")
