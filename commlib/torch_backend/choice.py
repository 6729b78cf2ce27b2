"""Which algorithm a call runs: one function, the only place that decides it.

Every rank must come to the same answer, so it may only look at what all ranks of a call share.
"""

from __future__ import annotations

from functools import lru_cache

from commlib.algorithms import trace
from commlib.compiler import compile_trace
from commlib.ir.algorithm import Algorithm
from commlib.torch_backend.request import Request

SMALL = 64 << 10
"""Bytes up to which fewer steps are worth more than less traffic."""

_NAMES = {
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


def choose(request: Request, ranks: int) -> Algorithm:
    """The algorithm for a request on a group of ``ranks``."""
    small, large = _NAMES[request.collective]
    name = small if request.bytes <= SMALL else large
    return _compiled(request.collective, name, ranks, request.root)


@lru_cache(maxsize=256)
def _compiled(collective: str, name: str, ranks: int, root: int | None) -> Algorithm:
    return compile_trace(trace(collective, name, ranks, root=root))
