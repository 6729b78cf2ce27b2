"""Rendezvous: ranks meet at a store, find out whether they can share memory, and map each other's segments.

Every step ends with an exchange of what each rank found, so that all come to the same conclusion.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from commlib.errors import DeadlineError, ExecutionError
from commlib.runtime.cause import store_lost
from commlib.runtime.shm.control import HEADER, MAGIC, READY, SegmentLayout
from commlib.runtime.shm.host import host_identity, is_x86_64
from commlib.runtime.shm.memory import Mapping, can_read
from commlib.runtime.shm.options import ShmOptions, ShmUnavailable
from commlib.runtime.shm.segment import attach_segment, create_segment


@dataclass(frozen=True)
class Meeting:
    """What came of a rendezvous: all segments as mapped here, and what all ranks can do."""

    mappings: tuple[Mapping, ...]
    pids: tuple[int, ...]
    native: bool
    readv: bool


_OPENING = "opening a shared-memory session"


class LookingStore:
    """Base of stores that can tell whether those who are missing at a board may still come; this one knows nothing."""

    def look(self, missing: Callable[[], Sequence[int]], seconds: float) -> None:
        """Called again and again while a rank waits.

        Args:
            missing: who has not come, as of now, as the board counts them.
            seconds: for how long it has waited.

        Raises:
            ExecutionError: they will never come.
        """


class Board:
    """Exchanges of small values over a store; all ranks make the same ones in the same order."""

    def __init__(self, store: Any, rank: int, ranks: int, timeout: float, doing: str = _OPENING) -> None:
        """``doing``: what the ranks meet for, in words."""
        self._doing = doing
        self._look = (store if isinstance(store, LookingStore) else LookingStore()).look
        self._store, self._rank, self._ranks, self._deadline = store, rank, ranks, time.monotonic() + timeout
        self._rounds = 0

    def exchange(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Everybody's value, by rank.

        Raises:
            DeadlineError: a rank did not come. PeerFailedError: the store is gone. What ``look`` raises.
        """
        keys = [f"{self._rounds}/{rank}" for rank in range(self._ranks)]
        self._rounds += 1
        try:
            self._store.set(keys[self._rank], json.dumps(value))
            self._await(keys)
            return [json.loads(self._store.get(key)) for key in keys]
        except RuntimeError as error:  # torch's stores raise it, or a class of it
            raise self._late(keys, error) from error

    def _await(self, keys: list[str]) -> None:
        """Wait by asking now and then: a store's own wait blocks all threads that share its connection."""
        pause, began = 0.0002, time.monotonic()
        while not self._store.check(keys):
            if time.monotonic() > self._deadline:
                raise RuntimeError("time is up")
            self._look(lambda: self._missing(keys), time.monotonic() - began)
            time.sleep(pause)
            pause = min(2 * pause, 0.01)

    def leave_together(self, segments: Sequence[Any]) -> None:
        """Return when no rank needs the store any more: it may live in the process of one of them.

        Raises:
            DeadlineError: a rank did not come. ExecutionError: what ``look`` raises.
        """
        ready = [np.asarray(segment)[READY : READY + 4] for segment in segments]
        ready[self._rank][0] = 1
        pause, began = 0.0001, time.monotonic()
        while missing := _unset(ready):
            if time.monotonic() > self._deadline:
                raise self._lost(missing)
            self._look(lambda: _unset(ready), time.monotonic() - began)
            time.sleep(pause)
            pause = min(2 * pause, 0.01)

    def _late(self, keys: list[str], error: RuntimeError) -> ExecutionError:
        with contextlib.suppress(RuntimeError):
            missing = self._missing(keys)
            if missing:
                return self._lost(missing)
        return store_lost(self._rank, self._doing, error)

    def _missing(self, keys: list[str]) -> list[int]:
        return [rank for rank, key in enumerate(keys) if not self._store.check([key])]

    def _lost(self, missing: list[int]) -> DeadlineError:
        who = f"rank(s) {', '.join(map(str, missing))} did not come"
        return DeadlineError(f"rank {self._rank}: while {self._doing}, {who}", rank=self._rank, missing=missing)

    def clear(self) -> None:
        """Take this board's keys out of the store, when everybody has read them: the last one does it."""
        with contextlib.suppress(RuntimeError, NotImplementedError):
            if self._store.add("left", 1) == self._ranks:
                for number in range(self._rounds):
                    for rank in range(self._ranks):
                        self._store.delete_key(f"{number}/{rank}")
                self._store.delete_key("left")


