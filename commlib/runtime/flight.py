"""The flight record: the last calls of a rank with algorithm, bytes, state and times, for people and as JSON.

The context writes a ring of fixed records as it runs; here it is read when someone asks. ``COMMLIB_FLIGHT`` names a
directory (or the beginning of file names) where each rank writes its record when a call fails, and when the signal
that ``COMMLIB_FLIGHT_SIGNAL`` names arrives (``USR2``, say).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from commlib.errors import CommlibError

RECORD = struct.Struct("<QIIQQQ")
"""call u64, table u32, state u32, bytes u64, began u64, ended u64 (CLOCK_MONOTONIC in ns; 0: not yet)."""
STATES = ("running", "done", "failed")
PLACE = "COMMLIB_FLIGHT"
SIGNAL = "COMMLIB_FLIGHT_SIGNAL"
ATTACHED = 8
"""Calls that an error carries in its fields."""
_COLUMNS = ("call", "collective", "algorithm", "what", "bytes", "state", "began", "microseconds")
_LEFT = {"collective", "algorithm", "what", "state"}


@dataclass(frozen=True)
class Entry:
    """One call. ``began`` and ``ended`` are seconds since 1970 (``ended`` None while it runs); ``bytes`` is what this
    rank moved."""

    call: int
    collective: str
    algorithm: str
    what: str
    bytes: int
    state: str
    began: float
    ended: float | None


@dataclass(frozen=True)
class FlightRecord:
    """The last calls of one rank, oldest first; ``waits`` says in words what the running call waits for."""

    rank: int
    ranks: int
    calls: tuple[Entry, ...]
    reason: str = ""
    waits: str = ""
    host: str = ""
    pid: int = 0
    written: float = field(default=0.0)

    def json(self) -> str:
        """As JSON, one object."""
        return json.dumps({"version": 1, **asdict(self)}, indent=1)

    def text(self) -> str:
        """As a table with aligned columns."""
        rows = [_COLUMNS, *(_row(entry) for entry in self.calls)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        lines = [
            "  ".join(
                cell.ljust(width) if name in _LEFT else cell.rjust(width)
                for name, cell, width in zip(_COLUMNS, row, widths, strict=True)
            ).rstrip()
            for row in rows
        ]
        title = f"rank {self.rank} of {self.ranks}, process {self.pid} on {self.host}, at {_clock(self.written)}"
        notes = [f"why: {self.reason}"] * bool(self.reason) + [f"waits {self.waits}"] * bool(self.waits)
        return "\n".join([title, *notes, *lines]) + "\n"


def _row(entry: Entry) -> tuple[str, ...]:
    took = "" if entry.ended is None else f"{(entry.ended - entry.began) * 1e6:.1f}"
    size, began = str(entry.bytes), _clock(entry.began)
    return str(entry.call), entry.collective, entry.algorithm, entry.what, size, entry.state, began, took


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}"


def decode(records: bytes, name: Callable[[int], str], ahead: float) -> tuple[Entry, ...]:
    """The calls that a context's ring holds, oldest first.

    ``name`` says in words what a table does: collective, algorithm, and the rest. ``ahead`` is how far the time of
    day is ahead of CLOCK_MONOTONIC, in seconds. A piece of a record at the end is left out.
    """
    whole = len(records) // RECORD.size * RECORD.size
    return tuple(_entry(row, name, ahead) for row in RECORD.iter_unpack(records[:whole]) if row[0])


def _entry(row: tuple[int, ...], name: Callable[[int], str], ahead: float) -> Entry:
    call, table, state, size, began, ended = row
    collective, algorithm, what = (*name(table).split(" ", 2), "", "", "")[:3]
    said = STATES[state] if state < len(STATES) else f"state {state}"
    end = ended / 1e9 + ahead if ended >= began and state else None
    return Entry(call, collective, algorithm, what, size, said, began / 1e9 + ahead, end)


class Recorder:
    """Reads the flight record of one rank of one group when asked to.

    Args:
        records: the context's ring of records, oldest first.
        name: what the table of a number does: "allreduce one_shot float32 sum 1024 in".
        waits: what the rank waits for now, in words ("for a signal of rank 1 on channel 0"), or nothing.
    """

    def __init__(
        self,
        rank: int,
        ranks: int,
        records: Callable[[], bytes],
        name: Callable[[int], str],
        waits: Callable[[], str] = lambda: "",
    ) -> None:
        self.rank, self.ranks = rank, ranks
        self._records, self._name, self._waits = records, name, waits
        self._number = next(_numbers)
        self._on_error_done = False
        _recorders[self._number] = self

    def record(self, reason: str = "", last: int | None = None) -> FlightRecord:
        """The record now; of the ``last`` calls, or of all that the ring holds."""
        now = time.time()
        calls = decode(self._records(), self._name, now - time.monotonic())
        kept = calls if last is None else calls[max(0, len(calls) - last) :]
        return FlightRecord(self.rank, self.ranks, kept, reason, self._waits(), socket.gethostname(), os.getpid(), now)

    def close(self) -> None:
        """Keep the record as it is now: the context goes."""
        kept = self._records()
        self._records, self._waits = lambda: kept, lambda: ""
        _recorders.pop(self._number, None)

    def on_error(self, error: BaseException) -> None:
        """A call has failed: write the record where ``COMMLIB_FLIGHT`` says (once), and attach the last calls."""
        if self._on_error_done:
            return
        self._on_error_done = True
        record = self.record(str(error) or type(error).__name__)
        if isinstance(error, CommlibError):
            error.fields["flight"] = [asdict(entry) for entry in record.calls[-ATTACHED:]]
        written = self.write(record)
        if written is not None:
            error.add_note(f"the last calls of rank {self.rank} stand in {written}")

    def write(self, record: FlightRecord, place: str | None = None) -> Path | None:
        """Write a record as text and as JSON to ``place`` (default: what ``COMMLIB_FLIGHT`` says).

        Returns:
            The text file; None if there is no place, or it cannot be written (a record is no reason to fail).
        """
        place = os.environ.get(PLACE, "") if place is None else place
        if not place:
            return None
        stem = _stem(place, f"{socket.gethostname()}.{os.getpid()}.{self._number}.rank{self.rank}")
        text = stem.with_name(stem.name + ".txt")
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(record.text())
            stem.with_name(stem.name + ".json").write_text(record.json() + "\n")
        except OSError:
            return None
        return text

    def tell(self, reason: str) -> None:
        """Write the record now, to the standard error stream where ``COMMLIB_FLIGHT`` names no place."""
        record = self.record(reason)
        if self.write(record) is None:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(record.text())
                sys.stderr.flush()


_recorders: weakref.WeakValueDictionary[int, Recorder] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def _present() -> list[Recorder]:
    """All recorders by number. Another thread may make one meanwhile: the references are copied in one go."""
    found = [reference() for reference in _recorders.valuerefs()]
    return sorted((each for each in found if each is not None), key=lambda it: it._number)


def _stem(place: str, name: str) -> Path:
    """In a directory: a file named by host, process, group and rank; else that is appended to the name given."""
    path = Path(place)
    inside = path.is_dir() or place.endswith(os.sep)
    return path / f"flight.{name}" if inside else path.with_name(f"{path.name}.{name}")


def asked_signal() -> signal.Signals | None:
    """The signal that ``COMMLIB_FLIGHT_SIGNAL`` names: ``USR2``, ``SIGUSR2`` or a number; None if it names none."""
    wanted = os.environ.get(SIGNAL, "").strip().upper()
    for known in signal.Signals:
        if wanted and wanted in (known.name, known.name.removeprefix("SIG"), str(int(known))):
            return known
    return None


def listen() -> bool:
    """Write all records when the signal that is asked for arrives; whether that was set up.

    A handler that the program has set is called after ours. One that was set outside of Python is left alone, as is
    everything where this is not the main thread: only that may set handlers.
    """
    wanted = asked_signal()
    if wanted is None or threading.current_thread() is not threading.main_thread():
        return False
    before = signal.getsignal(wanted)
    if isinstance(before, _Handler):
        return True
    if before is None or (before in (signal.SIG_DFL, signal.SIG_IGN) and _caught(wanted)):
        return False
    try:
        signal.signal(wanted, _Handler(before if callable(before) else None))
    except (OSError, ValueError):  # signals that cannot be caught
        return False
    return True


def _caught(number: int) -> bool:
    """Whether this process has a handler of a signal, be it one that Python does not know of (proc_pid_status(5))."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


@dataclass(frozen=True)
class _Handler:
    """Ours, and then the one that was there before."""

    before: Callable[[int, FrameType | None], Any] | None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        for recorder in _present():
            recorder.tell(f"signal {signal.Signals(number).name}")
        if self.before is not None:
            self.before(number, frame)


def merged(records: Sequence[FlightRecord]) -> str:
    """The records of several ranks as text, and first, in a line, which ranks are behind."""
    last = {record.rank: max((entry.call for entry in record.calls), default=0) for record in records}
    most = max(last.values(), default=0)
    behind = ", ".join(f"rank {rank} (call {call})" for rank, call in sorted(last.items()) if call < most)
    title = f"behind call {most}: {behind}" if behind else f"all ranks have begun call {most}"
    return "\n".join([title, *(record.text() for record in sorted(records, key=lambda it: it.rank))])
