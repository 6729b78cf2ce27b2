"""ShmSession: a group of ranks of one host that run proved algorithms over shared memory."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from commlib.collectives import Buffer, Placement
from commlib.errors import ExecutionError, SpecError
from commlib.ir.algorithm import Algorithm
from commlib.runtime.flight import FlightRecord, Recorder, listen
from commlib.runtime.forks import FORKED, own
from commlib.runtime.shm.interface import REACH_NONE, REACH_READV, REACH_REGIONS, Context, RefusedError
from commlib.runtime.shm.load import load_context, native_is_built
from commlib.runtime.shm.options import ShmOptions, ShmUnavailable
from commlib.runtime.shm.prepared import (
    Launch,
    Prepared,
    as_sizes,
    describe,
    exposed_buffers,
    fingerprint,
    prepare_table,
    refuse_reach,
)
from commlib.runtime.shm.regions import Regions
from commlib.runtime.shm.rendezvous import Meeting, meet
from commlib.runtime.shm.waiting import Bells
from commlib.runtime.shm.watch import Watch

__all__ = ["REACH_NONE", "REACH_READV", "REACH_REGIONS", "Prepared", "ShmOptions", "ShmSession", "ShmUnavailable"]

_PREPARED = 512
"""Launches that a session remembers."""


class ShmSession:
    """One rank's place in a group over shared memory; open it with ``ShmSession.open`` on all ranks.

    Calls (``run``, planned calls, ``register``, ``empty``) are made in the same order by all ranks, one at a time.
    After an ExecutionError the session cannot be used any more; close it and open a new one.

    Attributes:
        rank, ranks: this rank, and how many there are. ``options``, ``layout`` (of segments).
        native: whether the native core runs the tables. ``readv``: whether other ranks' memory can be read directly.
        context: what executes tables (``records()`` is the flight ring, ``ring_*`` are for ``P2P``).
        watch: finds out why nothing moves. ``pids``: the ranks' processes.
        tables: for each table number of the flight record, what it was, in words.
    """

    def __init__(self, rank: int, ranks: int, options: ShmOptions, meeting: Meeting, timeout: float) -> None:
        """Not for users: ``open`` makes sessions."""
        self.rank, self.ranks, self.options = rank, ranks, replace(options, native=meeting.native)
        self.layout, self.native, self.readv, self.pids = (
            options.layout(ranks),
            meeting.native,
            meeting.readv,
            meeting.pids,
        )
        self.timeout = timeout
        segments = [mapping.address for mapping in meeting.mappings]
        bells = Bells(rank, self.layout, segments)
        controls = [np.asarray(mapping).data for mapping in meeting.mappings]
        self.watch = Watch(rank, controls, _Bell(bells), timeout)
        stall = _Stall(self.watch)
        spins, yields = options.looks(ranks)
        make = load_context(self.native)
        self.context: Context = make(
            rank, ranks, self.layout, tuple(segments), spins, yields, options.slice_seconds, stall,
            options.records,
        )  # fmt: skip
        stall.context = self.context
        self.context.on_mismatch, self.context.on_error = self.watch.on_mismatch, self.watch.report
        self.tables: dict[int, str] = {}
        self._prepared: OrderedDict[Launch, Prepared] = OrderedDict()
        self._busy = threading.Lock()
        self._regions = Regions(rank, meeting.pids, self.context)
        waits, tables = self.watch.waits, self.tables
        self._recorder = Recorder(rank, ranks, self.context.records, lambda number: tables.get(number, ""), waits)
        self.watch.on_error = self._recorder.on_error
        listen()
        own(self)
        self._finalizer = weakref.finalize(self, _close, self.context, stall, self._recorder, os.getpid())

    @classmethod
    def open(
        cls,
        store: Any,
        rank: int,
        ranks: int,
        options: ShmOptions | None = None,
        timeout: float = 30.0,
        seconds: float | None = None,
    ) -> ShmSession:
        """Meet the other ranks at a c10d store (under a prefix that only this session uses), and map all segments.

        Args:
            timeout: seconds for each later call that gives none, and for this, unless it has only ``seconds``.

        Raises:
            ShmUnavailable: on all ranks alike, if any cannot take part.
            DeadlineError: a rank did not come. SpecError: options or environment are wrong.
        """
        options = options or ShmOptions()
        seconds = timeout if seconds is None else seconds
        meeting = meet(store, rank, ranks, options, seconds, options.native and native_is_built())
        return cls(rank, ranks, options, meeting, timeout)

    def close(self) -> None:
        """Say that this rank makes no more calls; later ones are refused. Memory goes with its last user: a call that
        runs meanwhile, in another thread or in this one if a signal handler closes, goes on to its end on what it has.
        """
        self._finalizer()  # first: a call that has not yet begun, and holds no regions, must be refused
        self._prepared.clear()
        self._regions.close()

    def disown(self) -> None:
        """See ``forks``: calls are refused, planned ones too."""
        self._busy = threading.Lock()
        self.context.close(FORKED)

    def __enter__(self) -> ShmSession:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def prepare(
        self,
        algorithm: Algorithm,
        placement: Placement,
        elements: int,
        dtype: torch.dtype,
        reduce: str | None,
        sizes: Sequence[Sequence[int]] | None = None,
        text: str = "",
        reach: int | None = None,
    ) -> Prepared:
        """Make a launch ready; no communication. O(steps) the first time, then a look-up.

        Args:
            elements: of a shard (see ``plan_layout``). ``reduce``: a reduction's name, None for what only moves.
            sizes: of alltoallv. ``text``: what is called, in words, the collective first (default: made up).
            reach: how a program that reads or writes other ranks' inputs and outputs gets at them: registered memory
                (``REACH_REGIONS``, the default) or, only to read, ``REACH_READV``.

        Raises:
            VerificationError: the algorithm is not proved in this placement.
            SpecError: it is for another number of ranks, or size, type, reduction or reach do not fit.
            NotTabulable: no table can express it; the Python engine can run it.
        """
        touches = any(algorithm.touches_peers_tensors)
        reach = (REACH_REGIONS if reach is None else reach) if touches else REACH_NONE
        launch = Launch(algorithm, placement, elements, dtype, reduce, as_sizes(sizes), reach, text)
        found = self._prepared.get(launch)
        if found is not None:
            self._prepared.move_to_end(launch)
            return found
        found = self._prepared[launch] = self._prepare(launch)
        while len(self._prepared) > _PREPARED:
            self._prepared.popitem(last=False)
        if len(self.tables) > 4 * _PREPARED:
            self._forget_tables()
        return found

    def _forget_tables(self) -> None:
        """Keep the texts of the launches that are remembered, and of the last ones made."""
        kept = {prepared.handle.number for prepared in self._prepared.values()}
        for number in sorted(self.tables.keys() - kept)[:-_PREPARED]:
            del self.tables[number]

    def _prepare(self, launch: Launch) -> Prepared:
        if launch.algorithm.ranks != self.ranks:
            raise SpecError(
                f"{launch.algorithm.name} is for {launch.algorithm.ranks} ranks, the group has {self.ranks}"
            )
        refuse_reach(launch, self.readv)
        layout, table = prepare_table(launch, self.rank, self.options)
        text, print_ = describe(launch), fingerprint(launch, self.options)
        handle = self.context.table(table, print_, text.encode(), launch.reach)
        self.tables[handle.number] = text
        exposed = exposed_buffers(launch.algorithm, self.rank)
        return Prepared(launch, layout, table, print_, text, exposed, handle)

    def run(self, prepared: Prepared, input: int, output: int, timeout: float | None = None) -> None:
        """Run a launch on tensors at these addresses (in place: parts of one span), contiguous and of its layout.

        Raises:
            SpecError: the launch needs registered tensors.
            ExecutionError: another call is running; or this one failed: a peer is gone, stopped, late, or makes
                another call (DeadlineError, PeerFailedError, MismatchError); the session cannot be used any more.
        """
        self._check_exposed(prepared, input, output)
        self.execute(prepared.handle, input, output, timeout)

    def execute(self, handle: Any, input: int, output: int, timeout: float | None = None) -> None:
        """``run`` for a table that the context has taken in."""
        if not self._busy.acquire(blocking=False):
            raise ExecutionError(f"rank {self.rank}: another call is running on this session", rank=self.rank)
        mapped = self._regions.mapped
        try:
            self.watch.refuse()
            seconds = self.timeout if timeout is None else timeout
            self.context.run(handle, input, output, seconds)
        except RefusedError as error:  # closed, in a call, or failed before
            raise ExecutionError(f"rank {self.rank}: {error}", rank=self.rank) from error
        finally:
            del mapped
            self._busy.release()

    def planned(
        self, prepared: Prepared, input: int, output: int, timeout: float | None = None, keep: Any = None
    ) -> Callable[[], None]:
        """``run`` with everything looked up ahead. ``keep``: what must live as long as the function (the tensors).

        Where ``run`` raises ExecutionError because the session is closed, in a call, or has failed before, it may
        raise RefusedError, a RuntimeError.
        """
        self._check_exposed(prepared, input, output)
        seconds = self.timeout if timeout is None else timeout
        call = self.context.planned(prepared.handle, input, output, seconds)
        kept: Any = partial(call)
        kept.keep = (self, self._regions.mapped, keep)
        return cast(Callable[[], None], kept)

    def register(self, tensor: torch.Tensor) -> None:
        """Move a tensor's storage to shared memory, in place, and have all ranks map it; all ranks call this.

        The tensor's address may change: views of the same storage move with it, raw addresses do not. It stays
        registered until ``unregister``, until nobody has its storage any more, or until the session is closed; the
        other ranks then let go of the memory in the next call of ``register``, ``empty``, ``unregister`` or ``tidy``.
        Ranks may register different sizes, and at most 4096 tensors each at once.

        Raises:
            SpecError: on all ranks, if any rank's tensor cannot be moved: it has no storage, or memory that is numpy's
                or a file's, too. ExecutionError: as ``run``.
        """
        self._regions.register(tensor, self.execute)

    def unregister(self, tensor: torch.Tensor) -> None:
        """Give up a tensor's registration: its memory goes when the tensor does; all ranks call this.

        A rank whose tensor is not registered takes part all the same. Raises: as ``register``.
        """
        self._regions.unregister(tensor, self.execute)

    @property
    def untidy(self) -> bool:
        """Whether registered tensors of this rank have gone whose memory other ranks still have."""
        return self._regions.untold

    def tidy(self) -> None:
        """Let go of the memory of tensors that have gone, of up to four of each rank; all ranks call this.

        Raises:
            ExecutionError: as ``run``.
        """
        self._regions.tidy(self.execute)

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A new tensor in registered memory, with undefined content; all ranks call this.

        Raises:
            SpecError: on all ranks, if any has no memory. ExecutionError: as ``run``.
        """
        return self._regions.empty(shape, dtype, self.execute)

    def is_registered(self, address: int, size: int) -> bool:
        """Whether this rank's memory of ``size`` bytes there is registered."""
        return self._regions.holds(address, size)

    def flight(self, last: int | None = None) -> FlightRecord:
        """The last calls of this rank, with algorithm, bytes, state and times; see ``commlib.runtime.flight``."""
        return self._recorder.record(last=last)

    def _check_exposed(self, prepared: Prepared, input: int, output: int) -> None:
        if prepared.launch.reach != REACH_REGIONS:
            return
        for buffer in prepared.exposed:
            address = input if buffer is Buffer.INPUT else output
            needed = prepared.size(self.rank, buffer)
            if needed and not self.is_registered(address, needed):
                raise SpecError(
                    f"{prepared.launch.algorithm.name} works on other ranks' tensors: the {buffer.name.lower()} of "
                    f"rank {self.rank} must be in registered memory (ShmSession.register or empty)",
                    rank=self.rank,
                )


class _Bell:
    """Rings a peer for the watch: a fence, then the bell."""

    def __init__(self, bells: Bells) -> None:
        self._bells = bells
        self._lock = threading.Lock()

    def __call__(self, peer: int) -> None:
        with self._lock:  # a locked instruction is a full fence
            self._bells.ring(peer)


class _Stall:
    """What the context calls when nothing moves: tells the watch, which keeps the mappings alive, the call's time."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.context: Context | None = None

    def __call__(self, seconds: float, waits: Sequence[tuple[int, int, int, int, int]]) -> None:
        context = self.context  # once: another thread may close meanwhile
        if context is not None:
            self.watch.timeout = context.timeout
        self.watch.on_stall(seconds, waits)


def _close(context: Context, stall: _Stall, recorder: Recorder, owner: int) -> None:
    """Only in the process that opened the session: a fork of it has no say."""
    recorder.close()
    stall.watch.on_error = _forget
    context.close()
    stall.context = None  # they refer to each other no more, and go when the last planned call goes
    if os.getpid() == owner:
        stall.watch.close()


def _forget(_error: BaseException) -> None:
    """Keeps nothing."""
