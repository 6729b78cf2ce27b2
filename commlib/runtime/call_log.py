"""The call log: the flight record of a rank whose calls the Python engine runs, over gloo or a mix with shared memory.

It keeps what a context keeps of its calls, in the same form, so that records of both are read alike.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from commlib.runtime.flight import RECORD, STATES, FlightRecord, Recorder, listen

CALLS = 256
"""Calls that are kept."""


@dataclass
class _Call:
    """One call; times of CLOCK_MONOTONIC in ns, ``ended`` 0 while it runs."""

    number: int
    text: str
    bytes: int
    began: int
    state: str = "running"
    ended: int = 0


class CallLog:
    """The last calls of one rank of one group. Calls are logged one at a time; anyone may read meanwhile.

    Args:
        waits: what the rank waits for now, in words, or nothing.
    """

    def __init__(self, rank: int, ranks: int, waits: Callable[[], str], calls: int = CALLS) -> None:
        self._rank, self._ranks, self._waits = rank, ranks, waits
        self._calls: deque[_Call] = deque(maxlen=calls)
        self._recorder: Recorder | None = None
        listen()

    @contextlib.contextmanager
    def call(self, number: int, text: str, size: int) -> Iterator[None]:
        """Around a call: its number, the collective, algorithm and what else it is in words, and the bytes it moves.

        If it fails, the record is written and attached to the error; see ``Recorder.on_error``.
        """
        recorder, call = self._reader(), _Call(number, text, size, time.monotonic_ns())
        self._calls.append(call)
        try:
            yield
        except BaseException as error:
            self._end(call, "failed")
            recorder.on_error(error)
            raise
        self._end(call, "done")

    def record(self, last: int | None = None) -> FlightRecord:
        """The record now; of the ``last`` calls, or of all that are kept."""
        return self._reader().record(last=last)

    def close(self) -> None:
        """No more calls are made: signals ask for the record no longer."""
        if self._recorder is not None:
            self._recorder.close()

    def _reader(self) -> Recorder:
        """Made when it is first needed: a log without calls has nothing to tell."""
        if self._recorder is None:
            self._recorder = Recorder(self._rank, self._ranks, self._packed, self._text, self._waits)
        return self._recorder

    @staticmethod
    def _end(call: _Call, state: str) -> None:
        call.ended = time.monotonic_ns()
        call.state = state

    def _packed(self) -> bytes:
        rows = (
            (c.number, c.number % 2**32, STATES.index(c.state), c.bytes, c.began, c.ended) for c in tuple(self._calls)
        )
        return b"".join(RECORD.pack(*row) for row in rows)

    def _text(self, number: int) -> str:
        return next((call.text for call in tuple(self._calls) if call.number % 2**32 == number), "")
