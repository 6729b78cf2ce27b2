"""Communicator: runs Algorithms on the processes of a ``torch.distributed`` gloo group."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from commlib.errors import CommlibError, ExecutionError, MismatchError, PeerFailedError, SpecError
from commlib.ir.algorithm import Algorithm
from commlib.reductions import Reduction, reduction
from commlib.runtime.agreement import APART, TRANSPORTS, Hosts, Meeting, Suspect
from commlib.runtime.binding import Binding, Tensors, classify, shard_elements
from commlib.runtime.carriers import Carrier, EngineCarrier, TableCarrier
from commlib.runtime.cause import AFTER, Cause
from commlib.runtime.engine import Hook
from commlib.runtime.flight import FlightRecord
from commlib.runtime.forks import FORKED
from commlib.runtime.gloo import GlooTransport
from commlib.runtime.gloo_group import checked, keys_of, number_of, store_host
from commlib.runtime.launches import Launch, Signature, plan_launch
from commlib.runtime.monitor import Monitor, beat_for
from commlib.runtime.shm.options import ShmUnavailable
from commlib.runtime.shm.prepared import as_sizes, prove
from commlib.runtime.tabulate import NotTabulable
from commlib.runtime.wire import Call

TILE_BYTES = 4 << 20
"""Larger tiles mean fewer messages: on few cores each costs more in wake-ups than pipelining gains (measured)."""
LONGEST = 1e6
"""The longest timeout in seconds: what clocks and gloo's milliseconds take."""
_FIRST_TAG = 0x0C0B1000
_LAUNCHES_KEPT = 64


@dataclass
class _Ready:
    """A launch, and, after its first call, what carries it."""

    launch: Launch
    carrier: Carrier | None = None
    prepared: Any = None


@dataclass
class _State:
    """What is remembered between calls."""

    calls: int = 0
    meetings: int = 0
    failed: str | None = None
    connected: bool = False
    hosts: Hosts = APART
    table: TableCarrier | None = None
    launches: dict[Signature, _Ready] = field(default_factory=dict)


