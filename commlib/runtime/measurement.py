"""Measuring and checking on real processes: what ``commlib run`` and ``commlib bench`` print.

An algorithm and gloo's own collective run in turn, in the same processes and on the same tensors, so that a noisy
machine is noisy to both. Times are in microseconds, the median over the iterations of the slowest rank's time;
bandwidths in GB/s by nccl-tests' formulas.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from commlib.collectives import Buffer, Collective, Placement
from commlib.errors import SpecError
from commlib.ir.algorithm import Algorithm
from commlib.reductions import reduction
from commlib.runtime.communicator import TILE_BYTES, Communicator
from commlib.runtime.expected import FACTOR, Case
from commlib.runtime.launcher import launch
from commlib.runtime.peers import gloo_collective
from commlib.runtime.tensors import DTYPES, kernels_for, kind_of

BUS_FACTORS: dict[str, Callable[[int], float]] = {
    "allreduce": lambda n: 2 * (n - 1) / n,
    "allgather": lambda n: (n - 1) / n,
    "reducescatter": lambda n: (n - 1) / n,
    "alltoall": lambda n: (n - 1) / n,
    "alltoallv": lambda n: (n - 1) / n,
    "gather": lambda n: (n - 1) / n,
    "scatter": lambda n: (n - 1) / n,
}
"""busbw = algbw times this; 1 for the others (nccl-tests, PERFORMANCE.md)."""


@dataclass(frozen=True)
class Job:
    """What to measure: each size in bytes (of the larger of input and output, as nccl-tests counts), each placement."""

    sizes: tuple[int, ...]
    dtype: str = "float32"
    op: str = "sum"
    placements: tuple[Placement, ...] = (Placement.OUT, Placement.IN)
    iterations: int = 20
    warmup: int = 5
    check: bool = True
    vs: tuple[str, ...] = ()
    unsafe: bool = False
    timeout: float = 60.0
    fifo_depth: int = 8
    tile_bytes: int = TILE_BYTES


@dataclass(frozen=True)
class Row:
    """One line of the table: times in us, bandwidths in GB/s, ``wrong`` elements over all ranks (None: unchecked).

    ``size`` is in bytes, of the larger of input and output; ``count`` is the argument of NCCL's call: the elements of
    one shard where there are shards, of the whole buffer elsewhere.
    """

    collective: str
    algorithm: str
    ranks: int
    size: int
    count: int
    dtype: str
    op: str
    root: int
    in_place: bool
    time_us: float
    algbw: float
    busbw: float
    wrong: int | None
    peers: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As a dictionary of JSON's types."""
        return asdict(self)


def _one(_ranks: int) -> float:
    return 1.0


def bandwidth(collective: str, ranks: int, size: int, time_us: float) -> tuple[float, float]:
    """(algbw, busbw) in GB/s."""
    algbw = size / time_us / 1e3 if time_us > 0 else 0.0
    return algbw, algbw * BUS_FACTORS.get(collective, _one)(ranks)


def shard_size(collective: Collective, size: int, itemsize: int) -> int:
    """Elements of a shard when the larger of a rank's input and output is about ``size`` bytes, rounded down."""
    shards = max(max(collective.input_chunks(rank), collective.output_chunks(rank)) for rank in range(collective.ranks))
    return size // itemsize // max(1, shards // collective.chunks)


def measure(algorithm: Algorithm, job: Job) -> list[Row]:
    """Launch the algorithm's ranks and measure it; rows in the order (size, placement).

    Raises:
        SpecError: no such type or reduction, or not defined together. VerificationError: a placement not proved.
        ExecutionError: a rank failed.
    """
    kernels_for(_dtype(job), reduction(job.op) if algorithm.collective.reduces else None)
    seconds = 60.0 + job.timeout * len(job.sizes) * len(job.placements)
    found: list[list[dict[str, Any]]] = launch(_rank, algorithm.ranks, (algorithm, job), seconds)
    return [_merge(algorithm, job, list(parts)) for parts in zip(*found, strict=True)]


def _dtype(job: Job) -> torch.dtype:
    if job.dtype not in DTYPES:
        raise SpecError(f"no element type is called {job.dtype!r}; there are {', '.join(DTYPES)}", dtype=job.dtype)
    return DTYPES[job.dtype]


def _merge(algorithm: Algorithm, job: Job, parts: Sequence[dict[str, Any]]) -> Row:
    """One row of all ranks' measurements: per iteration the slowest rank counts."""
    c, size, count = algorithm.collective, parts[0]["size"], parts[0]["count"]
    slowest = {name: _median([part["times"][name] for part in parts]) for name in parts[0]["times"]}
    own = slowest.pop("own")
    algbw, busbw = bandwidth(c.name, c.ranks, size, own)
    peers = {}
    for name, time_us in slowest.items():
        peers[name] = {"time_us": time_us, "busbw": bandwidth(c.name, c.ranks, size, time_us)[1]}
    return Row(
        c.name,
        algorithm.name,
        c.ranks,
        size,
        count,
        job.dtype,
        job.op if c.reduces else "none",
        -1 if c.root is None else c.root,
        parts[0]["in_place"],
        own,
        algbw,
        busbw,
        sum(part["wrong"] for part in parts) if job.check else None,
        peers,
    )


