"""The worker's side: a rank of a crew waits for requests on a socket and answers them.

Waiting ranks sleep, so that crews can wait beside the one that is measured. Only the standard library and numpy.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from cells import Case, Cell, is_right, time_batches

ADDRESS = "COMMLIB_BENCH_ADDRESS"
Make = Callable[[str, Cell], Case]
_PR_SET_PDEATHSIG = 1


class Peer:
    """Answers "cell" (make the cases of a cell, and check them) and "time"; ``more`` answers other requests."""

    def __init__(self, rank: int, subjects: list[str], make: Make, more: dict[str, Callable[..., Any]]) -> None:
        self.rank, self.subjects, self.make = rank, subjects, make
        self._cell: Cell | None = None
        self._cases: dict[str, Case] = {}
        self._answers: dict[str, Callable[..., Any]] = {
            "cell": self.cell,
            "time": self.time,
            "check": self.check,
            **more,
        }

    def cell(self, subjects: list[str], collective: str, ranks: int, bytes: int) -> dict[str, bool]:
        """Make the cases of a cell; whether each is right on this rank."""
        self._cases.clear()
        self._cell = Cell(collective, ranks, bytes)
        for subject in subjects:
            self._cases[subject] = self.make(subject, self._cell)
        return self.check()

    def check(self) -> dict[str, bool]:
        """Whether a call of each subject gives the right result on this rank."""
        if self._cell is None:
            return {}
        return {subject: is_right(case, self._cell, self.rank) for subject, case in self._cases.items()}

    def time(self, calls: dict[str, int], warm: dict[str, int], batches: int) -> dict[str, list[float]]:
        """Seconds per call, of each subject's batches."""
        return time_batches(self._cases, calls, warm, batches)

    def answer(self, request: dict[str, Any]) -> Any:
        """Answer one request; this process is killed if that takes longer than the request allows."""
        signal.alarm(int(request.pop("timeout")) + 1)
        answer = self._answers[request.pop("do")](**request)
        signal.alarm(0)
        return answer


def serve(peer: Peer, hello: dict[str, Any]) -> None:
    """Answer requests until the socket is closed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[ADDRESS])
        with connection.makefile("rw") as stream:
            _write(stream, {"rank": peer.rank, "subjects": peer.subjects, **hello})
            for line in stream:
                _write(stream, peer.answer(json.loads(line)))


def die_with_parent() -> None:
    """Be killed when the process that started this one is gone."""
    libc: Any = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _write(stream: Any, what: Any) -> None:
    stream.write(json.dumps(what) + "\n")
    stream.flush()
