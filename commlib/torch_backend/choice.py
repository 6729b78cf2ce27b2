"""Which algorithm a call runs: one function, the only place that decides it.

Every rank must come to the same answer, so it may only look at what all ranks of a call share: the request and the
situation of the group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from commlib.algorithms import trace
from commlib.algorithms.direct import ENTRIES
from commlib.compiler import compile_trace
from commlib.ir.algorithm import Algorithm
from commlib.torch_backend.request import Request

SMALL = 64 << 10
"""Bytes of a shard up to which fewer steps are worth more than less traffic."""


@dataclass(frozen=True)
class Situation:
    """What a group is: ``shared``: all its ranks share memory; ``readv``: they may read each other's memory directly;
    ``registered``: the tensors of this call are in registered memory on all ranks."""

    ranks: int
    shared: bool
    readv: bool = False
    registered: bool = False


@dataclass(frozen=True)
class Choice:
    """An algorithm and why it was chosen; ``reach``: how it gets at other ranks' tensors (see ``ShmSession``)."""

    algorithm: Algorithm
    reach: int | None = None
    why: str = ""


_MESSAGES = {
    "allreduce": ("allpairs", "ring"),
    "allgather": ("allpairs", "ring"),
    "reducescatter": ("allpairs", "ring"),
    "alltoall": ("direct", "direct"),
    "alltoallv": ("direct", "direct"),
    "broadcast": ("binomial", "binomial"),
    "reduce": ("binomial", "binomial"),
    "gather": ("direct", "direct"),
    "scatter": ("direct", "direct"),
}
_ONE_SHOT = {"allreduce", "reduce"}
_DIRECT = {(entry.collective, entry.name): entry for entry in ENTRIES}


def choices(request: Request, situation: Situation) -> Iterator[Choice]:
    """Algorithms for a request, the best first; a runner takes the first that it can run."""
    small = request.bytes <= SMALL
    if situation.shared:
        if situation.registered and (request.collective, "shared") in _DIRECT:
            yield Choice(_direct(request.collective, "shared", situation.ranks, request.root), 1, "registered tensors")
        if small and request.collective in _ONE_SHOT:
            yield Choice(_direct(request.collective, "one_shot", situation.ranks, request.root), None, "small")
        if (request.collective, "staged") in _DIRECT:
            yield Choice(_direct(request.collective, "staged", situation.ranks, request.root), None, "one host")
    name = _MESSAGES[request.collective][not small]
    yield Choice(_compiled(request.collective, name, situation.ranks, request.root), None, "messages")


@lru_cache(maxsize=256)
def _direct(collective: str, name: str, ranks: int, root: int | None) -> Algorithm:
    return _DIRECT[collective, name].algorithm(ranks, root)


@lru_cache(maxsize=256)
def _compiled(collective: str, name: str, ranks: int, root: int | None) -> Algorithm:
    return compile_trace(trace(collective, name, ranks, root=root))