def _median(times: Sequence[Sequence[float]]) -> float:
    return float(median(max(each) for each in zip(*times, strict=True))) * 1e6


def _rank(_rank: int, algorithm: Algorithm, job: Job) -> list[dict[str, Any]]:
    with Communicator(timeout=job.timeout, fifo_depth=job.fifo_depth, tile_bytes=job.tile_bytes) as communicator:
        return [
            _Measurement(communicator, algorithm, job, size, placement).run()
            for size in job.sizes
            for placement in job.placements
        ]


class _Measurement:
    """One row, on one rank."""

    def __init__(self, comm: Communicator, algorithm: Algorithm, job: Job, size: int, placement: Placement) -> None:
        self.comm, self.algorithm, self.job, self.placement = comm, algorithm, job, placement
        c, self.dtype = algorithm.collective, _dtype(job)
        elements = shard_size(c, size, self.dtype.itemsize)
        sizes = ((elements,) * c.ranks,) * c.ranks if c.name == "alltoallv" else None
        self.case = Case(c, elements, kind_of(self.dtype), job.op, sizes)
        layout, rank = self.case.layout, comm.rank
        self.span = torch.zeros(0, dtype=self.dtype)
        self.values = torch.from_numpy(self.case.input(rank)).to(self.dtype)
        outputs = layout.buffer_elements(rank, Buffer.OUTPUT)
        if placement is Placement.IN:
            self.start, begin, end = layout.span(rank)
            self.span = torch.zeros(end, dtype=self.dtype)
            self.input = self.span[self.start : self.start + len(self.values)]
            self.output = self.span[begin : begin + outputs]
        else:
            self.input, self.output = self.values.clone(), torch.zeros(outputs, dtype=self.dtype)
        self._restore()

    def run(self) -> dict[str, Any]:
        """Check once, then time, and check what the last timed call left."""
        wrong = 0
        if self.job.check:
            self._restore()
            self._own()
            wrong = self._wrong()
        times, last = self._time()
        itemsize = self.dtype.itemsize
        c = self.algorithm.collective
        most = max(max(self.case.layout.buffer_elements(rank, b) for b in _ENDS) for rank in range(c.ranks))
        in_place = self.placement is Placement.IN
        count, wrong = self.case.elements, max(wrong, last)
        return {"size": most * itemsize, "count": count, "in_place": in_place, "wrong": wrong, "times": times}

    def _time(self) -> tuple[dict[str, list[float]], int]:
        """Seconds of each runner's iterations, and the wrong elements of our last. Inputs are restored in between."""
        job, wrong = self.job, 0
        runners = {"own": self._own, **self._peers()}
        times: dict[str, list[float]] = {name: [] for name in runners}
        for iteration in range(job.warmup + job.iterations):
            for name, runner in runners.items():
                self._restore()
                dist.barrier()
                start = time.perf_counter()
                runner()
                if iteration >= job.warmup:
                    times[name].append(time.perf_counter() - start)
                if job.check and name == "own" and iteration + 1 == job.warmup + job.iterations:
                    wrong = self._wrong()
        return times, wrong

    def _own(self) -> None:
        in_place, job, case = self.placement is Placement.IN, self.job, self.case
        self.comm.run(
            self.algorithm,
            self.span if in_place else self.input,
            None if in_place else self.output,
            job.op,
            factor=FACTOR,
            sizes=case.sizes,
            elements=case.elements,
            in_place=None if in_place else False,
            unsafe=job.unsafe,
        )

    def _peers(self) -> dict[str, Callable[[], None]]:
        found = {}
        for name in self.job.vs:
            runner = gloo_collective(self.algorithm.collective, self.input, self.output, self.job.op)
            if name == "gloo" and runner is not None:
                found[name] = runner
        return found

    def _wrong(self) -> int:
        """Wrong elements of what a call left, its input if it is apart included."""
        wanted, matters = self.case.output(self.comm.rank)
        differs = self.output != torch.from_numpy(wanted).to(self.dtype)
        wrong = int((differs & torch.from_numpy(matters)).sum())
        if self.placement is Placement.OUT:
            wrong += int((self.input != self.values).sum())
        return wrong

    def _restore(self) -> None:
        """The tensors as they were before any call."""
        self.span.zero_()
        self.output.zero_()
        self.input.copy_(self.values)


_ENDS = (Buffer.INPUT, Buffer.OUTPUT)
