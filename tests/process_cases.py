"""Cases that real processes run in tests: many per launch, because launching is what takes time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import Algorithm
from commlib.reductions import reduction
from commlib.runtime import Communicator
from commlib.runtime.expected import FACTOR, Case
from commlib.runtime.launcher import launch
from commlib.runtime.tensors import DTYPES, kind_of


@dataclass(frozen=True)
class ProcessCase:
    """One call: what to run, on how many elements of what type, where."""

    algorithm: Algorithm
    elements: int
    dtype: str = "float32"
    op: str = "sum"
    placement: Placement = Placement.OUT
    sizes: tuple[tuple[int, ...], ...] | None = None
    strided: bool = False

    def __str__(self) -> str:
        a = self.algorithm
        where = f"{self.placement.value}{' strided' if self.strided else ''}"
        return f"{a.name} x{a.ranks} {self.elements} {self.dtype} {self.op} {where}"


def supported(dtype: str, op: str, reduces: bool) -> bool:
    """Whether a reduction is defined on a type."""
    return not reduces or reduction(op).supports(kind_of(DTYPES[dtype]))


@dataclass(frozen=True)
class Wiring:
    """How processes are connected: the transport asked for, the host of each rank (repeated for more ranks), and
    whether the native core may run."""

    transport: str = "auto"
    hosts: tuple[int, ...] = (0,)
    native: bool = True

    def host(self, rank: int) -> int:
        """The host of a rank."""
        return self.hosts[rank % len(self.hosts)]


WIRINGS = {
    "gloo": Wiring("gloo"),
    "shm": Wiring("shm"),
    "python": Wiring("shm", native=False),
    "two hosts": Wiring(hosts=(0, 0, 1)),
    "three hosts": Wiring(hosts=(0, 1, 1, 2, 1)),
}
"""The hosts have unlike numbers of ranks, which do not lie side by side."""


def run_cases(
    cases: Sequence[ProcessCase], ranks: int, tile_bytes: int = 4096, timeout: float = 100.0, wiring: str = "shm"
) -> None:
    """Launch once, run every case on it, and fail with the list of cases that came out wrong."""
    found = launch(_run_all, ranks, (cases, tile_bytes, WIRINGS[wiring]), timeout)
    wrong = [f"rank {rank}: {text}" for rank, texts in enumerate(found) for text in texts]
    assert not wrong, "\n".join(wrong[:20])


def wire(rank: int, wiring: Wiring) -> None:
    """Put this process on its host."""
    os.environ.update(COMMLIB_HOST=str(wiring.host(rank)), COMMLIB_NATIVE=str(int(wiring.native)))


def _run_all(rank: int, cases: Sequence[ProcessCase], tile_bytes: int, wiring: Wiring) -> list[str]:
    wire(rank, wiring)
    with Communicator(timeout=60, tile_bytes=tile_bytes, transport=wiring.transport) as communicator:
        found = [(case, _run(communicator, case)) for case in cases]
    return [f"{case}: {wrong}" for case, wrong in found if wrong is not None]


def _memory(size: int, dtype: torch.dtype, strided: bool) -> torch.Tensor:
    return torch.zeros(2 * size, dtype=dtype)[::2] if strided else torch.zeros(size, dtype=dtype)


def _run(comm: Communicator, case: ProcessCase) -> str | None:
    """Run one case; None if every element of the output is exact and the input is as it was."""
    dtype, rank = DTYPES[case.dtype], comm.rank
    expected = Case(case.algorithm.collective, case.elements, kind_of(dtype), case.op, case.sizes)
    values = torch.from_numpy(expected.input(rank)).to(dtype)
    wanted, matters = expected.output(rank)
    options = {"op": case.op, "factor": FACTOR, "sizes": case.sizes, "elements": case.elements}
    if case.placement is Placement.IN:
        start, begin, end = expected.layout.span(rank)
        span = _memory(end, dtype, case.strided)
        span[start : start + len(values)] = values
        output = comm.run(case.algorithm, span, **options)
        if not torch.equal(span[begin : begin + len(wanted)], output.reshape(-1)):
            return "the span does not hold the output"
    else:
        given = _memory(len(values), dtype, case.strided)
        given.copy_(values)
        target = _memory(expected.layout.buffer_elements(rank, Buffer.OUTPUT), dtype, case.strided)
        output = comm.run(case.algorithm, given, target, in_place=False, **options)
        if output is not target or not torch.equal(given, values):
            return "the input was modified, or another output returned"
    differs = (output.reshape(-1) != torch.from_numpy(wanted).to(dtype)) & torch.from_numpy(matters)
    return f"{int(differs.sum())} of {len(wanted)} elements are wrong" if bool(differs.any()) else None
