"""Opening a group: which transport its ranks get, agreed through the store, and the messages between two ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from commlib.errors import ExecutionError
from commlib.runtime.attendance import Attendance, AttendedStore
from commlib.runtime.cause import store_lost
from commlib.runtime.communicator import LONGEST
from commlib.runtime.flight import FlightRecord, listen
from commlib.runtime.gloo_group import cloned
from commlib.runtime.mixed_messages import MixedP2P
from commlib.runtime.shm.near import Near
from commlib.runtime.shm.options import ShmOptions, ShmUnavailable
from commlib.runtime.shm.p2p import P2P
from commlib.runtime.shm.rendezvous import Board
from commlib.runtime.shm.session import ShmSession
from commlib.runtime.tensors import is_plain, plain
from commlib.torch_backend.compat import c10d
from commlib.torch_backend.failures import TorchSpecError, as_torch
from commlib.torch_backend.messages import MessageRunner, gloo_group
from commlib.torch_backend.operand import check
from commlib.torch_backend.options import Options
from commlib.torch_backend.point_to_point import GlooPointToPoint, PointToPoint
from commlib.torch_backend.runner import Runner, SoloRunner
from commlib.torch_backend.shared import SharedRunner
from commlib.torch_backend.shared_messages import SharedPointToPoint
from commlib.torch_backend.work import PendingWork


class Opened:
    """What a group runs on. ``store`` holds the group's own keys; ``session`` is there if all ranks share memory."""

    def __init__(
        self,
        store: Any,
        rank: int,
        ranks: int,
        runner: Runner,
        messages: PointToPoint | None,
        session: ShmSession | None = None,
    ) -> None:
        self.store, self.rank, self.ranks, self.runner, self.session = store, rank, ranks, runner, session
        self._messages = messages
        self._splits = 0

    def flight(self, last: int | None = None) -> FlightRecord:
        """The last calls of this rank.

        Raises:
            SpecError: a group of one rank keeps none.
        """
        if self.session is not None:
            return self.session.flight(last)
        if isinstance(self.runner, MessageRunner):
            return self.runner.flight(last)
        raise TorchSpecError("a group of one rank keeps no flight record")

    def send(self, tensor: torch.Tensor, peer: int, tag: int, timeout: float) -> PendingWork:
        """Begin to send a tensor of any strides."""
        check(tensor, "tensor to send", False)
        return self._with(peer, tag).send(plain(tensor).view(-1), peer, tag, timeout)

    def receive(self, tensor: torch.Tensor, peer: int | None, tag: int, timeout: float) -> PendingWork:
        """Begin to receive a tensor of any strides."""
        check(tensor, "tensor to receive", True)
        messages = self._with(peer, tag)
        if is_plain(tensor):
            return messages.receive(tensor.detach().view(-1), peer, tag, timeout, None)
        line = torch.empty(tensor.numel(), dtype=tensor.dtype)
        return messages.receive(line, peer, tag, timeout, _copier(tensor.detach(), line))

    def _with(self, peer: int | None, tag: int) -> PointToPoint:
        if peer is not None and (peer == self.rank or not 0 <= peer < self.ranks):
            raise TorchSpecError(f"rank {self.rank} of {self.ranks} cannot send to or receive from rank {peer}")
        if self._messages is None:
            raise TorchSpecError("a group of one rank has nobody to send to or receive from")
        if tag < 0:
            raise TorchSpecError(f"a tag is at least 0, not {tag}")
        return self._messages

    def split(
        self,
        parent: Any,
        ranks: Sequence[int],
        timeout: Any = None,
        opts: Any = None,
        group_name: str | None = None,
        group_desc: str | None = None,
        *_: Any,
        **__: Any,
    ) -> Any:
        """A group of some ranks of ``parent``; None on the others."""
        self._splits += 1
        if self.rank not in ranks:
            return None
        name = group_name or f"{parent.group_name}:split:{self._splits}:{'-'.join(map(str, ranks))}"
        given = SimpleNamespace(
            store=c10d.PrefixStore(f"split/{name}", self.store),
            group_rank=list(ranks).index(self.rank),
            group_size=len(ranks),
            group_id=name,
            timeout=timeout or timedelta(seconds=parent._core.timeout),
        )
        group = type(parent).create(given, opts)
        group._set_group_desc(group_desc or "undefined")
        return group

    def close(self) -> None:
        """Let go of the connections."""
        if self._messages is not None:
            self._messages.close()


def _copier(tensor: torch.Tensor, line: torch.Tensor) -> Callable[[], None]:
    def copy() -> None:
        tensor.copy_(line.view(tensor.shape))

    return copy


