"""Agreement: before its first call a group finds out which ranks are on one host, and meets there; all alike.

Ranks tell each other through the group's store. Nobody waits there in vain for longer than in a call: the monitor
says why a rank does not come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from commlib.errors import SpecError
from commlib.runtime.cause import Cause, failure
from commlib.runtime.monitor import Monitor
from commlib.runtime.shm.host import host_identity
from commlib.runtime.shm.neighbours import Neighbours
from commlib.runtime.shm.options import ShmUnavailable
from commlib.runtime.shm.rendezvous import Board, LookingStore
from commlib.runtime.stall import Patience
from commlib.runtime.transport import Wait
from commlib.runtime.wire import Call

T = TypeVar("T")
TRANSPORTS = ("auto", "gloo", "shm")
Suspect = Callable[[Callable[[], Sequence[int]], float], Cause | None]
"""Given who is missing, as of now, and for how long: why they will not come, if that is known."""


@dataclass(frozen=True)
class Hosts:
    """``numbers``: the host of each rank, counted from 0 by their lowest ranks; ``shared``: of each host, whether its
    ranks share memory. ``wanted``: the transports that ranks asked for."""

    numbers: tuple[int, ...]
    shared: tuple[bool, ...]
    wanted: tuple[str, ...] = ()

    @property
    def together(self) -> bool:
        """Whether all ranks are on one host."""
        return len(self.shared) == 1

    def members(self, rank: int) -> tuple[int, ...]:
        """The ranks of the host of a rank."""
        return tuple(peer for peer, host in enumerate(self.numbers) if host == self.numbers[rank])

    def reach(self, rank: int, peer: int) -> bool:
        """Whether two ranks share memory."""
        return self.numbers[rank] == self.numbers[peer] and self.shared[self.numbers[rank]]


APART = Hosts((), ())
"""Of ranks that were never asked."""


class WatchedStore(LookingStore):
    """A store on which waits for other ranks end when it is known that they are in vain.

    Args:
        members: the ranks that meet, as the keys count them.
        suspect: as ``Meeting`` has it.
    """

    def __init__(
        self,
        store: Any,
        members: Sequence[int],
        monitor: Monitor,
        rank: int,
        call: Call,
        deadline: float,
        suspect: Suspect | None = None,
    ) -> None:
        self._suspect = suspect
        self._store, self._members, self._monitor, self._rank, self._call = store, members, monitor, rank, call
        self._deadline, self._patience = deadline, Patience(monitor, rank, deadline)

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        return bool(self._ask(lambda: self._store.check(keys)))

    def look(self, missing: Callable[[], Sequence[int]], seconds: float) -> None:
        """Called while a board waits, which it has done for so long.

        Raises:
            ExecutionError: those that are missing will never come, or this rank is interrupted.
        """
        interrupted = self._monitor.interrupted
        if interrupted is not None:
            self._fail(interrupted, next(iter(self._peers(missing)), self._rank))
        if seconds > self._patience.stalled_after:
            peers = self._peers(missing)
            cause = None if self._suspect is None else self._suspect(lambda: self._peers(missing), seconds)
            cause = cause or self._patience.ask(peers, self._deadline)
            if peers and cause is not None:
                self._fail(cause, peers[0])

    def _peers(self, missing: Callable[[], Sequence[int]]) -> tuple[int, ...]:
        return tuple(self._members[at] for at in missing())

    def _fail(self, cause: Cause, peer: int) -> None:
        waits = [Wait(-1, -1, f"for rank {peer} to connect", peer)]
        text = f"call {self._call.number} ({self._call.text})"
        raise failure(self._rank, text, waits, self._monitor.report(cause))

    def _ask(self, question: Callable[[], T]) -> T:
        """Ask the store; if a rank hosts it and it is gone, so is the rank."""
        try:
            return question()
        except RuntimeError:
            host = self._monitor.host
            if host is not None and host != self._rank:
                self._fail(Cause("gone", host, f"rank {host} is gone, and with it the group's store", self._rank), host)
            raise

    def set(self, key: str, value: str) -> None:
        """Set a key."""
        self._ask(lambda: self._store.set(key, value))

    def get(self, key: str) -> Any:
        """The value of a key that is there."""
        return self._ask(lambda: self._store.get(key))

    def add(self, key: str, amount: int) -> int:
        """Count."""
        return int(self._store.add(key, amount))

    def delete_key(self, key: str) -> Any:
        """Forget a key."""
        return self._store.delete_key(key)


@dataclass(frozen=True)
class Meeting:
    """How one rank meets the others of its group for a call: over ``keys``, under ``prefix``, until ``deadline``.

    ``suspect`` is asked before the monitor why ranks do not come.
    """

    keys: Any
    prefix: str
    monitor: Monitor
    rank: int
    ranks: int
    call: Call
    deadline: float
    suspect: Suspect | None = None

    @property
    def seconds(self) -> float:
        """What is left of the time."""
        return max(0.01, self.deadline - time.monotonic())

    def store(self, prefix: str, members: Sequence[int]) -> WatchedStore:
        """The store for these ranks to meet at."""
        keys = dist.PrefixStore(f"{self.prefix}/{prefix}", self.keys)  # type: ignore[attr-defined]
        return WatchedStore(keys, members, self.monitor, self.rank, self.call, self.deadline, self.suspect)

    def exchange(self, prefix: str, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Every rank's value.

        Raises:
            ExecutionError: a rank does not come, and why.
        """
        board = Board(self.store(prefix, range(self.ranks)), self.rank, self.ranks, self.seconds, "connecting")
        said = board.exchange(value)
        board.clear()
        return said

    def hosts(self, transport: str) -> Hosts:
        """Who is where, before anyone has met there (``shared`` is yet to be found out).

        Raises:
            SpecError: on all ranks, if any wants shared memory only, and they are on several hosts.
        """
        said = self.exchange("hosts", {"host": host_identity(), "transport": transport})
        names = list(dict.fromkeys(str(entry["host"]) for entry in said))
        numbers = tuple(names.index(str(entry["host"])) for entry in said)
        found = Hosts(numbers, (False,) * len(names), tuple(str(entry["transport"]) for entry in said))
        if "shm" in found.wanted and not found.together:
            raise SpecError(f"transport='shm' needs all ranks on one host; these are on hosts {list(numbers)}")
        return found

    def neighbours(self, hosts: Hosts, depth: int, payload: int) -> tuple[Hosts, Neighbours | None]:
        """Meet on each host, and tell all which hosts have shared memory. None: this one has none, or one rank."""
        members, mine = hosts.members(self.rank), None
        if len(members) > 1:
            store = self.store(f"host{hosts.numbers[self.rank]}", members)
            try:
                mine = Neighbours.open(store, self.rank, members, depth, payload, self.seconds)
            except ShmUnavailable:
                mine = None
        said = self.exchange("shared", {"shared": mine is not None})
        firsts = [hosts.numbers.index(host) for host in range(len(hosts.shared))]
        return Hosts(hosts.numbers, tuple(bool(said[rank]["shared"]) for rank in firsts), hosts.wanted), mine
