"""The ranks of a torch crew: gloo and commlib through the same torch.distributed calls, and commlib's library call.

    gloo, commlib        the torch.distributed call, on a group of each backend
    library              a planned call of a ShmSession, ordinary tensors
    registered           the same on tensors in registered memory

All ranks are forked from one process, as commlib's launcher does it. With COMMLIB_NATIVE=0 commlib is pure Python, and
"library" and "registered" are left out.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from cells import LARGEST, Case, Cell
from ddp import compare
from peer import Peer, die_with_parent, serve

import commlib
from commlib.collectives import Placement
from commlib.runtime.shm.session import ShmSession
from commlib.torch_backend.options import Options
from commlib.torch_backend.request import Request
from commlib.torch_backend.shared import SharedRunner
from commlib.torch_backend.work import DONE

TIMEOUT = 60.0
"""Seconds, of a library call."""


class Makers:
    """Makes the cases of a cell; ``session`` is where the library calls run."""

    def __init__(self, rank: int, ranks: int, library: bool) -> None:
        self.rank, self.ranks = rank, ranks
        self.groups = {name: dist.new_group(backend=name) for name in ("gloo", "commlib")}
        store = dist.distributed_c10d.PrefixStore("library", dist.distributed_c10d._get_default_store())
        self.session = ShmSession.open(store, rank, ranks, timeout=TIMEOUT) if library else None
        self.arena: torch.Tensor | None = None

    def make(self, subject: str, cell: Cell) -> Case:
        """A case of a subject."""
        registered = subject == "registered"
        taken = self._tensor(cell.output_count, registered, 1)
        given = taken if cell.in_place else self._tensor(cell.input_count, registered, 0)
        if subject in self.groups:
            call = torch_call(cell, self.groups[subject], given, taken)
        else:
            call = self._library_call(cell, given, taken, registered)
        return Case(given.numpy(), taken.numpy(), call)

    def steps(self, steps: int) -> Any:
        """Steps of DistributedDataParallel on each backend, and on one that moves the buckets to shared memory."""
        moving = dist.new_group(backend="commlib", pg_options=Options(register_buckets=True))
        found = compare({**self.groups, "commlib, registered buckets": moving}, steps)
        dist.destroy_process_group(moving)
        return found

    def _tensor(self, count: int, registered: bool, half: int) -> torch.Tensor:
        if not registered or self.session is None:
            return torch.empty(count)
        if self.arena is None:
            self.arena = self.session.empty([2, LARGEST // 4])
        return self.arena[half, :count]

    def _library_call(self, cell: Cell, given: torch.Tensor, taken: torch.Tensor, registered: bool) -> Any:
        """A planned call of what the backend would choose."""
        if self.session is None:
            raise SystemExit("there is no session for library calls")
        reduction = "sum" if cell.collective in ("allreduce", "reducescatter") else None
        elements = cell.count if cell.in_place else cell.count // cell.ranks
        root = 0 if cell.collective == "broadcast" else None
        placement = Placement.IN if cell.in_place else Placement.OUT
        request = Request(cell.collective, elements, torch.float32, reduction, root, placement)
        plan = SharedRunner(self.session).prepare(request, registered)
        return self.session.planned(plan.prepared, given.data_ptr(), taken.data_ptr(), TIMEOUT, (given, taken))


def torch_call(cell: Cell, group: Any, given: torch.Tensor, taken: torch.Tensor) -> Callable[[], Any]:
    """The torch.distributed call of a cell."""
    calls: dict[str, Callable[[], Any]] = {
        "allreduce": lambda: dist.all_reduce(taken, group=group),
        "allgather": lambda: dist.all_gather_into_tensor(taken, given, group=group),
        "reducescatter": lambda: dist.reduce_scatter_tensor(taken, given, group=group),
        "alltoall": lambda: dist.all_to_all_single(taken, given, group=group),
        "broadcast": lambda: dist.broadcast(taken, 0, group=group),
    }
    return calls[cell.collective]


class Nothing(dist.ProcessGroup):
    """A group that does nothing: calls on it show what torch itself takes."""

    def allreduce(self, tensors: Any, opts: Any) -> Any:  # noqa: ARG002
        """Return at once."""
        return DONE


def overhead(calls: int, batches: int) -> list[float]:
    """Seconds that torch itself takes for an allreduce, of each batch, while all ranks do the same."""
    group, tensor, times = Nothing(0, 1), torch.zeros(256), []
    for _ in range(batches):
        dist.barrier()
        began = time.perf_counter()
        for _ in range(calls):
            dist.all_reduce(tensor, group=group)
        times.append((time.perf_counter() - began) / calls)
    return times


def stream(bytes: int, piece: int, seconds: float) -> dict[str, list[float]]:
    """Go through a buffer in pieces again and again: when each piece was done, the first time being the beginning.

    Reading it, by the kernels that were found to read fastest; and reading it and writing it back. Times are of the
    clock that all processes share.
    """
    buffer = np.ones([bytes // piece, piece // 4], np.float32)
    kernels: dict[str, Callable[[Any], Any]] = {
        "read: dot": lambda row: np.dot(row, row),
        "read: max": lambda row: row.view(np.int32).max(),
        "update": lambda row: np.negative(row, out=row),
    }
    found = {}
    for name, kernel in kernels.items():
        dist.barrier()
        times = [time.monotonic()]
        while times[-1] - times[0] < seconds:
            for row in buffer:
                kernel(row)
                times.append(time.monotonic())
        found[name] = times
    return found


def main(rank: int, ranks: int) -> None:
    """Serve."""
    die_with_parent()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{os.environ['STORE']}", rank=rank, world_size=ranks)
    python = os.environ.get("COMMLIB_NATIVE") == "0"
    makers = Makers(rank, ranks, not python)
    subjects = ["gloo", "commlib", *([] if python else ["library", "registered"])]
    versions = {"torch": torch.__version__, "commlib": commlib.__version__, "numpy": np.__version__}
    more: dict[str, Callable[..., Any]] = {"stream": stream, "overhead": overhead, "ddp": makers.steps}
    serve(Peer(rank, subjects, makers.make, more), {"versions": versions})
    dist.destroy_process_group()


def fork(ranks: int) -> int:
    """Run every rank in a child of this process; 1 if one of them ended badly, and then all end."""
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            main(rank, ranks)
            os._exit(0)
        children.append(child)
    bad = any(os.wait()[1] for _ in children)
    return int(bad)


if __name__ == "__main__":
    sys.exit(fork(int(os.environ["WORLD_SIZE"])))
