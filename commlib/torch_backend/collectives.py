"""The collectives: from torch's arguments to a job on a request and its operands.

Each function checks what its own rank gave, at once, and returns the job, which the group issues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from commlib.collectives import Placement
from commlib.errors import MismatchError
from commlib.reductions import reduction as named_reduction
from commlib.runtime.tensors import kind_of
from commlib.torch_backend.catalogue import catalogue
from commlib.torch_backend.core import Core, Job, Transfer
from commlib.torch_backend.failures import TorchSpecError
from commlib.torch_backend.operand import REDUCIBLE, Operand
from commlib.torch_backend.request import Request

SPREAD = 64 << 10
"""Bytes of a shard from which an input of an allgather that lies in the output already is not copied first.

The library's programs take it where it lies, in the output or out of it, on each rank as it is. Of a user's algorithm
that is not known, even if it is proved in both placements: where there are such, the call is one in place, and an input
that lies elsewhere is put into the output first."""

Tensor = torch.Tensor
Op = tuple[str, complex | None]


def check_reduction(name: str, dtype: torch.dtype) -> None:
    """Refuse a reduction that is not defined on a type.

    Raises:
        NotImplementedError: it is not.
    """
    if dtype not in REDUCIBLE:
        raise NotImplementedError(f"tensors of {dtype} can be moved, but not reduced")
    if not named_reduction(name).supports(kind_of(dtype)):
        raise NotImplementedError(f"{name} is not defined on {dtype}")


def allreduce(core: Core, tensors: Sequence[Tensor], op: Op, name: str = "allreduce") -> Job:
    """Reduce each tensor in place."""
    jobs: list[Job] = []
    for tensor in tensors:
        operand = Operand([tensor], writes=True)
        check_reduction(op[0], operand.dtype)
        request = Request("allreduce", operand.elements, operand.dtype, op[0], None, Placement.IN, name=name)
        jobs.append(Transfer(core, request, operand, operand, op[1]))
    return in_turn(jobs)


def broadcast(core: Core, tensor: Tensor, root: int) -> Job:
    """Copy the root's tensor to all."""
    operand = Operand([tensor], writes=True)
    request = Request("broadcast", operand.elements, operand.movable, None, root, Placement.IN)
    return Transfer(core, request, operand, operand)


def reduce(core: Core, tensor: Tensor, root: int, op: Op) -> Job:
    """Reduce into the root's tensor; those of the others are left as they are."""
    operand = Operand([tensor], writes=core.rank == root)
    check_reduction(op[0], operand.dtype)
    request = Request("reduce", operand.elements, operand.dtype, op[0], root, Placement.OUT)
    target = operand if core.rank == root else None
    return Transfer(core, request, Operand([tensor]), target, op[1])


def allgather(core: Core, outputs: Sequence[Tensor], given: Tensor, name: str = "allgather") -> Job:
    """Gather every rank's tensor; ``outputs`` is one tensor for all of them, or one for each rank."""
    source, target = Operand([given]), Operand(outputs, writes=True)
    _same_type(source, target, "all_gather")
    if len(outputs) == core.ranks > 1 and any(output.numel() != given.numel() for output in outputs):
        return _allgather_uneven(core, outputs, source, name)
    _whole("all_gather", "output", target.elements, core.ranks * source.elements)
    request = Request("allgather", source.elements, source.movable, name=name)
    if request.bytes < SPREAD:
        return Transfer(core, request, source, target)
    if core.runner.aliases and not catalogue().users.active:
        return Transfer(core, replace(request, either=True), source, target, spread=True)
    return Transfer(core, replace(request, placement=Placement.IN), source, target, spread=True)


def _allgather_uneven(core: Core, outputs: Sequence[Tensor], source: Operand, name: str) -> Job:
    """Shards of different sizes: a broadcast from each rank."""
    _whole("all_gather", f"output {core.rank}", outputs[core.rank].numel(), source.elements)
    targets = [Operand([output], writes=True) for output in outputs]

    def job(timeout: float) -> None:
        for root, target in enumerate(targets):
            request = Request("broadcast", target.elements, target.movable, None, root, Placement.OUT, name=name)
            core.perform(request, source if root == core.rank else None, target, timeout)

    return job


def reduce_scatter(core: Core, output: Tensor, inputs: Sequence[Tensor], op: Op, name: str = "reduce_scatter") -> Job:
    """Reduce, and leave shard r on rank r; ``inputs`` is one tensor of all shards, or one for each rank."""
    source, target = Operand(inputs), Operand([output], writes=True)
    _same_type(source, target, name)
    check_reduction(op[0], source.dtype)
    if len(inputs) == core.ranks > 1 and any(given.numel() != output.numel() for given in inputs):
        return _reduce_scatter_uneven(core, target, inputs, op, name)
    _whole(name, "input", source.elements, core.ranks * target.elements)
    request = Request("reducescatter", target.elements, target.dtype, op[0], name=name)
    return Transfer(core, request, source, target, op[1])


def _reduce_scatter_uneven(core: Core, target: Operand, inputs: Sequence[Tensor], op: Op, name: str) -> Job:
    """Shards of different sizes: a reduction to each rank."""
    _whole(name, f"input {core.rank}", inputs[core.rank].numel(), target.elements)
    sources = [Operand([given]) for given in inputs]

    def job(timeout: float) -> None:
        for root, source in enumerate(sources):
            request = Request("reduce", source.elements, source.dtype, op[0], root, Placement.OUT, name=name)
            core.perform(request, source, target if root == core.rank else None, timeout, op[1])

    return job


