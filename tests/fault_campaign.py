"""Ranks that are struck by a signal at a random point of a random sequence of calls, and what the others make of it."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from runtime_algorithms import allpairs_allreduce, chain, ring_allreduce

from commlib.algorithms.direct import ENTRIES
from commlib.collectives import Buffer, Placement
from commlib.errors import ExecutionError
from commlib.ir.algorithm import Algorithm
from commlib.runtime.shm.session import Prepared, ShmOptions, ShmSession

TIMEOUT = 4.0
CALLS = 1_000_000
SIZES = (3, 1000, 70_000)


@dataclass(frozen=True)
class Strike:
    """``victim`` is struck by ``number`` after ``seconds`` of calls that ``seed`` chooses."""

    ranks: int
    victim: int
    number: int
    seconds: float
    seed: int
    native: bool = True

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        core = "native" if self.native else "python"
        return f"{name} rank {self.victim} of {self.ranks} after {self.seconds * 1e3:.2f} ms, seed {self.seed}, {core}"


def strikes(count: int, seed: int) -> list[Strike]:
    """Random strikes, the same for a seed: kills and stops in turn, both cores."""
    chance = random.Random(seed)
    found = []
    for index in range(count):
        ranks = chance.choice((2, 3, 4, 4, 8) if count > 20 else (2, 3, 4))
        number = (signal.SIGKILL, signal.SIGSTOP)[index % 2]
        seconds = chance.uniform(0.0, 0.3) if chance.random() < 0.5 else chance.uniform(0.0, 0.01)
        native = index % 4 < 2
        found.append(Strike(ranks, chance.randrange(ranks), int(number), seconds, index, native))
    return found


def strike_in(seconds: float, number: int) -> None:
    """A kernel timer sends this process a signal, wherever it then is (timer_create(2)); Python has no say in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    event, timer = ctypes.create_string_buffer(struct.pack("=qii", 0, number, 0), 64), ctypes.c_void_p()
    whole = int(seconds)
    wanted = struct.pack("=qqqq", 0, 0, whole, max(1, int((seconds - whole) * 1e9)))
    if libc.timer_create(1, event, ctypes.byref(timer)) or libc.timer_settime(timer, 0, wanted, None):
        raise OSError(ctypes.get_errno(), "timer_create")


def programs(ranks: int) -> list[Algorithm]:
    """One- and two-sided programs, with and without a rank that all depend on."""
    wanted = {"one_shot_allreduce", "staged_allreduce", "staged_alltoall", "staged_broadcast", "staged_allgather"}
    direct = [entry.algorithm(ranks) for entry in ENTRIES if entry.full_name in wanted]
    return [*direct, ring_allreduce(ranks), allpairs_allreduce(ranks), chain("broadcast", ranks, 3)]


def store(name: str) -> Any:
    """A part of the launcher's store."""
    return dist.PrefixStore(name, dist.distributed_c10d._get_default_store())  # type: ignore[attr-defined]


def inputs(prepared: Prepared, rank: int, call: int) -> torch.Tensor:
    """What a rank puts in: small whole numbers that differ by rank, place and call."""
    size = prepared.layout.buffer_elements(rank, Buffer.INPUT)
    return (torch.arange(size) * (rank + 1) + call) % 1009


def expected(prepared: Prepared, rank: int, call: int) -> torch.Tensor:
    """The right output, from the definition of the collective."""
    a, n = prepared.launch.algorithm, prepared.launch.algorithm.ranks
    given = [inputs(prepared, source, call) for source in range(n)]
    name, size = a.collective.name, prepared.launch.elements
    if name == "allreduce":
        return sum(given, torch.zeros_like(given[0]))
    if name == "broadcast":
        return given[0]
    if name == "allgather":
        return torch.cat(given)
    return torch.cat([source[rank * size : (rank + 1) * size] for source in given])


def call_once(session: ShmSession, prepared: Prepared, call: int, timeout: float | None = None) -> bool:
    """One call; whether its result is right."""
    source = inputs(prepared, session.rank, call)
    output = torch.full((prepared.layout.buffer_elements(session.rank, Buffer.OUTPUT),), -1)
    session.run(prepared, source.data_ptr(), output.data_ptr(), timeout)
    return bool(torch.equal(output, expected(prepared, session.rank, call)))


def calls(session: ShmSession, prepared: Prepared, numbers: range, timeout: float) -> list[bool]:
    """A call for each number; whether its result is right."""
    return [call_once(session, prepared, call, timeout) for call in numbers]


def struck(rank: int, strike: Strike) -> dict[str, Any]:
    """Make calls until one fails; what failed, what the next call says, and whether a new group of the rest works."""
    options = ShmOptions(native=strike.native, lane_bytes=1 << 20)
    session = ShmSession.open(store("first"), rank, strike.ranks, options, 20.0)
    launches = _launches(session)
    chance = random.Random(strike.seed)
    answer: dict[str, Any] = {"wrong": []}
    if rank == strike.victim:
        strike_in(strike.seconds, strike.number)
    for call in range(CALLS):
        chosen = chance.choice(launches)
        begun = time.monotonic()
        try:
            if not call_once(session, chosen, call, TIMEOUT):
                answer["wrong"].append(f"call {call} {chosen.text}")
        except ExecutionError as error:
            answer |= {"call": call, "seconds": time.monotonic() - begun} | _told(error)
            break
    answer["next"] = _refusal(lambda: call_once(session, launches[0], 0))
    session.close()
    answer["again"] = _again(rank, strike, options)
    return answer


def _launches(session: ShmSession) -> list[Prepared]:
    return [
        session.prepare(algorithm, Placement.OUT, size, torch.int64, "sum" if algorithm.collective.reduces else None)
        for algorithm in programs(session.ranks)
        for size in SIZES
    ]


def _told(error: ExecutionError) -> dict[str, Any]:
    fields = {key: value for key, value in error.fields.items() if key != "flight"}
    return {"kind": type(error).__name__, "error": str(error), "fields": fields}


def _refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except ExecutionError as error:
        return str(error)
    return "made"


def _again(rank: int, strike: Strike, options: ShmOptions) -> bool:
    """The survivors make a group of their own."""
    rest = [other for other in range(strike.ranks) if other != strike.victim]
    with ShmSession.open(store("again"), rest.index(rank), len(rest), options, 20.0) as session:
        algorithm = next(entry for entry in ENTRIES if entry.full_name == "one_shot_allreduce").algorithm(len(rest))
        prepared = session.prepare(algorithm, Placement.OUT, 100, torch.int64, "sum")
        return all(calls(session, prepared, range(3), 20.0))


def traces() -> tuple[set[str], set[str], set[str]]:
    """Children of this process, entries of commlib and torch in /dev/shm, and what is open of shared memory."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    entries = {name for name in os.listdir("/dev/shm") if "commlib" in name or "torch" in name}
    links = {os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink() and entry.exists()}
    return set(children), entries, {name for name in links if "memfd" in name or "/dev/shm" in name}
