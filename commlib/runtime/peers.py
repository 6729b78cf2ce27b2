"""gloo's own collectives through ``torch.distributed``, to be measured beside an algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from commlib.collectives import Collective

Runner = Callable[[], None]

# torch 2.13 warns of the older names.
_all_gather: Any = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)

_OPS: dict[str, Any] = {
    "sum": dist.ReduceOp.SUM,
    "prod": dist.ReduceOp.PRODUCT,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
    "band": dist.ReduceOp.BAND,
    "bor": dist.ReduceOp.BOR,
    "bxor": dist.ReduceOp.BXOR,
}


@dataclass(frozen=True)
class _Call:
    """One collective call on tensors of its own (gloo's allreduce, reduce and broadcast work in place)."""

    collective: Collective
    given: torch.Tensor
    output: torch.Tensor
    op: Any

    @property
    def root(self) -> int:
        return self.collective.root or 0

    def allreduce(self) -> None:
        dist.all_reduce(self.output, self.op)

    def allgather(self) -> None:
        _all_gather(self.output, self.given)

    def reducescatter(self) -> None:
        _reduce_scatter(self.output, self.given, self.op)

    def alltoall(self) -> None:
        dist.all_to_all_single(self.output, self.given)

    def broadcast(self) -> None:
        dist.broadcast(self.output, self.root)

    def reduce(self) -> None:
        dist.reduce(self.given, self.root, self.op)

    def gather(self) -> None:
        dist.gather(self.given, self._parts(self.output), self.root)

    def scatter(self) -> None:
        dist.scatter(self.output, self._parts(self.given), self.root)

    def sendrecv(self) -> None:
        ranks = self.collective.ranks
        sent = dist.isend(self.given, (dist.get_rank() + 1) % ranks)
        dist.recv(self.output, (dist.get_rank() - 1) % ranks)
        if sent is not None:
            sent.wait()

    def _parts(self, whole: torch.Tensor) -> list[torch.Tensor] | None:
        return list(whole.chunk(self.collective.ranks)) if dist.get_rank() == self.root else None


_CALLS: dict[str, Callable[[_Call], None]] = {
    "allreduce": _Call.allreduce,
    "allgather": _Call.allgather,
    "reducescatter": _Call.reducescatter,
    "alltoall": _Call.alltoall,
    "alltoallv": _Call.alltoall,
    "broadcast": _Call.broadcast,
    "reduce": _Call.reduce,
    "gather": _Call.gather,
    "scatter": _Call.scatter,
    "sendrecv": _Call.sendrecv,
}


def gloo_collective(c: Collective, given: torch.Tensor, output: torch.Tensor, op: str) -> Runner | None:
    """A call that does the same with gloo, on copies; None where gloo has no such collective, op or type."""
    runner = _CALLS.get(c.name)
    if runner is None or c.ranks == 1 or (c.reduces and op not in _OPS):
        return None
    call = _Call(c, given.clone(), output.clone(), _OPS.get(op))
    try:
        runner(call)
    except (RuntimeError, ValueError):  # gloo says so on every rank, before it sends anything
        return None
    return lambda: runner(call)
