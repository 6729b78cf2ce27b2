"""The runner for groups over several hosts: a Communicator on a gloo group of its own, made from the group's store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from commlib.collectives import Placement
from commlib.ir.algorithm import Algorithm
from commlib.runtime.communicator import LONGEST, Communicator
from commlib.torch_backend.choice import Situation, choices
from commlib.torch_backend.compat import c10d
from commlib.torch_backend.request import Request
from commlib.torch_backend.runner import Line, span_of

_CPU = torch.device("cpu")


def gloo_group(store: Any, rank: int, ranks: int, timeout: float, name: str) -> Any:
    """A gloo group that torch.distributed does not know of."""
    limit = timedelta(seconds=timeout)
    gloo = c10d.ProcessGroupGloo(c10d.PrefixStore("gloo", store), rank, ranks, limit)
    kind = c10d.ProcessGroup.BackendType.GLOO
    group = c10d.ProcessGroup(store, rank, ranks)
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

    def __init__(self, group: Any, timeout: float) -> None:
        self._group = group
        self._communicator = Communicator(group, timeout=min(timeout, LONGEST))

    def prepare(self, request: Request) -> _Prepared:
        """Choose the algorithm; the Communicator plans when it runs."""
        choice = next(choices(request, Situation(self._communicator.ranks, shared=False)))
        return _Prepared(request, choice.algorithm)

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
        )

    def replay(self, prepared: _Prepared, input: Line, output: Line, timeout: float) -> Callable[[], object] | None:  # noqa: ARG002
        """None: a Communicator has no replay."""
        return None

    def close(self) -> None:
        """End the Communicator and its gloo group."""
        self._communicator.close()
        self._group.shutdown()
