"""Neighbours: the ranks of one host, with segments of their own through which the Python engine's launches go.

They are not those of a ShmSession, whose counters its context keeps. FIFOs, signals and the bell are used as
``control`` has them; the board tells where a rank's buffers are that one-sided steps of others reach.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from commlib.runtime.cause import Cause
from commlib.runtime.liveness import process_condition
from commlib.runtime.shm.control import PAGE, STATE, STATES
from commlib.runtime.shm.options import ShmOptions
from commlib.runtime.shm.reach import Reach
from commlib.runtime.shm.rendezvous import meet
from commlib.runtime.shm.views import raise_alarm, read_view, write_failure
from commlib.runtime.shm.waiting import Bells
from commlib.runtime.transport import Bytes
from commlib.runtime.wire import HEADER_BYTES

_FAILED = STATES.index("failed")


class Neighbours:
    """One rank's view of the ranks of its host.

    Attributes:
        rank: this rank; ``ranks``: all ranks of the host, by their numbers in the group, in order.
        payload: bytes that a message may have. ``depth``: messages in flight on a connection.
        posted, taken, signalled, waited: counts by (peer, channel), over all launches.
    """

    def __init__(self, rank: int, ranks: Sequence[int], options: ShmOptions, mappings: Sequence[Any]) -> None:
        """Not for users: ``open`` makes them."""
        self.rank, self.ranks, self.layout = rank, tuple(ranks), options.layout(len(ranks))
        self.payload, self.depth = self.layout.slot - HEADER_BYTES, options.depth
        self.index = {peer: at for at, peer in enumerate(self.ranks)}
        self.peers = tuple(peer for peer in self.ranks if peer != rank)
        end = self.layout.control_end
        self._memory: list[Bytes] = [np.asarray(mapping) for mapping in mappings]
        self.controls = [memory[:end].data for memory in self._memory]
        self.words = [control.cast("Q") for control in self.controls]
        self.bells = Bells(self.index[rank], self.layout, [mapping.address for mapping in mappings])
        self.posted, self.taken, self.returned, self.signalled, self.waited = (
            dict[tuple[int, int], int]() for _ in range(5)
        )
        self._identities = [(view.pid, view.start) for view in map(read_view, self.controls)]
        self.reach = Reach(self.index[rank], self.controls, [pid for pid, _ in self._identities])
        self._ringing = threading.Lock()

    @classmethod
    def open(cls, store: Any, rank: int, ranks: Sequence[int], depth: int, payload: int, timeout: float) -> Neighbours:
        """Meet the other ranks of this host at a store (under a prefix that only they use); all of them call this.

        Args:
            payload: bytes that a message may have. ``depth``: messages in flight on a connection.

        Raises:
            ShmUnavailable: on all of them alike, if any cannot take part.
            ExecutionError: a rank did not come.
        """
        slot = payload + HEADER_BYTES
        options = ShmOptions(lane_bytes=PAGE, slot_bytes=slot, depth=depth, ring_bytes=PAGE, readv=False)
        found = meet(store, list(ranks).index(rank), len(ranks), options, timeout, native=False)
        return cls(rank, ranks, options, found.mappings)

    def slot(self, owner: int, channel: int, sender: int, message: int) -> Bytes:
        """The slot in which message number ``message`` from ``sender`` goes to ``owner``."""
        start = self.layout.fifo(channel, self.index[sender]) + message % self.depth * self.layout.slot
        return self._memory[self.index[owner]][start : start + self.layout.slot]

    def ring(self, rank: int) -> None:
        """Wake a rank (also this one) if it sleeps, after what it may wait for was written: the lock is the fence."""
        with self._ringing:
            self.bells.ring(self.index[rank])

    def fence(self) -> None:
        """Taking a lock is a full fence on x86-64."""
        with self._ringing:
            pass

    def has_failed(self, peer: int) -> bool:
        """Whether a rank of this host has said that it failed."""
        return bool(self.controls[self.index[peer]].cast("I")[STATE // 4] == _FAILED)

    def cause_of(self, peer: int) -> Cause | None:
        """Why a rank failed, if it has said so."""
        failure = read_view(self.controls[self.index[peer]]).failure
        return None if failure is None else failure.cause

    def has_ended(self, peer: int) -> bool:
        """Whether the process of a rank has ended."""
        return process_condition(*self._identities[self.index[peer]]) == "ended"

    def pid(self, peer: int) -> int:
        """The process of a rank."""
        return self._identities[self.index[peer]][0]

    def publish(self, cause: Cause, call: int) -> None:
        """Say that this rank has failed, and wake all."""
        write_failure(self.controls[self.index[self.rank]], cause, call)
        for peer in self.peers:
            raise_alarm(self.controls[self.index[peer]])
            self.ring(peer)

    def close(self) -> None:
        """Let go of the memory for one-sided steps."""
        self.reach.close()
