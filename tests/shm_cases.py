"""Cases that shared-memory sessions run in tests: many per launch, on the Python context or the native one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import Algorithm
from commlib.reductions import reduction
from commlib.runtime.binding import Binding, Tensors, classify
from commlib.runtime.expected import FACTOR, Case
from commlib.runtime.launcher import launch
from commlib.runtime.shm.session import REACH_REGIONS, ShmOptions, ShmSession
from commlib.runtime.tensors import DTYPES, kind_of

SMALL = ShmOptions(lane_bytes=8192, slot_bytes=2048, ring_bytes=4096)
"""Small rooms, so that small tensors take several tiles."""
PYTHON = replace(SMALL, native=False)


@dataclass(frozen=True)
class ShmCase:
    """One call: what to run, on how many elements of what type, where."""

    algorithm: Algorithm
    elements: int
    dtype: str = "float32"
    op: str = "sum"
    placement: Placement = Placement.OUT
    sizes: tuple[tuple[int, ...], ...] | None = None
    reach: int | None = None

    def __str__(self) -> str:
        a = self.algorithm
        return f"{a.name} x{a.ranks} {self.elements} {self.dtype} {self.op} {self.placement.value} {self.reach}"


def open_session(
    rank: int, ranks: int, options: ShmOptions = SMALL, name: str = "s", timeout: float = 30.0
) -> ShmSession:
    """A session over the launcher's store."""
    store = dist.PrefixStore(f"shm-test-{name}", dist.distributed_c10d._get_default_store())
    return ShmSession.open(store, rank, ranks, options, timeout)


def run_shm_cases(cases: Sequence[ShmCase], ranks: int, options: ShmOptions = SMALL, timeout: float = 100.0) -> None:
    """Launch once, run every case three times on one session, and fail with the list of those that came out wrong."""
    found = launch(_run_all, ranks, (cases, ranks, options), timeout)
    wrong = [f"rank {rank}: {text}" for rank, texts in enumerate(found) for text in texts]
    assert not wrong, "\n".join(wrong[:20])


def _run_all(rank: int, cases: Sequence[ShmCase], ranks: int, options: ShmOptions) -> list[str]:
    with open_session(rank, ranks, options) as session:
        found = [(case, run_case(session, case)) for case in cases]
    return [f"{case}: {wrong}" for case, wrong in found if wrong is not None]


def run_case(session: ShmSession, case: ShmCase) -> str | None:
    """Run one case by ``run`` and twice by a planned call; None if every element is exact every time."""
    dtype, rank = DTYPES[case.dtype], session.rank
    expected = Case(case.algorithm.collective, case.elements, kind_of(dtype), case.op, case.sizes)
    values = torch.from_numpy(expected.input(rank)).to(dtype)
    wanted, matters = expected.output(rank)
    reduces = case.algorithm.collective.reduces
    prepared = session.prepare(
        case.algorithm, case.placement, case.elements, dtype, case.op if reduces else None, case.sizes, reach=case.reach
    )
    allocate = session.empty if prepared.launch.reach == REACH_REGIONS else _plain
    tensors = _tensors(case, expected, values, dtype, allocate, rank)
    factor = FACTOR if reduces and reduction(case.op).prepare == "scale" else None
    divide = case.algorithm.ranks if reduces and reduction(case.op).finish == "divide" else None
    for again in range(3):
        _load(tensors, expected, values, rank)
        binding = Binding(prepared.layout, rank, tensors, factor)
        buffers = [binding.buffers()[buffer] for buffer in (Buffer.INPUT, Buffer.OUTPUT)]
        if prepared.launch.reach == REACH_REGIONS and (prepared.layout.padded or factor is not None):
            moved = _registered(session, buffers, dtype, case.placement)
        else:
            moved = buffers
        addresses = [address_of(array) for array in moved]
        if again:
            session.planned(prepared, *addresses, keep=binding)()
        else:
            session.run(prepared, *addresses)
        for array, copy in zip(buffers, moved, strict=True):
            if array is not copy:
                torch.as_tensor(array).copy_(copy)
        output = binding.finish(divide).reshape(-1)
        if tensors.span is not None:
            _, begin, _ = expected.layout.span(rank)
            output = tensors.span[begin : begin + len(wanted)]
        elif not torch.equal(tensors.input, values):
            return "the input was modified"
        differs = (output != torch.from_numpy(wanted).to(dtype)) & torch.from_numpy(matters)
        if bool(differs.any()):
            return f"call {again}: {int(differs.sum())} of {len(wanted)} elements are wrong"
    return None


def _registered(session: ShmSession, buffers: list[Any], dtype: torch.dtype, placement: Placement) -> list[Any]:
    """Padded copies in registered memory; in place they lie in one span as those given do."""
    starts = [address_of(array) for array in buffers]
    low = min(starts) if placement is Placement.IN else 0
    item = torch.empty(0, dtype=dtype).element_size()
    spans = [((start - low) // item if low else 0, len(array)) for start, array in zip(starts, buffers, strict=True)]
    whole = session.empty((max(start + size for start, size in spans),), dtype) if low else None
    moved = []
    for array, (start, size) in zip(buffers, spans, strict=True):
        copy = session.empty((size,), dtype) if whole is None else whole[start : start + size]
        copy.copy_(torch.as_tensor(array))
        moved.append(copy)
    return moved


def _plain(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(tuple(shape), dtype=dtype)


def _tensors(
    case: ShmCase, expected: Case, values: torch.Tensor, dtype: torch.dtype, allocate: Callable[..., Any], rank: int
) -> Tensors:
    if case.placement is Placement.IN:
        return classify(case.algorithm.collective, rank, allocate((expected.layout.span(rank)[2],), dtype), None, None)
    given = allocate((len(values),), dtype)
    target = allocate((expected.layout.buffer_elements(rank, Buffer.OUTPUT),), dtype)
    return classify(case.algorithm.collective, rank, given, target, False)


def _load(tensors: Tensors, expected: Case, values: torch.Tensor, rank: int) -> None:
    """Set the input, and spoil the output."""
    if tensors.span is not None:
        start, _, _ = expected.layout.span(rank)
        tensors.span.fill_(0)
        tensors.span[start : start + len(values)] = values
    elif tensors.input is not None and tensors.output is not None:
        tensors.output.fill_(0)
        tensors.input.copy_(values)


def address_of(array: Any) -> int:
    """Where a flat array or tensor lies."""
    return int(array.data_ptr() if isinstance(array, torch.Tensor) else array.ctypes.data)


def shared_memory_files() -> set[str]:
    """What there is in /dev/shm."""
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def descriptors() -> int:
    """How many file descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))
