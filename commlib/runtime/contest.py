"""Contest: several algorithms for the same call, measured in turn over shared memory, on processes of this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from commlib.collectives import Placement, collective
from commlib.dsl import OneSidedProgram
from commlib.errors import SpecError, VerificationError
from commlib.ir.algorithm import Algorithm
from commlib.runtime.launcher import launch
from commlib.runtime.registry import Reach
from commlib.runtime.shm.session import REACH_NONE, REACH_READV, REACH_REGIONS, Prepared, ShmOptions, ShmSession
from commlib.runtime.tabulate import NotTabulable

REACH = {"any": REACH_NONE, "registered": REACH_REGIONS, "readv": REACH_READV}
HOPELESS = 4.0
"""What takes so many times as long as the best in the first rounds is not measured on."""
_TRIALS = 3
_BATCH_BYTES = 1 << 20
_BATCH = 32
"""A batch is so many calls, or as many as move these bytes."""
_SECONDS, _MOST_ROUNDS = 0.1, 51
"""Short calls are measured for about so long, in at most so many rounds."""
_DTYPE = torch.float32
Measured = Callable[[int], None]
"""Hears that a size, in bytes, was measured."""


@dataclass(frozen=True, eq=False)
class Contender:
    """An algorithm and how it reaches other ranks' tensors."""

    algorithm: Algorithm
    reach: Reach = "any"


@dataclass(frozen=True)
class Contest:
    """What to measure: calls on ``sizes`` bytes of a rank's larger buffer in at least ``rounds`` batches of each
    contender."""

    contenders: tuple[Contender, ...]
    sizes: tuple[int, ...]
    placement: Placement
    rounds: int = 7
    timeout: float = 60.0
    options: ShmOptions = field(default_factory=ShmOptions)


def _quiet(_size: int) -> None:
    """Nobody asked."""


def run_contest(contest: Contest, measured: Measured = _quiet) -> list[list[float | None]]:
    """Seconds per call, for each size and contender: the median over rounds of the slowest rank.

    None for what cannot run so, or is hopeless. Contenders take turns within a round, so that what disturbs the
    machine disturbs all. ``measured(size)`` is called after each size, in the process of rank 0.

    Raises:
        ExecutionError: a run failed, or the processes of this machine cannot share memory.
    """
    ranks = contest.contenders[0].algorithm.ranks
    budget = contest.timeout * max(1, len(contest.sizes))
    found: list[list[float | None]] = launch(_work, ranks, (contest, measured), budget)[0]
    return found


def _work(rank: int, contest: Contest, measured: Measured) -> list[list[float | None]]:
    ranks = dist.get_world_size()
    store = dist.PrefixStore("contest", dist.distributed_c10d._get_default_store())  # type: ignore[attr-defined]
    with ShmSession.open(store, rank, ranks, contest.options, contest.timeout) as session:
        return _Field(session, contest).measure(measured if rank == 0 else _quiet)


