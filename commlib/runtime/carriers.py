"""Carriers: what carries out a communicator's calls. The engine, over gloo or a mix with shared memory; or tables.

Tables over shared memory are for groups of one host. What no table can express, and what no verifier has proved, the
engine runs there, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from commlib.collectives import Buffer
from commlib.errors import VerificationError
from commlib.ir.algorithm import Algorithm
from commlib.runtime.agreement import APART, Hosts, Meeting
from commlib.runtime.binding import Binding
from commlib.runtime.call_log import CallLog
from commlib.runtime.cause import Cause
from commlib.runtime.engine import Buffers, Hook, execute
from commlib.runtime.gloo import GlooEndpoint, GlooTransport
from commlib.runtime.kernels import Array
from commlib.runtime.launches import Launch
from commlib.runtime.mixed import MixedEndpoint
from commlib.runtime.onesided import refuse_unreachable
from commlib.runtime.plan import RankPlan, moved, plan_rank
from commlib.runtime.shm.control import CHANNELS
from commlib.runtime.shm.endpoint import Exposed, areas_of
from commlib.runtime.shm.interface import REACH_READV
from commlib.runtime.shm.neighbours import Neighbours
from commlib.runtime.shm.options import ShmOptions
from commlib.runtime.shm.session import Prepared, ShmSession
from commlib.runtime.tabulate import NotTabulable
from commlib.runtime.wire import Call

SHARED_TILE = 512 << 10
"""Bytes of a tile where shared memory has a part: what one rank writes and another reads stays in the cache."""
Report = Callable[[Cause], Cause]
"""Publishes a cause; gives the one that was published first."""


class Carrier(Protocol):
    """Carries out launches; all ranks prepare and execute the same ones in the same order."""

    def prepare(self, launch: Launch) -> Any:
        """What calls of one launch share.

        Raises:
            SpecError: it cannot run here; on all ranks alike.
        """
        ...

    def execute(self, prepared: Any, binding: Binding, call: Call, deadline: float, hook: Hook | None) -> Cause | None:
        """Run one call. A cause: this rank is done, but the group has failed.

        Raises:
            ExecutionError: the call failed.
        """
        ...


@dataclass
class _Plan:
    """What the engine needs for a launch; ``near``: shared memory has room for its messages. ``text`` and ``bytes``
    (that this rank moves) are for the flight record."""

    launch: Launch
    plan: RankPlan
    scratch: Array
    near: bool
    exposed: Exposed | None
    text: str
    bytes: int


class EngineCarrier:
    """The Python engine. Without hosts it is gloo's alone; ``meet`` finds them."""

    def __init__(self, transport: GlooTransport, report: Report, tile_bytes: int) -> None:
        self._transport, self._report = transport, report
        self._tile_bytes, self._payload = tile_bytes, SHARED_TILE
        self._hosts: Hosts = APART
        self._near: Neighbours | None = None
        self.met = False
        self.flight = CallLog(transport.rank, transport.group.size(), transport.monitor.waits)

    def meet(self, meeting: Meeting, hosts: Hosts) -> None:
        """Share memory with the ranks of this host, where that can be; all ranks of the group call this.

        Raises:
            ExecutionError: a rank did not come.
        """
        self._hosts, self._near = meeting.neighbours(hosts, self._transport.fifo_depth, self._payload)
        self.met = True

    def prepare(self, launch: Launch) -> _Plan:
        """Plan this rank."""
        algorithm, rank, hosts = launch.signature.algorithm, self._transport.rank, self._hosts
        itemsize, shared = launch.kernels.itemsize, any(hosts.shared)
        plan = plan_rank(
            algorithm, launch.layout, rank, itemsize, min(self._tile_bytes, SHARED_TILE) if shared else self._tile_bytes
        )
        near = shared and plan.message_elements * itemsize <= self._payload and _channels(algorithm) <= CHANNELS
        where = "gloo between hosts" if shared else "gloo"
        refuse_unreachable(algorithm, lambda rank, peer: near and hosts.reach(rank, peer), where)
        exposed = None
        if near and algorithm.one_sided and self._near is not None:
            areas = (areas_of(algorithm, launch.layout, peer, itemsize) for peer in self._near.ranks)
            exposed = Exposed(tuple(areas))
        scratch = launch.kernels.empty(plan.scratch_elements if exposed is None else 0)
        text = launch.signature.text or f"{algorithm.collective.name} {launch.text}"
        return _Plan(launch, plan, scratch, near and self._near is not None, exposed, text, moved(plan) * itemsize)

    def execute(
        self, prepared: _Plan, binding: Binding, call: Call, deadline: float, hook: Hook | None
    ) -> Cause | None:
        """Run one call."""
        with self.flight.call(call.number, prepared.text, prepared.bytes):
            return self._execute(prepared, binding, call, deadline, hook)

    def _execute(
        self, prepared: _Plan, binding: Binding, call: Call, deadline: float, hook: Hook | None
    ) -> Cause | None:
        plan, kernels = prepared.plan, prepared.launch.kernels
        buffers: Buffers = {**binding.buffers(), Buffer.SCRATCH: prepared.scratch}
        endpoint, monitor = self._open(prepared, call, deadline), self._transport.monitor
        monitor.on_interrupt = endpoint.ring
        try:
            if isinstance(endpoint, MixedEndpoint):
                worked_on = endpoint.begin(buffers, kernels)
                execute(plan, worked_on, endpoint, kernels, deadline, hook)
                endpoint.end(buffers, worked_on, kernels)
            else:
                execute(plan, buffers, endpoint, kernels, deadline, hook)
        except BaseException as error:
            rank = self._transport.rank
            failed = Cause("failed", rank, f"rank {rank} failed: {error}", rank)
            endpoint.abort(endpoint.cause or self._report(failed))
            raise
        else:
            return endpoint.finish(deadline)
        finally:
            monitor.on_interrupt = None

    def _open(self, prepared: _Plan, call: Call, deadline: float) -> GlooEndpoint | MixedEndpoint:
        itemsize = prepared.launch.kernels.itemsize
        if self._near is None or not prepared.near:
            return self._transport.open(call, prepared.plan, itemsize, deadline)
        return MixedEndpoint(self._transport, self._near, call, prepared.plan, itemsize, deadline, prepared.exposed)

    def close(self) -> None:
        """Let go of what is shared, then of gloo."""
        self.flight.close()
        if self._near is not None:
            self._near.close()
            self._near = None
        self._transport.close()


