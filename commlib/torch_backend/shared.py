"""The runner for groups on one host: tables over shared memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from commlib.collectives import Buffer, Placement
from commlib.reductions import reduction
from commlib.runtime.binding import Binding, Tensors
from commlib.runtime.cause import Cause
from commlib.runtime.shm.prepared import prove
from commlib.runtime.shm.session import Prepared, ShmSession
from commlib.runtime.tabulate import NotTabulable
from commlib.torch_backend.choice import Choice, Situation, choose
from commlib.torch_backend.request import Request
from commlib.torch_backend.runner import Line, after, before, closing, span_of

_KEPT = 512
"""Plans that a group remembers."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A request with its table; ``direct``: the tensors are worked on as they are, without a factor, a division or
    padding."""

    request: Request
    prepared: Prepared
    direct: bool


class SharedRunner:
    """Runs requests on a ShmSession."""

    aliases = True

    def __init__(self, session: ShmSession) -> None:
        self._session = session
        self._registers = False
        self._plans: OrderedDict[tuple[Request, bool], Plan] = OrderedDict()

    def prepare(self, request: Request, registered: bool = False) -> Plan:
        """Take the first algorithm that is proved and can be made a table."""
        plan = self._plans.get((request, registered))
        if plan is None:
            plan = self._plans[request, registered] = self._plan(request, registered)
            while len(self._plans) > _KEPT:
                self._plans.popitem(last=False)
        return plan

    def _plan(self, request: Request, registered: bool, agree: bool = True) -> Plan:
        session = self._session
        situation = Situation(session.ranks, True, session.readv, registered, rank=session.rank)
        return choose(request, situation, partial(self._try, request), self._exchange if agree else None)

    def _try(self, request: Request, choice: Choice) -> Plan:
        text = request.text(choice.algorithm.name)
        if request.either:
            prove(choice.algorithm, Placement.IN, self._session.options.depth)
        launch = (choice.algorithm, request.placement, request.elements, request.dtype, request.reduction)
        prepared = self._session.prepare(*launch, request.sizes, text, choice.reach)
        padded = prepared.layout.padded
        if padded and choice.reach is not None:
            raise NotTabulable("it would need padded copies of the tensors in the memory that other ranks reach")
        plain = request.reduction is None or not _wraps(request.reduction)
        return Plan(request, prepared, plain and not padded)

    def _exchange(self, number: int, name: str) -> list[int]:
        """Every rank's number; by an algorithm that all ranks know without asking."""
        request = Request("allgather", 1, torch.int64, name=name)
        mine, everyone = torch.tensor([number]), torch.empty(self._session.ranks, dtype=torch.int64)
        self.run(self._plan(request, False, agree=False), mine, everyone, None, self._session.timeout)
        return everyone.tolist()

    def registered(self, *lines: Line) -> bool:
        """Whether all of them lie in memory that was registered."""
        return self.reaches(
            [(line.data_ptr(), line.numel() * line.element_size()) for line in lines if line is not None]
        )

    def reaches(self, places: Sequence[tuple[int, int]]) -> bool:
        """Whether all memory at these (address, bytes) is registered."""
        return self._registers and all(self._session.is_registered(*place) for place in places)

    def register(self, line: torch.Tensor) -> bool:
        """Move a tensor's storage to memory that all ranks map."""
        self._session.register(line)
        self._registers = True
        return True

    def forget(self) -> None:
        """Choose anew from now on."""
        self._plans.clear()

    def run(self, prepared: Plan, input: Line, output: Line, factor: complex | None, timeout: float) -> None:
        """Run one call."""
        if prepared.direct:
            self._session.run(prepared.prepared, _address(input), _address(output), timeout)
        elif prepared.prepared.layout.padded:
            self._run_padded(prepared, input, output, factor, timeout)
        else:
            self._run_scaled(prepared, input, output, factor, timeout)

    def _run_scaled(self, plan: Plan, input: Line, output: Line, factor: complex | None, timeout: float) -> None:
        kind = plan.request.reduction
        if input is not None and factor is not None:
            scaled = before(kind, factor, input)
            if plan.request.placement is Placement.IN:
                input.copy_(scaled)
            else:
                input = scaled
        self._session.run(plan.prepared, _address(input), _address(output), timeout)
        after(kind, output, self._session.ranks)

    def _run_padded(self, plan: Plan, input: Line, output: Line, factor: complex | None, timeout: float) -> None:
        """On copies in which every chunk has the same length."""
        if plan.request.placement is Placement.IN:
            tensors = Tensors(Placement.IN, None, None, span_of(input, output))
        else:
            empty = torch.empty(0, dtype=plan.request.dtype)
            tensors = Tensors(Placement.OUT, input, empty if output is None else output, None)
        binding = Binding(plan.prepared.layout, self._session.rank, tensors, factor)
        buffers = binding.buffers()
        given, taken = (_array_address(buffers[buffer]) for buffer in (Buffer.INPUT, Buffer.OUTPUT))
        self._session.run(plan.prepared, given, taken, timeout)
        binding.finish(self._session.ranks if plan.request.reduction == "avg" else None)

    def replay(self, prepared: Plan, input: Line, output: Line, timeout: float) -> Callable[[], object] | None:
        """The session's planned call."""
        if not prepared.direct:
            return None
        return self._session.planned(prepared.prepared, _address(input), _address(output), timeout)

    def interrupt(self) -> None:
        """End the call that another thread is in, here and on the ranks that wait for it."""
        rank = self._session.rank
        self._session.watch.publish(Cause("failed", rank, closing(rank), rank))

    def close(self) -> None:
        """Close the session."""
        self._plans.clear()
        self._session.close()


def _wraps(name: str) -> bool:
    found = reduction(name)
    return found.prepare is not None or found.finish is not None


def _address(line: Line) -> int:
    return 0 if line is None else line.data_ptr()


def _array_address(array: Any) -> int:
    return int(array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data)