def shard_elements(algorithm: Algorithm, size: int) -> int:
    """The elements of a shard of a call whose larger buffer has ``size`` bytes, at least 1."""
    c = algorithm.collective
    shards = max(max(c.input_chunks(r), c.output_chunks(r)) for r in range(c.ranks)) // c.chunks
    return max(1, size // _DTYPE.itemsize // shards)


def uneven(ranks: int, elements: int) -> list[list[int]]:
    """Sizes of an alltoallv around a mean, such that each rank sends and receives about as much."""
    return [[elements * (3 + (s + d) % 3) // 4 for d in range(ranks)] for s in range(ranks)]


class _Field:
    """One rank's part of a contest: its tensors, ordinary and registered."""

    def __init__(self, session: ShmSession, contest: Contest) -> None:
        self._session, self._contest = session, contest
        most = 2 * max(contest.sizes) // _DTYPE.itemsize + 64 + session.ranks
        registered = any(contender.reach == "registered" for contender in contest.contenders)
        # Filled, so that the memory is there; with 0, which stays 0 however often it is summed up in place.
        self._ordinary = [torch.empty(most, dtype=_DTYPE).fill_(0) for _ in range(2)]
        self._meet = self._barrier()
        self._registered = [session.empty((most,), _DTYPE).fill_(0) for _ in range(2)] if registered else []

    def _barrier(self) -> Callable[[], object]:
        """Over shared memory: ranks leave gloo's own too far apart for calls of a microsecond."""
        session, tensors = self._session, self._ordinary
        prepared = session.prepare(_meeting(session.ranks), Placement.OUT, 1, _DTYPE, None)
        given, taken = (tensor.data_ptr() for tensor in tensors)
        return session.planned(prepared, given, taken, self._contest.timeout, tensors)

    def measure(self, measured: Measured) -> list[list[float | None]]:
        found = []
        for size in self._contest.sizes:
            found.append(self._size(size))
            measured(size)
        return found

    def _size(self, size: int) -> list[float | None]:
        calls = [self._call(contender, size) for contender in self._contest.contenders]
        batch = max(1, min(_BATCH, _BATCH_BYTES // max(1, size)))
        self._round(calls, 1)  # the first touch of memory counts for nobody
        trials = zip(*(self._round(calls, batch) for _ in range(_TRIALS)), strict=True)
        first = [None if column[0] is None else min(filter(None, column)) for column in trials]
        best = min((seconds for seconds in first if seconds is not None), default=0.0)
        calls = [
            call if seconds is not None and seconds <= HOPELESS * best else None
            for call, seconds in zip(calls, first, strict=True)
        ]
        turns = self._turns(batch * sum(filter(None, first)))
        rounds = [self._round(calls, batch) for _ in range(turns)]
        columns = zip(*rounds, strict=True)
        return [None if column[0] is None else statistics.median(filter(None, column)) for column in columns]

    def _turns(self, round_seconds: float) -> int:
        """More than asked for where they are short."""
        return max(self._contest.rounds, min(_MOST_ROUNDS, int(_SECONDS / max(round_seconds, 1e-9))))

    def _round(self, calls: Sequence[Callable[[], object] | None], batch: int) -> list[float | None]:
        """A batch of each; the seconds per call on the slowest rank, equal on all ranks."""
        times = torch.zeros(len(calls), dtype=torch.float64)
        for index, call in enumerate(calls):
            if call is not None:
                self._meet()
                times[index] = _timed(call, batch)
        dist.all_reduce(times, dist.ReduceOp.MAX)
        return [None if call is None else float(seconds) for call, seconds in zip(calls, times, strict=True)]

    def _call(self, contender: Contender, size: int) -> Callable[[], object] | None:
        """A planned call; None if no table can express it, or the ranks may not reach each other so."""
        algorithm, session = contender.algorithm, self._session
        elements = shard_elements(algorithm, size)
        reduce = "sum" if algorithm.collective.reduces else None
        sizes = uneven(algorithm.ranks, elements) if algorithm.collective.name == "alltoallv" else None
        launched = (algorithm, self._contest.placement, elements, _DTYPE, reduce, sizes)
        try:
            prepared = session.prepare(*launched, reach=REACH[contender.reach])
        except (NotTabulable, VerificationError, SpecError):
            return None
        if prepared.layout.padded and contender.reach != "any":
            return None
        tensors = self._registered if contender.reach == "registered" else self._ordinary
        return session.planned(prepared, *self._addresses(prepared, tensors), self._contest.timeout, tensors)

    def _addresses(self, prepared: Prepared, tensors: Sequence[torch.Tensor]) -> tuple[int, int]:
        if self._contest.placement is Placement.OUT:
            return tensors[0].data_ptr(), tensors[1].data_ptr()
        given, taken, _ = prepared.layout.span(self._session.rank)
        base, size = tensors[0].data_ptr(), _DTYPE.itemsize
        return base + given * size, base + taken * size


def _meeting(ranks: int) -> Algorithm:
    """An allgather of everyone's scratch, in which all wait for all."""
    program = OneSidedProgram("meeting", collective("allgather", ranks))
    for rank in range(ranks):
        block, others = program.threadblock(rank), [peer for peer in range(ranks) if peer != rank]
        block.copy(program.input(rank)[0], program.scratch(rank)[0])
        block.copy(program.input(rank)[0], program.output(rank)[rank])
        for peer in others:
            block.signal(peer)
        for peer in others:
            block.wait(peer)
            block.get(program.scratch(peer)[0], program.output(rank)[peer])
    return program.algorithm()


def _timed(call: Callable[[], object], batch: int) -> float:
    began = time.perf_counter()
    for _ in range(batch):
        call()
    return (time.perf_counter() - began) / batch