class TableCarrier:
    """Tables over a session of all ranks."""

    def __init__(self, session: ShmSession) -> None:
        self.session = session

    @classmethod
    def open(cls, meeting: Meeting, depth: int, tile_bytes: int) -> TableCarrier:
        """Open the session; all ranks of the group call this.

        Raises:
            ShmUnavailable: on all ranks alike.
            ExecutionError: a rank did not come.
        """
        options = ShmOptions(depth=depth, tile_bytes=min(tile_bytes, SHARED_TILE))
        store = meeting.store("session", range(meeting.ranks))
        return cls(ShmSession.open(store, meeting.rank, meeting.ranks, options, meeting.seconds))

    def prepare(self, launch: Launch) -> Prepared:
        """Make a table.

        Raises:
            NotTabulable: the engine must run this: no table can express it, it is not proved, or it works on other
                ranks' tensors in a way that is not open to ordinary ones.
        """
        s = launch.signature
        reads, writes = s.algorithm.touches_peers_tensors
        if writes or (reads and not self.session.readv):
            raise NotTabulable(f"{s.algorithm.name} works on the tensors of other ranks")
        reach = REACH_READV if reads else None
        try:
            return self.session.prepare(s.algorithm, s.placement, s.elements, s.dtype, s.reduce, s.sizes, s.text, reach)
        except VerificationError as error:
            raise NotTabulable(f"{s.algorithm.name} is not proved") from error

    def execute(
        self,
        prepared: Prepared,
        binding: Binding,
        call: Call,  # noqa: ARG002
        deadline: float,
        hook: Hook | None,
    ) -> Cause | None:
        """Run one call; the session's own number of it stands in errors."""
        buffers = binding.buffers()
        context = self.session.context
        if context.trace is not hook:
            context.trace = hook
        input, output = (_address(buffers[buffer]) for buffer in (Buffer.INPUT, Buffer.OUTPUT))
        self.session.run(prepared, input, output, max(0.001, deadline - time.monotonic()))
        return None

    def close(self) -> None:
        """Close the session."""
        self.session.close()


def _channels(algorithm: Algorithm) -> int:
    return int(algorithm.tb_channel.max(initial=-1)) + 1


def _address(array: Any) -> int:
    return int(array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data)
