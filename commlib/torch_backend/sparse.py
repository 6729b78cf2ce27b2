"""Sparse allreduce: the sum of COO tensors, gathered and added on every rank, as gloo does it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from commlib.errors import MismatchError
from commlib.torch_backend.collectives import Op
from commlib.torch_backend.core import Core, Job
from commlib.torch_backend.request import Request

_MOST_DIMENSIONS = 8


def allreduce_sparse(core: Core, tensor: torch.Tensor, op: Op) -> Job:
    """Sum a sparse tensor over all ranks, in place; the result is coalesced.

    Raises:
        NotImplementedError: another layout than COO, another reduction than sum, or more than 8 dimensions.
    """
    if tensor.layout is not torch.sparse_coo or op[0] != "sum" or tensor.dim() > _MOST_DIMENSIONS:
        raise NotImplementedError(f"sparse allreduce takes COO tensors and sum, not {tensor.layout} and {op[0]}")

    def job(timeout: float) -> None:
        mine = tensor.detach().coalesce()
        counts = _agree(core, mine, timeout)
        indices = _gather(core, mine.indices().t().contiguous(), counts, timeout)
        values = _gather(core, mine.values().contiguous(), counts, timeout)
        whole = torch.sparse_coo_tensor(indices.t(), values, mine.shape, check_invariants=False)
        total = whole.coalesce()  # indices come from tensors that are coalesced: there is nothing to check
        with torch.no_grad():
            tensor.copy_(total)

    return job


def _agree(core: Core, mine: torch.Tensor, timeout: float) -> list[int]:
    """How many values each rank has; all shapes must be the same."""
    shape = [*mine.shape, *([0] * (_MOST_DIMENSIONS - mine.dim()))]
    numbers = [mine.indices().shape[1], mine.sparse_dim(), mine.dim(), *shape]
    everyone = core.exchange(numbers, timeout, "sparse allreduce sizes")
    for rank, other in enumerate(everyone):
        if other[1:] != numbers[1:]:
            theirs = other[3 : 3 + other[2]]
            raise MismatchError(
                f"sparse allreduce: rank {rank} has a tensor of shape {theirs} with {other[1]} sparse dimensions, "
                f"rank {core.rank} one of shape {list(mine.shape)} with {mine.sparse_dim()}",
                rank=core.rank,
                peer=rank,
            )
    return [other[0] for other in everyone]


def _gather(core: Core, rows: torch.Tensor, counts: Sequence[int], timeout: float) -> torch.Tensor:
    """The rows of all ranks, one below the other: each rank's are padded to the longest."""
    longest = max(counts)
    if longest == 0 or (rows[:1].numel() == 0 and rows.shape[0]):
        return rows
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    everyone = rows.new_empty(core.ranks, *padded.shape)
    request = Request("allgather", padded.numel(), rows.dtype, name="sparse allreduce")
    core.run(request, padded.view(-1), everyone.view(-1), timeout)
    return torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])