def open_group(store: Any, rank: int, ranks: int, timeout: float, name: str, options: Options) -> Opened:
    """Open the transport of a group; every rank of it calls this.

    Keys of a group that was made before on the same store, under the same name, are not touched: each rank counts
    how often it has joined.

    Raises:
        DeadlineError: not all came within ``timeout`` seconds. PeerFailedError: one cannot, or the store is gone.
        ShmUnavailable, SpecError: the options ask for what is not there.
    """
    limit = min(timeout, LONGEST)
    attendance = Attendance(rank, ranks, limit, name)

    def join() -> Opened:
        generation = store.add(f"commlib/joined/{rank}", 1)
        own = c10d.PrefixStore(f"commlib/{generation}", store)
        if ranks == 1:
            return Opened(own, rank, ranks, SoloRunner(), None)
        opened = _Opening(own, rank, ranks, limit, options, attendance).open(name)
        attendance.leave()
        return opened

    try:
        opened = attendance.within(join)
    except ExecutionError as error:
        raise as_torch(error) from error.__cause__
    except dist.DistNetworkError as error:
        raise as_torch(store_lost(rank, f"opening group {name}", error)) from error
    if ranks > 1:
        listen()  # to a signal that asks for the flight record: only this thread may be the one that can
    return opened


@contextlib.contextmanager
def _closing_on_errors(opened: Runner | PointToPoint) -> Iterator[None]:
    try:
        yield
    except BaseException:
        opened.close()
        raise


@dataclass(frozen=True)
class _Opening:
    """What the steps of opening a group share; ``timeout`` is for each call later: for this the attendance has one."""

    store: Any
    rank: int
    ranks: int
    timeout: float
    options: Options
    attendance: Attendance

    def open(self, name: str) -> Opened:
        """Over shared memory if all ranks have it, else over gloo."""
        self.attendance.show(self.store)
        try:
            if self.options.transport != "gloo":
                automatic = self.options.transport == "auto"
                with contextlib.suppress(ShmUnavailable) if automatic else contextlib.nullcontext():
                    return self._over_shared_memory()
            return self._over_gloo(name)
        except BaseException as error:
            self.attendance.fail(error)
            raise

    def _keys(self, prefix: str, members: Sequence[int]) -> AttendedStore:
        return AttendedStore(c10d.PrefixStore(prefix, self.store), self.attendance, members)

    def _over_shared_memory(self) -> Opened:
        """A session of all ranks.

        Raises:
            ShmUnavailable: on all ranks alike.
        """
        keys = self._keys("shm", range(self.ranks))
        seconds = self.attendance.seconds
        session = ShmSession.open(keys, self.rank, self.ranks, self.options.shm, self.timeout, seconds)
        messages = SharedPointToPoint(P2P(session))
        return Opened(self.store, self.rank, self.ranks, SharedRunner(session), messages, session)

    def _over_gloo(self, name: str) -> Opened:
        """A gloo group, and what runs on it. Done when all are: of one that is lost the others hear here."""
        group = self._connected(f"commlib-{name}")
        runner = MessageRunner(group, self.timeout, self.options.transport, self.attendance)
        with _closing_on_errors(runner):
            messages = self._mixed(group, runner) if len(set(runner.hosts)) > 1 else GlooPointToPoint(group)
            with _closing_on_errors(messages):
                self._meet("opened")
        return Opened(self.store, self.rank, self.ranks, runner, messages)

    def _meet(self, prefix: str) -> None:
        keys, seconds = self._keys(prefix, range(self.ranks)), self.attendance.seconds
        board = Board(keys, self.rank, self.ranks, seconds, "opening a group over gloo")
        board.exchange({})
        board.clear()

    def _connected(self, name: str) -> Any:
        """A gloo group, once all are in it: gloo fails where a rank leaves while others still connect."""
        given, apart = (self.store, self.rank, self.ranks, self.timeout, name), cloned(self.store)
        if apart is None:
            self._meet("shown")
        group = self.attendance.watch(lambda: gloo_group(*given, apart), holds_store=apart is None)
        self._meet("connected")
        return group

    def _mixed(self, group: Any, runner: MessageRunner) -> PointToPoint:
        """Messages over shared memory inside a host, and over the gloo group between hosts."""
        hosts, shm = runner.hosts, self.options.shm or ShmOptions()
        members = [peer for peer, host in enumerate(hosts) if host == hosts[self.rank]]
        keys = self._keys(f"messages/{hosts[self.rank]}", members)
        near = Near.open(keys, self.rank, members, shm, self.attendance.seconds)
        return SharedPointToPoint(MixedP2P(group, len(hosts), near, runner.monitor, shm, self.timeout))