def gather(core: Core, outputs: Sequence[Tensor] | None, given: Tensor, root: int) -> Job:
    """Gather every rank's tensor on the root."""
    source = Operand([given])
    target = None if not outputs else Operand(outputs, writes=True)
    _rooted(core, "gather", "output", outputs, root, given)
    request = Request("gather", source.elements, source.movable, None, root)
    return Transfer(core, request, source, target)


def scatter(core: Core, output: Tensor, inputs: Sequence[Tensor] | None, root: int) -> Job:
    """Give each rank its tensor of the root's list."""
    target = Operand([output], writes=True)
    source = None if not inputs else Operand(inputs)
    _rooted(core, "scatter", "input", inputs, root, output)
    request = Request("scatter", target.elements, target.movable, None, root)
    return Transfer(core, request, source, target)


def alltoall_single(core: Core, output: Tensor, given: Tensor, received: Sequence[int], sent: Sequence[int]) -> Job:
    """Exchange equal shards, or rows split as ``sent`` and ``received`` say (both empty: equal shards)."""
    source, target = Operand([given]), Operand([output], writes=True)
    name = "all_to_all"
    _same_type(source, target, name)
    if received or sent:
        rows = [_elements(core, tensor, split) for tensor, split in ((given, sent), (output, received))]
        return _alltoallv(core, source, target, rows[0], rows[1])
    _whole(name, "output", target.elements, source.elements)
    if source.elements % core.ranks:
        raise TorchSpecError(f"{name}: {source.elements} elements cannot be split evenly among {core.ranks} ranks")
    request = Request("alltoall", source.elements // core.ranks, source.movable, name=name)
    return Transfer(core, request, source, target)


def alltoall(core: Core, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> Job:
    """Send ``inputs[r]`` to rank r and receive ``outputs[r]`` from it, of any sizes."""
    for tensors, what in ((inputs, "input"), (outputs, "output")):
        if len(tensors) != core.ranks:
            raise TorchSpecError(f"all_to_all: the {what} list has {len(tensors)} tensors, not {core.ranks}")
    source, target = Operand(inputs), Operand(outputs, writes=True)
    _same_type(source, target, "all_to_all")
    return _alltoallv(core, source, target, [t.numel() for t in inputs], [t.numel() for t in outputs])


def _alltoallv(core: Core, source: Operand, target: Operand, sent: list[int], received: list[int]) -> Job:
    """The ranks tell each other their sizes first; equal ones then run as an alltoall."""

    def job(timeout: float) -> None:
        everyone = core.exchange([*sent, *received], timeout, "all_to_all sizes")
        sizes = tuple(tuple(row[: core.ranks]) for row in everyone)
        _check_sizes(core, sizes, [row[core.ranks :] for row in everyone])
        if len({size for row in sizes for size in row}) == 1:
            request = Request("alltoall", sizes[0][0], source.movable, name="all_to_all")
        else:
            request = Request("alltoallv", 0, source.movable, sizes=sizes, name="all_to_all")
        core.perform(request, source, target, timeout)

    return job


def _check_sizes(core: Core, sent: Sequence[Sequence[int]], received: Sequence[Sequence[int]]) -> None:
    """Every rank sees all sizes, so that all end with the same error."""
    for sender, row in enumerate(sent):
        for receiver, size in enumerate(row):
            if received[receiver][sender] != size:
                raise MismatchError(
                    f"all_to_all: rank {sender} sends {size} elements to rank {receiver}, which expects "
                    f"{received[receiver][sender]}",
                    rank=core.rank,
                    peer=sender if core.rank == receiver else receiver,
                )


def _elements(core: Core, tensor: Tensor, split: Sequence[int]) -> list[int]:
    """The elements of each part of a tensor that is split along its first dimension."""
    rows = tensor.size(0) if tensor.dim() else 1
    if not split:
        if rows % core.ranks:
            raise TorchSpecError(f"all_to_all: {rows} rows cannot be split evenly among {core.ranks} ranks")
        split = [rows // core.ranks] * core.ranks
    if len(split) != core.ranks or sum(split) != rows or min(split) < 0:
        raise TorchSpecError(f"all_to_all: the splits {list(split)} do not make {rows} rows on {core.ranks} ranks")
    row = tensor.numel() // rows if rows else 0
    return [size * row for size in split]


def _rooted(core: Core, name: str, what: str, listed: Sequence[Tensor] | None, root: int, one: Tensor) -> None:
    if core.rank != root:
        if listed:
            raise TorchSpecError(f"{name}: only rank {root}, the root, gives the {what} list")
        return
    if not listed or len(listed) != core.ranks:
        raise TorchSpecError(f"{name}: the root's {what} list has {len(listed or ())} tensors, not {core.ranks}")
    for index, tensor in enumerate(listed):
        if tensor.numel() != one.numel() or tensor.dtype != one.dtype:
            raise TorchSpecError(
                f"{name}: tensor {index} of the {what} list differs in size or type from the other tensor"
            )


def _same_type(source: Operand, target: Operand, name: str) -> None:
    if source.dtype != target.dtype:
        raise TorchSpecError(f"{name}: the input is {source.dtype}, the output {target.dtype}")


def _whole(name: str, what: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise TorchSpecError(f"{name}: the {what} has {found} elements, not {wanted}")


def in_turn(jobs: Sequence[Job]) -> Job:
    """Several jobs as one."""
    if len(jobs) == 1:
        return jobs[0]

    def job(timeout: float) -> None:
        for one in jobs:
            one(timeout)

    return job


def first(tensors: Any) -> Tensor:
    """The one tensor of a list that torch passes for historic reasons, or the tensor itself.

    Raises:
        SpecError: several: one process has one tensor.
    """
    if isinstance(tensors, torch.Tensor):
        return tensors
    if len(tensors) != 1:
        raise TorchSpecError(f"{len(tensors)} tensors were given where one is taken")
    return tensors[0]  # type: ignore[no-any-return]