class Communicator:
    """Runs algorithms on a group's processes, one rank each.

    Making one does not communicate, but all ranks of a group make their communicators in the same order. Ranks are
    those of the group. Calls are made in the same order by all ranks; there is no barrier between them. A
    communicator runs one call at a time: threads that call at once each need one of their own.

    In its first call (or in ``connect``) the ranks agree on how each pair of them is connected. On one host they run
    tables over shared memory; on several, the engine uses shared memory inside a host and gloo between hosts.

    Args:
        group: an initialised gloo group (default: the world); any subgroup will do.
        timeout: seconds that a call may take; then, or when a peer is found to have failed, every rank whose
            remaining steps depend on it ends with an ExecutionError that names the root cause.
        fifo_depth: messages in flight per connection; an algorithm must be proved free of deadlock at this depth.
        tile_bytes: chunks larger than this are sent in tiles, and the program repeats for each; where shared memory
            has a part, tiles are at most 512 KB.
        hook: called before each step with (threadblock, step, tile); for tests.
        transport: "auto": shared memory where ranks are on one host and it can be had, gloo elsewhere; "gloo": only
            that; "shm": refuse to run without shared memory among all.

    Raises:
        SpecError: the group has no gloo, this process is not in it, or a number or name is not allowed.
    """

    def __init__(
        self,
        group: Any = None,
        timeout: float = 30.0,
        fifo_depth: int = 8,
        tile_bytes: int = TILE_BYTES,
        hook: Hook | None = None,
        transport: str = "auto",
    ) -> None:
        self._group = checked(group)
        self.rank, self.ranks = self._group.rank(), self._group.size()
        self.timeout, self.fifo_depth, self.tile_bytes, self.hook = _seconds(timeout), fifo_depth, tile_bytes, hook
        if fifo_depth < 1 or tile_bytes < 1:
            raise SpecError(f"fifo_depth ({fifo_depth}) and tile_bytes ({tile_bytes}) are at least 1")
        if transport not in TRANSPORTS:
            raise SpecError(f"a transport is one of {', '.join(TRANSPORTS)}, not {transport!r}")
        self.transport = transport
        self._agreed = (tile_bytes, fifo_depth, transport == "gloo")
        self._busy, self._process = threading.Lock(), os.getpid()
        self._state = _State(connected=transport == "gloo" or self.ranks == 1)
        number = number_of(self._group)
        self._keys = keys_of(self._group, f"commlib/{number}")
        self._monitor = Monitor(self._keys, self.rank, self.ranks, beat_for(timeout), host=store_host(self._group))
        gloo = GlooTransport(self._group, _FIRST_TAG + number, fifo_depth, self._monitor)
        self._engine = EngineCarrier(gloo, self._monitor.report, tile_bytes)
        self._opened = contextlib.ExitStack()
        self._opened.callback(self._engine.close)
        self._opened.callback(self._monitor.close)
        self._finalizer = weakref.finalize(self, self._opened.close)

    def close(self) -> None:
        """End the communicator's threads and let go of shared memory; a later call is refused."""
        self._state.failed = self._state.failed or "it was closed"
        self._finalizer()

    def interrupt(self, text: str) -> None:
        """End the call that runs, here and on the ranks that wait for it; ``text`` says why.

        The communicator has failed then. Returns at once; the call ends at its next wait, and ends well if it is done
        before. A signal handler may call this within it.
        """
        cause = self._monitor.interrupted = Cause("failed", self.rank, text, self.rank)
        if self._state.table is not None:  # one that opens now looks when it has
            self._state.table.session.watch.publish(cause)
        self._monitor.interrupt(cause)

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def hosts(self) -> tuple[int, ...]:
        """The host of each rank, counted from 0; empty before ranks have connected, and with transport "gloo"."""
        return self._state.hosts.numbers

    def flight(self, last: int | None = None) -> FlightRecord:
        """The last calls of this rank, with algorithm, bytes, state and times; see ``commlib.runtime.flight``.

        On one host those over shared memory, which are all that a table can express.
        """
        table = self._state.table
        return self._engine.flight.record(last) if table is None else table.session.flight(last)

    @property
    def monitor(self) -> Monitor:
        """What is known of the other ranks, for messages beside the calls."""
        return self._monitor

    def connect(self, timeout: float | None = None, suspect: Suspect | None = None) -> None:
        """Agree on the transports now, not in the first call; all ranks do this alike, before any call.

        Args:
            suspect: asked, besides the monitor, why ranks do not come (see ``Attendance``): of those that have made no
                communicator yet the monitor knows nothing.

        Raises:
            SpecError: transport "shm", and there is none. ExecutionError: as ``run``.
        """
        with self._alone():
            self._refuse_if_failed()
            seconds = self.timeout if timeout is None else _seconds(timeout)
            call = Call(self._state.calls + 1, b"", "connecting")
            self._monitor.enter(call, seconds)
            with self._failing(SpecError):
                self._connect(call, time.monotonic() + seconds, suspect)
            self._monitor.leave()

    def run(
        self,
        algorithm: Algorithm,
        input: torch.Tensor | None = None,
        output: torch.Tensor | None = None,
        op: str = "sum",
        *,
        factor: complex = 1.0,
        sizes: Sequence[Sequence[int]] | None = None,
        elements: int | None = None,
        in_place: bool | None = None,
        timeout: float | None = None,
        unsafe: bool = False,
        text: str = "",
    ) -> torch.Tensor:
        """Run an algorithm; every rank of the group calls this with the same algorithm, type, op and sizes.

        Without ``output``, or with one that lies where in place puts it, the call is in place: ``input`` is then the
        span that holds both (for allgather: ``ranks`` shards, one's own already in it). A rank without input gives
        only ``output``; one without output gives an empty one, or ``in_place=False`` to have outputs made.

        Args:
            input: any shape, contiguous or not; never modified out of place.
            op: a name of ``commlib.reductions``; ignored by collectives that only move.
            factor: of premul_sum, for this rank's contribution.
            sizes: of alltoallv: ``sizes[s][d]`` elements go from rank s to rank d.
            elements: the size of a shard, where the tensors do not say.
            timeout: seconds for this call, if not the communicator's.
            unsafe: run an algorithm that is not proved in this placement.
            text: what is called, in words, for errors; equal on all ranks (default: made up).

        Returns:
            The output: ``output`` if given, in place the span or the part of it that is the output.

        Raises:
            VerificationError: the algorithm is not proved in this placement.
            SpecError: tensors, op and algorithm do not fit, or it has one-sided steps between ranks that share no
                memory.
            ExecutionError: the run failed, and the group cannot be used after that; or another thread is in a call,
                which goes on unharmed.
        """
        with self._alone():
            seconds = self.timeout if timeout is None else _seconds(timeout)
            return self._run(algorithm, (input, output, in_place), op, factor, (elements, sizes, text), seconds, unsafe)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if os.getpid() != self._process:
            raise ExecutionError(f"rank {self.rank}: {FORKED}", rank=self.rank)
        if not self._busy.acquire(blocking=False):
            raise ExecutionError(f"rank {self.rank}: another call is running on this communicator", rank=self.rank)
        try:
            yield
        finally:
            self._busy.release()

    def _run(
        self,
        algorithm: Algorithm,
        given: tuple[torch.Tensor | None, torch.Tensor | None, bool | None],
        op: str,
        factor: complex,
        size: tuple[int | None, Sequence[Sequence[int]] | None, str],
        timeout: float,
        unsafe: bool,
    ) -> torch.Tensor:
        self._refuse_if_failed()
        self._refuse_other_size(algorithm)
        reduce = reduction(op) if algorithm.collective.reduces or not algorithm.collective.specified else None
        tensors = classify(algorithm.collective, self.rank, *given)
        if not unsafe:
            prove(algorithm, tensors.placement, self.fifo_depth)
        ready = self._launch(algorithm, tensors, reduce, *size)
        scale = factor if reduce is not None and reduce.prepare == "scale" else None
        binding = Binding(ready.launch.layout, self.rank, tensors, scale)
        self._execute(ready, binding, timeout)
        return binding.finish(self.ranks if reduce is not None and reduce.finish == "divide" else None)

    def _refuse_if_failed(self) -> None:
        if self._state.failed is None and self._monitor.cause is not None:
            self._state.failed = self._monitor.cause.text
        if self._state.failed is not None:
            cause = self._monitor.cause
            kind = MismatchError if cause is not None and cause.kind == "mismatch" else PeerFailedError
            raise kind(
                f"rank {self.rank}: this communicator has failed before call {self._state.calls + 1}: "
                f"{self._state.failed}. {AFTER}",
                rank=self.rank,
            )

    def _refuse_other_size(self, algorithm: Algorithm) -> None:
        if not isinstance(algorithm, Algorithm):
            raise SpecError(f"the algorithm is a {type(algorithm).__name__}, not a compiled Algorithm")
        if algorithm.ranks != self.ranks:
            raise SpecError(f"{algorithm.name} is for {algorithm.ranks} ranks, the group has {self.ranks}")

    def _launch(
        self,
        algorithm: Algorithm,
        tensors: Tensors,
        reduce: Reduction | None,
        elements: int | None,
        sizes: Sequence[Sequence[int]] | None,
        text: str,
    ) -> _Ready:
        if elements is None:
            elements = 0 if sizes is not None else shard_elements(algorithm.collective, self.rank, tensors)
        name = None if reduce is None else reduce.name
        signature = Signature(algorithm, tensors.placement, elements, as_sizes(sizes), tensors.dtype, name, text)
        launches = self._state.launches
        if signature not in launches:
            if len(launches) >= _LAUNCHES_KEPT:
                launches.pop(next(iter(launches)))
            launches[signature] = _Ready(plan_launch(signature, self._agreed))
        return launches[signature]

    def _execute(self, ready: _Ready, binding: Binding, timeout: float) -> None:
        state, launch = self._state, ready.launch
        state.calls += 1  # also of a call that is refused: one number never stands for two calls
        call = Call(state.calls, launch.fingerprint, launch.text)
        deadline = time.monotonic() + timeout
        self._monitor.enter(call, timeout)
        with self._failing(SpecError):
            carrier = ready.carrier or self._place(ready, call, deadline)
            self._monitor.moved()  # it may have waited for others in there
        with self._failing():
            trouble = carrier.execute(ready.prepared, binding, call, deadline, self.hook)
        if trouble is None:
            self._monitor.leave()
        else:
            self._tell(trouble)

    def _place(self, ready: _Ready, call: Call, deadline: float) -> Carrier:
        """Find what carries a launch; the ranks meet for that where they have not yet.

        Raises:
            SpecError: nothing can; on all ranks alike.
        """
        self._connect(call, deadline)
        table = self._state.table
        if table is not None:
            try:
                ready.prepared, ready.carrier = table.prepare(ready.launch), table
                return table
            except NotTabulable:
                if not self._engine.met:
                    self._engine.meet(self._meeting("engine", call, deadline), self._state.hosts)
        ready.prepared, ready.carrier = self._engine.prepare(ready.launch), self._engine
        return self._engine

    def _connect(self, call: Call, deadline: float, suspect: Suspect | None = None) -> None:
        """Agree on the transports, once."""
        state = self._state
        if state.connected:
            return
        meeting = self._meeting("connect", call, deadline, suspect)
        state.hosts = meeting.hosts(self.transport)
        if not state.hosts.together:
            self._engine.meet(meeting, state.hosts)
        else:
            self._open_session(meeting)
        state.connected = True

    def _open_session(self, meeting: Meeting) -> None:
        try:
            self._state.table = TableCarrier.open(meeting, self.fifo_depth, self.tile_bytes)
            self._opened.callback(self._state.table.close)
            if self._monitor.interrupted is not None:
                self._state.table.session.watch.publish(self._monitor.interrupted)
        except ShmUnavailable as error:
            if "shm" in self._state.hosts.wanted:
                raise SpecError(f"transport='shm', and these ranks share no memory: {error}") from error

    def _meeting(self, prefix: str, call: Call, deadline: float, suspect: Suspect | None = None) -> Meeting:
        """The next meeting; each has keys of its own, or one after a refusal would find what the last one left."""
        self._state.meetings += 1
        prefix = f"{prefix}/{self._state.meetings}"
        return Meeting(self._keys, prefix, self._monitor, self.rank, self.ranks, call, deadline, suspect)

    @contextlib.contextmanager
    def _failing(self, *refusals: type[CommlibError]) -> Iterator[None]:
        """When this rank ends with an error, tell the others; ``refusals`` are alike on all, and harm nothing."""
        try:
            yield
        except refusals:
            self._monitor.leave()
            raise
        except BaseException as error:
            table = self._state.table
            found = None if table is None else table.session.watch.cause
            self._tell(found or Cause("failed", self.rank, f"rank {self.rank} failed: {_text(error)}", self.rank))
            raise

    def _tell(self, cause: Cause) -> None:
        cause = self._monitor.report(cause)
        self._state.failed = cause.text
        if self._state.table is not None:
            self._state.table.session.watch.publish(cause)


def _text(error: BaseException) -> str:
    return error.message if isinstance(error, CommlibError) else str(error) or type(error).__name__


def _seconds(timeout: float) -> float:
    if isinstance(timeout, (int, float)) and 0 < timeout <= LONGEST:
        return float(timeout)
    raise SpecError(f"a timeout is a number of seconds above 0 and at most {LONGEST:.0f}, not {timeout!r}")
