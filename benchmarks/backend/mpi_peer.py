"""A rank of an MPI crew: mpi4py on numpy arrays, the buffers' descriptions made ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cells import Case, Cell
from mpi4py import MPI  # type: ignore[import-not-found]
from peer import Peer, die_with_parent, serve

COMM: Any = MPI.COMM_WORLD


def operation(cell: Cell, given: Any, taken: Any) -> Callable[[], Any]:
    """The MPI call of a cell."""
    source, target = [given, cell.input_count, MPI.FLOAT], [taken, cell.output_count, MPI.FLOAT]
    shard = cell.count // cell.ranks
    if cell.collective == "allreduce":
        return lambda: COMM.Allreduce(MPI.IN_PLACE, target, MPI.SUM)
    if cell.collective == "broadcast":
        return lambda: COMM.Bcast(target, 0)
    if cell.collective == "allgather":
        parts = [taken, shard, MPI.FLOAT]
        return lambda: COMM.Allgather(source, parts)
    if cell.collective == "reducescatter":
        shards = [given, shard, MPI.FLOAT]  # mpi4py counts what a rank keeps, on both sides
        return lambda: COMM.Reduce_scatter_block(shards, target, MPI.SUM)
    out, back = [given, shard, MPI.FLOAT], [taken, shard, MPI.FLOAT]
    return lambda: COMM.Alltoall(out, back)


def make(_subject: str, cell: Cell) -> Case:
    """A case; the arrays' pages are taken from memory by the first check."""
    taken = np.empty(cell.output_count, np.float32)
    given = taken if cell.in_place else np.empty(cell.input_count, np.float32)
    return Case(given, taken, operation(cell, given, taken))


def main() -> None:
    """Serve."""
    die_with_parent()
    version = MPI.Get_library_version().replace("\0", "").splitlines()[0].split(",")[0]
    serve(Peer(COMM.Get_rank(), ["mpi"], make, {}), {"versions": {"mpi": " ".join(version.split())}})


if __name__ == "__main__":
    main()
