"""Core: what all collectives of a group share: the runner, the queue, the order of calls, and the staging memory.

A call goes through these, each of which calls the next:

1. ``CommlibGroup._issue``: what torch called has become a job, mostly a ``Transfer``;
2. ``Core.issue``: may this process and thread make calls; ``shown`` to the profiler if it runs;
3. ``_issue``: here and now, or on the queue, whose thread goes on with
4. ``_now``: the job under the lock, its errors as torch's;
5. the job, which calls ``perform`` (or ``spread``): tensors as lines of memory, staged if need be, results back;
6. ``run``: prepares the request (algorithm, proof, plan; kept by the runner) and runs it on the lines.

After the first call of its kind ``remember`` keeps what 5 and 6 came to, and ``replay`` makes the next ones from it
without any of this, if nothing is queued.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.distributed import Work

from commlib.collectives import Placement
from commlib.errors import CommlibError, ExecutionError
from commlib.runtime.forks import FORKED, own
from commlib.runtime.shm.interface import RefusedError
from commlib.torch_backend.catalogue import catalogue
from commlib.torch_backend.compat import keep_alive
from commlib.torch_backend.failures import as_torch
from commlib.torch_backend.operand import Operand, Rooms
from commlib.torch_backend.replay import Hot, Key, make_replay
from commlib.torch_backend.request import Request
from commlib.torch_backend.runner import Line, Runner
from commlib.torch_backend.work import DONE, PendingWork, shown
from commlib.torch_backend.worker import JOIN, Worker

Job = Callable[[float], None]
"""A call to make, with its timeout in seconds."""


LARGE = 256 << 10
"""Bytes from which a tensor is worth registered memory."""
_HOT = 1024
"""Calls that a group remembers by the addresses of their tensors."""


class Buckets(Protocol):
    """Moves tensors that are reduced again and again to memory that other ranks reach."""

    def votes(self, request: Request) -> bool:
        """Whether the ranks decide anew before each such call if it runs on memory that all reach."""

    def settle(self, core: Core, transfer: Transfer, timeout: float) -> bool:
        """Before a transfer on whose request they vote (inside a job): move its tensor or not; whether all ranks'
        tensors lie in memory that others reach."""

    def moved(self, line: torch.Tensor) -> bool:
        """Whether it was moved by a vote: of such memory the other ranks know only when they vote."""

    def asked(self, line: torch.Tensor) -> None:
        """The user has this tensor registered."""


class Transfer:
    """A job that is one request on operands; ``source`` is ``target`` where the call works in place.

    ``spread``: an allgather whose input may lie in its output, in place or across. ``later``: the caller goes on
    before it is done.
    """

    __slots__ = ("core", "factor", "later", "request", "source", "spread", "target")

    def __init__(
        self,
        core: Core,
        request: Request,
        source: Operand | None,
        target: Operand | None,
        factor: complex | None = None,
        spread: bool = False,
    ) -> None:
        self.core, self.request, self.source, self.target = core, request, source, target
        self.factor, self.spread, self.later = factor, spread, False

    def __call__(self, timeout: float) -> None:
        """Run it."""
        buckets, reached = self.core.buckets, None
        if buckets is not None and buckets.votes(self.request):
            reached = buckets.settle(self.core, self, timeout)
        if self.spread and self.source is not None and self.target is not None:
            self.core.spread(self.request, self.source, self.target, timeout)
        else:
            self.core.perform(self.request, self.source, self.target, timeout, self.factor, reached)

    def replay(self) -> Callable[[], object] | None:
        """The same transfer as a function without arguments, where its tensors are worked on as they lie."""
        source, target = self.source, self.target
        operands = [operand for operand in (source, target) if operand is not None]
        plain = all(operand.line is not None and operand.repeatable for operand in operands)
        if self.factor is not None or not plain:
            return None
        given, taken = (None if operand is None else operand.line for operand in (source, target))
        if self.spread and given is not None and taken is not None:
            return self._spread_again(given, taken)
        if source is target and taken is not None:
            given, taken = self.core.in_place(self.request, taken)
        elif source is not None and target is not None and source.overlaps(target):
            return None
        return self._planned(given, taken)

    def _planned(self, given: Line, taken: Line) -> Callable[[], object] | None:
        core, runner = self.core, self.core.runner
        if core.buckets is not None and core.buckets.votes(self.request):
            return None
        registered = core.reached(given, taken)
        again = runner.replay(runner.prepare(self.request, registered), given, taken, core.timeout)
        return again if again is None or not registered else _while_registered(again, runner, given, taken)

    def _spread_again(self, given: torch.Tensor, taken: torch.Tensor) -> Callable[[], object] | None:
        """By addresses: what is kept must not keep the tensors alive."""
        shard = self.core.shard(self.request, taken)
        crossing = self.source is not None and self.target is not None and self.source.overlaps(self.target)
        if not crossing and self.core.works_beside(self.request, given, taken):
            return self._planned(given, taken)
        again = self._planned(shard, taken)
        source, target, length = given.data_ptr(), shard.data_ptr(), self.request.bytes
        if again is None or source == target:
            return again

        def call() -> None:
            ctypes.memmove(target, source, length)
            again()

        return call


def _while_registered(again: Callable[[], object], runner: Runner, given: Line, taken: Line) -> Callable[[], object]:
    """A call on registered memory, refused once that has gone; what is kept must not keep the tensors alive."""
    places = [(line.data_ptr(), line.numel() * line.element_size()) for line in (given, taken) if line is not None]

    def call() -> None:
        if not runner.reaches(places):
            raise RefusedError("the memory is registered no more")
        again()

    return call


class Core:
    """Issues calls in one order, each here and now or on the queue.

    ``lock`` is held while a call runs; its owner gets it again, so that a call within a call is refused by what runs
    calls, and does not wait for itself. ``replay`` makes the remembered calls.
    """

    def __init__(self, runner: Runner, rank: int, ranks: int, timeout: float, name: str) -> None:
        self.runner, self.rank, self.ranks, self.timeout, self.name = runner, rank, ranks, timeout, name
        self.lock: Any = threading.RLock()
        self.forked = False
        self.worker = Worker(f"commlib-{name}")
        self.rooms = Rooms()
        self._issued = 0
        self.coalescing: list[Work] | None = None
        self.buckets: Buckets | None = None
        self.hot: Hot = {}
        self.replay = make_replay(self.hot, self.worker, self.lock)
        catalogue().subscribe(self)
        own(self)

    @property
    def sequence(self) -> int:
        """How many calls were made."""
        return self._issued + int(self.replay.calls)

    def disown(self) -> None:
        """See ``forks``."""
        self.hot.clear()
        self.lock, self.forked = threading.RLock(), True

    def refuse(self) -> None:
        """Whether this process may make calls at all.

        Raises:
            ExecutionError: it is a fork of the one that made the group.
        """
        if self.forked:
            raise as_torch(ExecutionError(f"rank {self.rank}: {FORKED}", rank=self.rank))

    def forget(self) -> None:
        """Choose algorithms anew from now on: there are others than before."""
        self.hot.clear()
        self.runner.forget()

    def register(self, line: torch.Tensor) -> bool:
        """Move a tensor to memory that other ranks reach (inside a job).

        It may come to lie where a tensor lay that has gone, whose calls are remembered, on this rank alone.
        """
        try:
            done = self.runner.register(line)
        finally:
            self.hot.clear()
        if done and self.buckets is not None:
            self.buckets.asked(line)
        return done

    def reached(self, *lines: Line) -> bool:
        """Whether users had these tensors registered, so that all ranks know of it."""
        if not self.runner.registered(*lines):
            return False
        buckets = self.buckets
        return buckets is None or not any(line is not None and buckets.moved(line) for line in lines)

    def issue(self, name: str, job: Job, asynchronous: bool, timeout: float, results: Sequence[Any] = ()) -> Work:
        """Make a call: here, if its caller waits for it and nothing is queued before it, else on the queue.

        Raises:
            CommlibError: what a call that is made here ends with; torch's DistBackendError too.
        """
        self.refuse()
        if not asynchronous and self.lock._is_owned():
            raise as_torch(self._nested(name))
        with shown(name):
            return self._issue(name, job, asynchronous, timeout, results)

    def _issue(self, name: str, job: Job, asynchronous: bool, timeout: float, results: Sequence[Any]) -> Work:
        self._issued += 1
        if not asynchronous and self.worker.idle:
            self._now(job, timeout)
            return DONE
        work = PendingWork(name, results)
        self.worker.submit(work, lambda: self._now(job, timeout))
        if not asynchronous:
            work.wait()
            return DONE
        keep_alive(work)
        if self.coalescing is not None:
            self.coalescing.append(work)
        return work

    def _nested(self, name: str) -> ExecutionError:
        return ExecutionError(
            f"rank {self.rank}: {name} was called while another call of this group runs in the same thread, in a "
            f"signal handler or a hook, say; make it asynchronous there, or make it later",
            rank=self.rank,
        )

    def remember(self, key: Callable[[], Key], job: Transfer) -> None:
        """Keep a job that was run for calls with the same tensors.

        ``key`` is asked here: a call, this one or another thread's, may move tensors, and then others come to lie at
        their old addresses. Nothing is kept while another thread's call runs.
        """
        if not self.lock.acquire(blocking=False):
            return
        try:
            call = job.replay()
            if call is not None:
                if len(self.hot) >= _HOT:
                    self.hot.clear()
                self.hot[key()] = call
        finally:
            self.lock.release()

    def _now(self, job: Job, timeout: float) -> None:
        try:
            with self.lock:
                job(timeout)
        except CommlibError as error:
            raise as_torch(error) from error.__cause__

    def perform(
        self,
        request: Request,
        source: Operand | None,
        target: Operand | None,
        timeout: float,
        factor: complex | None = None,
        reached: bool | None = None,
    ) -> None:
        """Run a request on operands (inside a job); ``source`` is ``target`` where the call works in place.

        ``reached``: as in ``run``.
        """
        if source is not None and source is target:
            line = source.load(self.rooms, "output")
            self.run(request, *self.in_place(request, line), timeout, factor, reached)
            source.store(line)
            return
        output = None if target is None else target.open(self.rooms, "output")
        copied = source is not None and target is not None and source.overlaps(target)
        input = None if source is None else source.load(self.rooms, "input", copied)
        self.run(request, input, output, timeout, factor, reached)
        if target is not None and output is not None:
            target.store(output)

    def run(
        self,
        request: Request,
        input: Line,
        output: Line,
        timeout: float,
        factor: complex | None = None,
        reached: bool | None = None,
    ) -> None:
        """Run a request on lines (inside a job), which are viewed as the request's type.

        ``reached``: whether all ranks' lines lie where others reach them, where they have agreed on that.
        """
        given, taken = (None if line is None else line.view(request.dtype) for line in (input, output))
        registered = factor is None and (self.reached(given, taken) if reached is None else reached)
        self.runner.run(self.runner.prepare(request, registered), given, taken, factor, timeout)

    def in_place(self, request: Request, line: torch.Tensor) -> tuple[Line, Line]:
        """The input and the output of this rank in its line."""
        if request.root is None or request.root == self.rank:
            return line, line
        return (None, line) if request.collective == "broadcast" else (line, None)

    def spread(self, request: Request, source: Operand, target: Operand, timeout: float) -> None:
        """An allgather (inside a job) whose input may lie in its output, where it belongs; else it is put there first.

        It may overlap the place in part: torch would not copy it then.
        """
        line = target.open(self.rooms, "output")
        shard = self.shard(request, line)
        mine = source.load(self.rooms, "input")
        if mine.data_ptr() != shard.data_ptr() and source.overlaps(target):
            ctypes.memmove(shard.data_ptr(), mine.data_ptr(), request.bytes)
            mine = shard
        elif mine.data_ptr() != shard.data_ptr() and not self.works_beside(request, mine, line):
            shard.copy_(mine)
            mine = shard
        self.run(request, mine, line, timeout)
        target.store(line)

    def shard(self, request: Request, line: torch.Tensor) -> torch.Tensor:
        """This rank's part of an output of equal shards."""
        return line[self.rank * request.elements : (self.rank + 1) * request.elements]

    def works_beside(self, request: Request, given: torch.Tensor, taken: torch.Tensor) -> bool:
        """Whether an allgather may leave its input where it is, out of the output.

        Not where ranks reach each other's outputs, but not the inputs: it is worth a copy to be able to use that.
        """
        return request.either and (self.reached(given, taken) or not self.reached(taken))

    def exchange(self, numbers: Sequence[int], timeout: float, name: str) -> list[list[int]]:
        """The numbers of every rank (inside a job); as many on each."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        everyone = torch.empty(self.ranks, len(numbers), dtype=torch.int64)
        request = Request("allgather", len(numbers), torch.int64, placement=Placement.OUT, name=name)
        self.run(request, mine, everyone.view(-1), timeout)
        return everyone.tolist()

    def close(self) -> None:
        """End the queue and the runner; a call that does not end soon fails, on all ranks that wait for it.

        That may be one of the queue, or one that another thread makes for itself. If it is one of this thread, in a
        signal handler or a hook, it fails when it next waits, and another thread closes when it has ended.
        """
        self.hot.clear()
        if self.lock._is_owned() or self.worker.queueing:
            self.runner.interrupt()
            with contextlib.suppress(RuntimeError):  # no thread can be had: all goes with the last who has it
                threading.Thread(target=self.close, name=f"commlib-{self.name}-closing").start()
            return
        self.worker.close(self.runner.interrupt)
        held = self.lock.acquire(timeout=self.worker.grace)
        if not held:
            self.runner.interrupt()
            held = self.lock.acquire(timeout=JOIN)
        try:
            self.runner.close()
            self.rooms.clear()
            self.hot.clear()  # a call that ended well meanwhile has been remembered
        finally:
            if held:
                self.lock.release()
