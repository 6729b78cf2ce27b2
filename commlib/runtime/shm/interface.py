"""What a context is, native or Python: the methods that both have, and the numbers that both know."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from commlib.runtime.shm.waiting import Blocked
from commlib.runtime.table import RankTable

REACH_NONE, REACH_REGIONS, REACH_READV = 0, 1, 2
"""How a table reaches other ranks' inputs and outputs: not at all, registered memory, process_vm_readv."""
NO_REGION = (1 << 64) - 1
"""The board's word for a tensor that lies in no registered memory."""
RUNNING, DONE_WELL, FAILED = 0, 1, 2
"""States of a flight record."""
RECORD = struct.Struct("<QIIQQQ")
"""A flight record: call, table number, state, bytes written by this rank, began and ended (CLOCK_MONOTONIC, ns)."""
Trace = Callable[[int, int, int], None]
OnStall = Callable[[float, Sequence[Blocked]], None]


class RefusedError(RuntimeError):
    """A context has not begun a call: it is closed, in a call, or has failed before; or the table is not its own."""


class Table(Protocol):
    """A table as a context holds it."""

    @property
    def number(self) -> int:
        """Counts the tables of a context from 0; stands in flight records."""
        ...


class Context(Protocol):
    """What native core and Python have in common; see ``PythonContext``."""

    timeout: float
    on_mismatch: Callable[[int], Any] | None
    on_error: Callable[[BaseException], Any] | None
    trace: Trace | None

    def table(self, rank_table: RankTable, fingerprint: int, text: bytes, reach: int) -> Table:
        """Take a table in."""
        ...

    def run(self, table: Any, input: int, output: int, timeout: float) -> None:
        """One call."""
        ...

    def planned(self, table: Any, input: int, output: int, timeout: float) -> Callable[[], None]:
        """A call, as a function."""
        ...

    def region(self, peer: int, number: int, address: int, size: int) -> None:
        """Registered memory."""
        ...

    def records(self) -> bytes:
        """The flight ring."""
        ...

    def ring_write(self, peer: int, address: int, bytes: int) -> int:
        """Write to a ring."""
        ...

    def ring_read(self, peer: int, address: int, bytes: int) -> int:
        """Read from a ring."""
        ...

    def wait_rings(self, timeout: float) -> None:
        """Sleep until a ring may have changed."""
        ...

    def close(self, why: str = "the context is closed") -> None:
        """Refuse all later calls, with these words."""
        ...
