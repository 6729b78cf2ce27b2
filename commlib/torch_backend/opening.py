"""Opening a group: which transport its ranks get, agreed through the store, and the messages between two ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch

from commlib.runtime.communicator import LONGEST
from commlib.runtime.flight import FlightRecord
from commlib.runtime.mixed_messages import MixedP2P
from commlib.runtime.shm.near import Near
from commlib.runtime.shm.options import ShmOptions, ShmUnavailable
from commlib.runtime.shm.p2p import P2P
from commlib.runtime.shm.session import ShmSession
from commlib.runtime.tensors import is_plain, plain
from commlib.torch_backend.compat import c10d
from commlib.torch_backend.failures import TorchSpecError
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
    """
    generation = store.add(f"commlib/joined/{rank}", 1)
    own = c10d.PrefixStore(f"commlib/{generation}", store)
    if ranks == 1:
        return Opened(own, rank, ranks, SoloRunner(), None)
    if options.transport != "gloo":
        with contextlib.suppress(ShmUnavailable) if options.transport == "auto" else contextlib.nullcontext():
            return _over_shared_memory(own, rank, ranks, timeout, options)
    return _over_gloo(own, rank, ranks, timeout, name, options)


def _over_shared_memory(store: Any, rank: int, ranks: int, timeout: float, options: Options) -> Opened:
    """A session of all ranks.

    Raises:
        ShmUnavailable: on all ranks alike.
    """
    keys = c10d.PrefixStore("shm", store)
    session = ShmSession.open(keys, rank, ranks, options.shm, min(timeout, LONGEST))
    return Opened(store, rank, ranks, SharedRunner(session), SharedPointToPoint(P2P(session)), session)


def _over_gloo(store: Any, rank: int, ranks: int, timeout: float, name: str, options: Options) -> Opened:
    group = gloo_group(store, rank, ranks, timeout, f"commlib-{name}-{id(store)}")
    runner = MessageRunner(group, timeout, options.transport)
    several = len(set(runner.hosts)) > 1
    messages = _mixed(store, group, runner, timeout, options) if several else GlooPointToPoint(group)
    return Opened(store, rank, ranks, runner, messages)


def _mixed(store: Any, group: Any, runner: MessageRunner, timeout: float, options: Options) -> PointToPoint:
    """Messages over shared memory inside a host, and over the gloo group between hosts."""
    rank, hosts, limit = group.rank(), runner.hosts, min(timeout, LONGEST)
    members = [peer for peer, host in enumerate(hosts) if host == hosts[rank]]
    keys, shm = c10d.PrefixStore(f"messages/{hosts[rank]}", store), options.shm or ShmOptions()
    near = Near.open(keys, rank, members, shm, limit)
    return SharedPointToPoint(MixedP2P(group, len(hosts), near, runner.monitor, shm, limit))
