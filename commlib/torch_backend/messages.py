"""The runner for groups over several hosts: a Communicator on a gloo group of its own, made from the group's store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch

from commlib.collectives import Placement
from commlib.ir.algorithm import Algorithm
from commlib.runtime.attendance import Attendance
from commlib.runtime.communicator import LONGEST, Communicator
from commlib.runtime.flight import FlightRecord
from commlib.torch_backend.choice import Choice, Situation, choose
from commlib.torch_backend.compat import c10d
from commlib.torch_backend.request import Request
from commlib.torch_backend.runner import Line, closing, span_of
from commlib.verify import require

_CPU = torch.device("cpu")
_KEPT = 512
"""Choices that a group remembers."""


class _Hidden(c10d.ProcessGroup):  # type: ignore[misc]
    """A group that torch.distributed does not know of; it keeps its store itself, which older torch cannot."""

    def __init__(self, rank: int, ranks: int, store: Any) -> None:
        super().__init__(rank, ranks)
        self._store = store

    def get_group_store(self) -> Any:
        return self._store


def gloo_group(store: Any, rank: int, ranks: int, timeout: float, name: str, waits_at: Any = None) -> Any:
    """A gloo group that torch.distributed does not know of.

    ``waits_at``: the store, on the connection on which gloo waits for others; nobody can use that meanwhile.
    """
    limit = timedelta(seconds=timeout)
    gloo = c10d.ProcessGroupGloo(c10d.PrefixStore("gloo", waits_at or store), rank, ranks, limit)
    kind = c10d.ProcessGroup.BackendType.GLOO
    group = _Hidden(rank, ranks, store)
    group._set_default_backend(kind)
    group._register_backend(_CPU, kind, gloo)
    group._set_group_name(name)
    return group


@dataclass(frozen=True, eq=False)
class _Prepared:
    request: Request
    algorithm: Algorithm


class MessageRunner:
    """Runs requests with a Communicator; all that it promises about failures holds."""

    aliases = False

    def __init__(
        self, group: Any, timeout: float, transport: str = "auto", attendance: Attendance | None = None
    ) -> None:
        """The ranks agree here on what each pair of them uses; all of the group call this.

        ``attendance``: of the ranks that open the group, with the time that they have for it.
        """
        self._group = group
        self._communicator = Communicator(group, timeout=min(timeout, LONGEST), transport=transport)
        try:
            if attendance is None:
                self._communicator.connect()
            else:
                self._communicator.connect(attendance.seconds, attendance.suspect)
        except BaseException:
            self.close()
            raise
        self.hosts, self.monitor = self._communicator.hosts, self._communicator.monitor
        """The host of each rank, counted from 0 (empty if it was not asked), and who watches over the ranks."""
        self._prepared: OrderedDict[Request, _Prepared] = OrderedDict()

    def prepare(self, request: Request, registered: bool = False) -> _Prepared:  # noqa: ARG002
        """Choose the algorithm; the Communicator plans when it runs."""
        found = self._prepared.get(request)
        if found is None:
            found = self._prepared[request] = self._choose(request)
            while len(self._prepared) > _KEPT:
                self._prepared.popitem(last=False)
        return found

    def _choose(self, request: Request, agree: bool = True) -> _Prepared:
        comm = self._communicator
        situation = Situation(comm.ranks, shared=False, hosts=comm.hosts, rank=comm.rank)
        take = partial(self._take, request)
        return choose(request, situation, take, self._exchange if agree else None)

    def _take(self, request: Request, choice: Choice) -> _Prepared:
        require(choice.algorithm, request.placement, self._communicator.fifo_depth, whole_messages=True)
        return _Prepared(request, choice.algorithm)

    def _exchange(self, number: int, name: str) -> list[int]:
        """Every rank's number; by an algorithm that all ranks know without asking."""
        request = Request("allgather", 1, torch.int64, name=name)
        mine, everyone = torch.tensor([number]), torch.empty(self._communicator.ranks, dtype=torch.int64)
        self.run(self._choose(request, agree=False), mine, everyone, None, self._communicator.timeout)
        return everyone.tolist()

    def registered(self, *lines: Line) -> bool:  # noqa: ARG002
        """No: ranks on other hosts cannot."""
        return False

    def reaches(self, places: Sequence[tuple[int, int]]) -> bool:  # noqa: ARG002
        """No."""
        return False

    def register(self, line: torch.Tensor) -> bool:  # noqa: ARG002
        """Nothing is done."""
        return False

    def forget(self) -> None:
        """Choose anew from now on."""
        self._prepared.clear()

    def run(self, prepared: _Prepared, input: Line, output: Line, factor: complex | None, timeout: float) -> None:
        """Run one call on the Communicator."""
        request = prepared.request
        op = request.reduction or "sum"
        in_place = request.placement is Placement.IN
        if in_place:
            input, output = span_of(input, output), None
        self._communicator.run(
            prepared.algorithm,
            input,
            output,
            op,
            factor=1.0 if factor is None else factor,
            sizes=request.sizes,
            elements=None if request.sizes is not None else request.elements,
            in_place=in_place,
            timeout=timeout,
            text=request.text(prepared.algorithm.name),
        )

    def flight(self, last: int | None = None) -> FlightRecord:
        """The last calls."""
        return self._communicator.flight(last)

    def replay(self, prepared: _Prepared, input: Line, output: Line, timeout: float) -> Callable[[], object] | None:  # noqa: ARG002
        """None: a Communicator has no replay."""
        return None

    def interrupt(self) -> None:
        """End the call that another thread is in, here and on the ranks that wait for it."""
        self._communicator.interrupt(closing(self._communicator.rank))

    def close(self) -> None:
        """End the Communicator and its gloo group."""
        self._communicator.close()
        shutdown = getattr(self._group, "shutdown", None)  # torch 2.6 has none: connections go with the group
        if shutdown is not None:
            shutdown()
