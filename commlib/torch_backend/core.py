"""Core: what all collectives of a group share: the runner, the queue, the order of calls, and the staging memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.distributed import Work

from commlib.collectives import Placement
from commlib.errors import CommlibError
from commlib.torch_backend.compat import profiling
from commlib.torch_backend.failures import as_torch
from commlib.torch_backend.operand import Operand, Rooms
from commlib.torch_backend.request import Request
from commlib.torch_backend.runner import Line, Runner
from commlib.torch_backend.work import DONE, PendingWork
from commlib.torch_backend.worker import Worker

Job = Callable[[float], None]
"""A call to make, with its timeout in seconds."""


class Core:
    """Issues calls in one order, each here and now or on the queue.

    ``lock`` is held while a call runs. ``sequence`` counts the calls that were issued.
    """

    def __init__(self, runner: Runner, rank: int, ranks: int, timeout: float, name: str) -> None:
        self.runner, self.rank, self.ranks, self.timeout, self.name = runner, rank, ranks, timeout, name
        self.lock = threading.Lock()
        self.worker = Worker(f"commlib-{name}")
        self.rooms = Rooms()
        self.sequence = 0
        self.coalescing: list[Work] | None = None

    def issue(self, name: str, job: Job, asynchronous: bool, timeout: float, results: Sequence[Any] = ()) -> Work:
        """Make a call: here, if its caller waits for it and nothing is queued before it, else on the queue.

        Raises:
            CommlibError: what a call that is made here ends with; torch's DistBackendError too.
        """
        if profiling():
            return self._watched(name, job, asynchronous, timeout, results)
        return self._issue(name, job, asynchronous, timeout, results)

    def _issue(self, name: str, job: Job, asynchronous: bool, timeout: float, results: Sequence[Any]) -> Work:
        self.sequence += 1
        if not asynchronous and self.worker.idle:
            self._now(job, timeout)
            return DONE
        work = PendingWork(name, results)
        self.worker.submit(work, lambda: self._now(job, timeout))
        if not asynchronous:
            work.wait()
        if self.coalescing is not None:
            self.coalescing.append(work)
        return work

    def _now(self, job: Job, timeout: float) -> None:
        try:
            with self.lock:
                job(timeout)
        except CommlibError as error:
            raise as_torch(error) from error.__cause__

    def _watched(self, name: str, job: Job, asynchronous: bool, timeout: float, results: Sequence[Any]) -> Work:
        """As ``_issue``, with a range of this name for the profiler that lasts until the call is done."""
        span = torch.autograd.profiler.record_function(f"commlib:{name}")
        with span:
            work = self._issue(name, job, asynchronous, timeout, results)
            if isinstance(work, PendingWork) and asynchronous:
                span._call_end_callbacks_on_future(work.get_future())
        return work

    def perform(
        self,
        request: Request,
        source: Operand | None,
        target: Operand | None,
        timeout: float,
        factor: complex | None = None,
    ) -> None:
        """Run a request on operands (inside a job); ``source`` is ``target`` where the call works in place."""
        if source is not None and source is target:
            line = source.load(self.rooms, "output")
            self.run(request, *self._in_place(request, line), timeout, factor)
            source.store(line)
            return
        output = None if target is None else target.open(self.rooms, "output")
        copied = source is not None and target is not None and source.overlaps(target)
        input = None if source is None else source.load(self.rooms, "input", copied)
        self.run(request, input, output, timeout, factor)
        if target is not None and output is not None:
            target.store(output)

    def run(self, request: Request, input: Line, output: Line, timeout: float, factor: complex | None = None) -> None:
        """Run a request on lines (inside a job), which are viewed as the request's type."""
        given, taken = (None if line is None else line.view(request.dtype) for line in (input, output))
        self.runner.run(self.runner.prepare(request), given, taken, factor, timeout)

    def _in_place(self, request: Request, line: torch.Tensor) -> tuple[Line, Line]:
        """The input and the output of this rank in its line."""
        if request.root is None or request.root == self.rank:
            return line, line
        return (None, line) if request.collective == "broadcast" else (line, None)

    def spread(self, request: Request, source: Operand, target: Operand, timeout: float) -> None:
        """An allgather in place (inside a job): this rank's shard is put where it belongs in the output first."""
        line = target.open(self.rooms, "output")
        shard = line[self.rank * request.elements : (self.rank + 1) * request.elements]
        mine = source.load(self.rooms, "input")
        if mine.data_ptr() != shard.data_ptr():
            shard.copy_(mine)
        self.run(request, shard, line, timeout)
        target.store(line)

    def exchange(self, numbers: Sequence[int], timeout: float, name: str) -> list[list[int]]:
        """The numbers of every rank (inside a job); as many on each."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        everyone = torch.empty(self.ranks, len(numbers), dtype=torch.int64)
        request = Request("allgather", len(numbers), torch.int64, placement=Placement.OUT, name=name)
        self.run(request, mine, everyone.view(-1), timeout)
        return everyone.tolist()

    def close(self) -> None:
        """End the queue and the runner."""
        self.worker.close()
        self.runner.close()
        self.rooms.clear()
