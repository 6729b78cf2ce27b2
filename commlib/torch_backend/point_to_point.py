"""Send and receive between two ranks of a group: the interface, and its form over gloo."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch.distributed import Work

from commlib.errors import DeadlineError, PeerFailedError
from commlib.torch_backend.failures import as_torch
from commlib.torch_backend.work import PendingWork, shown


class PointToPoint(Protocol):
    """Messages between ranks, matched by (source, tag), in order. They have nothing to do with collectives."""

    def send(self, line: torch.Tensor, peer: int, tag: int, timeout: float) -> PendingWork:
        """Begin to send a contiguous tensor, which must not change until the work is done."""

    def receive(
        self, line: torch.Tensor, peer: int | None, tag: int, timeout: float, then: Callable[[], None] | None
    ) -> PendingWork:
        """Begin to receive into a contiguous tensor, from one rank or (None) any; ``then`` is called when it is there.

        The work's ``source_rank`` says whose it was.
        """

    def close(self) -> None:
        """Let go of everything; what is under way is lost."""


class GlooWork(PendingWork):
    """One message over gloo, which finishes when someone waits for it: the caller, or a thread if he only asks."""

    def __init__(
        self, name: str, inner: Any, limit: timedelta, then: Callable[[], None] | None, keep: Any, peer: int | None
    ) -> None:
        super().__init__(name, keep)
        self._inner, self._limit, self._then, self._peer = inner, limit, then, peer
        self._waiting = threading.Lock()
        self._asked = False

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait until the message has left or come.

        Raises:
            DeadlineError: it has not within the timeout; gloo closes the connection then.
            PeerFailedError: the connection was lost.
        """
        given = timeout is not None and timeout > timedelta(0)
        with self._waiting:
            if not self._finished and not self._asked:
                with shown(f"{self.name} wait"):
                    self._end(timeout if given and timeout is not None else self._limit)
        return super().wait(timeout)

    def is_completed(self) -> bool:
        """Whether the message has left or come. gloo itself never says so before someone has waited."""
        if not self._finished and self._waiting.acquire(blocking=False):
            if not self._finished and not self._asked:
                self._asked = True
                threading.Thread(target=self._end, args=(self._limit,), name="commlib-message", daemon=True).start()
            self._waiting.release()
        return self._finished

    def _end(self, limit: timedelta) -> None:
        try:
            self._inner.wait(limit)
            if self._then is not None:
                self._then()
        except RuntimeError as error:
            self.finish(_meaning(self.name, error, limit, self._peer))
        else:
            self.finish()

    def source_rank(self) -> int:
        """The rank that the message came from."""
        return int(self._inner._source_rank())

    def _source_rank(self) -> int:
        return self.source_rank()

    def get_future(self) -> torch.futures.Future[Any]:
        """A future that is done: gloo's messages finish only by waiting."""
        self.wait()
        return super().get_future()


def _meaning(name: str, error: RuntimeError, limit: timedelta, peer: int | None) -> BaseException:
    text = str(error).split("\n")[0]
    if "imed out" in text or "imeout" in text:
        late = f"{name} was not done within {limit.total_seconds()} s"
        return as_torch(DeadlineError(late, peer=peer, root=peer, cause="deadline"))
    return as_torch(PeerFailedError(f"{name}: the connection was lost ({text})", peer=peer, root=peer, cause="gone"))


class GlooPointToPoint:
    """Messages over a gloo group."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def send(self, line: torch.Tensor, peer: int, tag: int, timeout: float) -> PendingWork:
        """Begin to send."""
        inner = self._group.send([line], peer, tag)
        return GlooWork(f"send to rank {peer} (tag {tag})", inner, timedelta(seconds=timeout), None, [line], peer)

    def receive(
        self, line: torch.Tensor, peer: int | None, tag: int, timeout: float, then: Callable[[], None] | None
    ) -> PendingWork:
        """Begin to receive."""
        if peer is None:
            inner, whose = self._group.recv_anysource([line], tag), "any rank"
        else:
            inner, whose = self._group.recv([line], peer, tag), f"rank {peer}"
        return GlooWork(f"receive from {whose} (tag {tag})", inner, timedelta(seconds=timeout), then, [line], peer)

    def close(self) -> None:
        """The group belongs to someone else."""


def wait_all(works: list[Work]) -> bool:
    """Wait for each; the first error is raised when all have ended."""
    found: BaseException | None = None
    for work in works:
        try:
            work.wait()
        except RuntimeError as error:
            found = found or error
    if found is not None:
        raise found
    return True


class ManyWorks(Work):
    """Several calls as one."""

    def __init__(self, works: list[Work]) -> None:
        super().__init__()
        self._works = works

    def wait(self, timeout: timedelta | None = None) -> bool:  # noqa: ARG002
        """Wait for each of them."""
        return wait_all(self._works)

    def is_completed(self) -> bool:
        """Whether all have ended."""
        return all(work.is_completed() for work in self._works)

    def is_success(self) -> bool:
        """Whether all have ended well."""
        return all(work.is_success() for work in self._works)

    def get_future(self) -> Any:
        """A future of all their tensors."""
        futures = [work.get_future() for work in self._works]
        return torch.futures.collect_all(futures)