def _unset(words: Sequence[Any]) -> list[int]:
    return [rank for rank, word in enumerate(words) if not word[0]]


def meet(store: Any, rank: int, ranks: int, options: ShmOptions, timeout: float, native: bool) -> Meeting:
    """Make this rank's segment, and map those of all others.

    Raises:
        ShmUnavailable: on all ranks, if any cannot.
        DeadlineError: a rank did not come within ``timeout`` seconds.
    """
    board, layout = Board(store, rank, ranks, timeout), options.layout(ranks)
    mapping, descriptor, trouble = _own(layout, rank)
    try:
        mine = _mine(mapping, descriptor, trouble, options, native)
        said = board.exchange(mine)
        _refuse(said, trouble="trouble")
        _refuse_differences(said)
        both = all(entry["native"] for entry in said)
        mappings, found = _attach_all(layout, rank, mapping, said, options.readv)
        attached = board.exchange(found)
        _refuse(attached, trouble="trouble")
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    if not both and not all(entry["ordered"] for entry in said):
        raise ShmUnavailable("the native core is not built, and pure Python has no memory fences on this machine")
    board.clear()
    board.leave_together(mappings)
    return Meeting(mappings, tuple(entry["pid"] for entry in said), both, all(entry["readv"] for entry in attached))


def _own(layout: SegmentLayout, rank: int) -> tuple[Mapping | None, int, str]:
    try:
        mapping, descriptor = create_segment(layout, rank)
    except OSError as error:
        return None, -1, f"rank {rank} cannot make shared memory of {layout.size} bytes: {error}"
    return mapping, descriptor, ""


def _mine(mapping: Mapping | None, descriptor: int, trouble: str, options: ShmOptions, native: bool) -> dict[str, Any]:
    sizes: list[int | None] = [options.lane_bytes, options.slot_bytes, options.depth, options.ring_bytes]
    sizes += [options.tile_bytes, options.cache_bytes]
    return {
        "host": host_identity(),
        "pid": os.getpid(),
        "descriptor": descriptor,
        "address": 0 if mapping is None else mapping.address,
        "options": sizes,
        "native": native,
        "ordered": is_x86_64(),
        "trouble": trouble,
    }


def _refuse(said: list[dict[str, Any]], trouble: str) -> None:
    for entry in said:
        if entry[trouble]:
            raise ShmUnavailable(entry[trouble])


def _refuse_differences(said: list[dict[str, Any]]) -> None:
    for rank, entry in enumerate(said):
        if entry["host"] != said[0]["host"]:
            raise ShmUnavailable(f"rank {rank} is on another host (or namespace, or is another user's) than rank 0")
        if entry["options"] != said[0]["options"]:
            raise ShmUnavailable(f"rank {rank} has other sizes of shared memory than rank 0: {entry['options']}")


def _attach_all(
    layout: SegmentLayout, rank: int, own: Mapping | None, said: list[dict[str, Any]], readv: bool
) -> tuple[tuple[Mapping, ...], dict[str, Any]]:
    """Map all segments, and see whether the peers' memory can be read directly, too."""
    mappings = list[Mapping]()
    for peer, entry in enumerate(said):
        try:
            if peer == rank and own is not None:
                mappings.append(own)
                continue
            mappings.append(attach_segment(layout, peer, entry["pid"], entry["descriptor"]))
            readv = readv and can_read(entry["pid"], entry["address"] + HEADER, MAGIC)
        except (OSError, ExecutionError) as error:
            trouble = f"rank {rank} cannot map the shared memory of rank {peer}: {error}"
            return tuple(mappings), {"trouble": trouble, "readv": False}
    return tuple(mappings), {"trouble": "", "readv": readv}
