"""Mixed transports: shared memory between ranks of one host, gloo between hosts, in one launch of the engine."""

from __future__ import annotations

from dataclasses import replace

from commlib.collectives import Buffer
from commlib.runtime.cause import Cause
from commlib.runtime.engine import Buffers
from commlib.runtime.gloo import GlooTransport
from commlib.runtime.kernels import Kernels
from commlib.runtime.plan import Link, RankPlan
from commlib.runtime.shm.endpoint import Exposed, NeighbourEndpoint, SharedBell
from commlib.runtime.shm.neighbours import Neighbours
from commlib.runtime.transport import Frame, Wait
from commlib.runtime.wire import Call

_Route = int | tuple[int, int]
"""Where a link of the plan goes: the number of gloo's link, or (peer, channel) in shared memory."""


class MixedEndpoint:
    """One rank's side of one launch over both; one-sided steps reach the ranks of its host."""

    def __init__(
        self,
        transport: GlooTransport,
        host: Neighbours,
        call: Call,
        plan: RankPlan,
        itemsize: int,
        deadline: float,
        exposed: Exposed | None = None,
    ) -> None:
        self._host, self._call, self._deadline = host, call, deadline
        self._sends, sends = _routes(plan.sends, host)
        self._receives, receives = _routes(plan.receives, host)
        self._bell = bell = SharedBell(host)
        far = transport.open(call, replace(plan, sends=sends, receives=receives), itemsize, deadline, bell)
        near = NeighbourEndpoint(host, call, exposed, lambda cause: far.failure([], cause))
        bell.watched, far.suspect = near.changed, near.suspect_stalled
        self._gloo, self._near = far, near
        self.ring = bell.ring
        self.signal, self.try_wait, self.peer_buffer = (
            self._near.signal,
            self._near.try_wait,
            self._near.peer_buffer,
        )

    @property
    def cause(self) -> Cause | None:
        """Why the launch failed, if it did."""
        return self._gloo.cause

    def begin(self, buffers: Buffers, kernels: Kernels) -> Buffers:
        """Before the first step: what the engine works on, which is memory in reach where others reach it."""
        self._near.meet(lambda waits: self.wait_any(self._deadline, waits))
        found = dict(buffers)
        for buffer in Buffer:
            if self._near.exposes(buffer):
                found[buffer] = kernels.typed(self._near.peer_buffer(self._host.rank, buffer))
                if buffer is not Buffer.SCRATCH:
                    kernels.copy(found[buffer], buffers[buffer])
        return found

    def end(self, buffers: Buffers, worked_on: Buffers, kernels: Kernels) -> None:
        """After the last step: the output to where it belongs."""
        if worked_on[Buffer.OUTPUT] is not buffers[Buffer.OUTPUT]:
            kernels.copy(buffers[Buffer.OUTPUT], worked_on[Buffer.OUTPUT])

    def try_send(self, link: int, size: int) -> Frame | None:
        """A frame of gloo's, or a slot of the peer's segment."""
        route = self._sends[link]
        return self._gloo.try_send(route, size) if isinstance(route, int) else self._near.try_send(*route, size)

    def commit(self, link: int, frame: Frame) -> None:
        """Send it."""
        route = self._sends[link]
        if isinstance(route, int):
            self._gloo.commit(route, frame)
        else:
            self._near.commit(*route, frame)

    def try_recv(self, link: int, size: int) -> Frame | None:
        """The next message, if it has come."""
        route = self._receives[link]
        return self._gloo.try_recv(route, size) if isinstance(route, int) else self._near.try_recv(*route, size)

    def release(self, link: int, frame: Frame) -> None:
        """Give its memory back."""
        route = self._receives[link]
        if isinstance(route, int):
            self._gloo.release(route, frame)
        else:
            self._near.release(*route)

    def wait_any(self, deadline: float, waits: list[Wait]) -> None:
        """Wait for either; a rank of this host that has said it failed is blamed at once."""
        cause = self._near.suspect([wait.peer for wait in waits if wait.peer is not None])
        if cause is not None:
            raise self._gloo.failure(waits, cause)
        self._gloo.wait_any(deadline, waits)
        self._near.blocked.clear()

    def finish(self, deadline: float) -> Cause | None:
        """All steps are done: wait until the ranks of other hosts have what they were sent."""
        self._near.blocked.clear()
        found = self._gloo.finish(deadline)
        self._part()
        return found

    def _part(self) -> None:
        """Nobody waits here any more: the parts know each other no longer, so that they go at once."""
        self._bell.watched, self._gloo.suspect = _unchanged, _unknown

    def abort(self, cause: Cause) -> None:
        """Tell the others why nothing more will come."""
        self._host.publish(cause, self._call.number)
        self._gloo.abort(cause)
        self._part()


def _unchanged() -> bool:
    return False


def _unknown(_peers: tuple[int, ...]) -> Cause | None:
    return None


def _routes(links: tuple[Link, ...], host: Neighbours) -> tuple[list[_Route], tuple[Link, ...]]:
    """The way of each link, and those that are gloo's."""
    routes, far = list[_Route](), list[Link]()
    for link in links:
        if link.peer in host.index:
            routes.append((link.peer, link.channel))
        else:
            routes.append(len(far))
            far.append(link)
    return routes, tuple(far)
