"""Plug an algorithm of your own into torch.distributed: write it, save it as MSCCL XML, name the folder.

Run: python examples/11_plug_in_by_xml.py
(Any program of yours: MSCCL_ALGO_DIR=FOLDER COMMLIB_DEBUG=INFO torchrun ... with init_process_group("commlib").)
"""

import os
import tempfile
from pathlib import Path

from commlib import Program, collective, compile_trace, launch, record, save

RANKS = 3


def star(p: Program) -> None:
    """Rank 0 adds everyone's tensor to its own, and sends all the sum."""
    total = p.chunk(0, "input")
    for rank in range(1, p.ranks):
        total = total.reduce(p.chunk(rank, "input"), into="output")
    for rank in range(1, p.ranks):
        total.copy(rank, "output")


def work(rank: int) -> list[str]:
    """What each process does: two sums, and what the flight record says of them."""
    import torch
    import torch.distributed as dist

    from commlib.torch_backend import flight_record

    group = dist.new_group(backend="commlib")
    for elements in (1000, 100_000):
        tensor = torch.full((elements,), float(rank))
        dist.all_reduce(tensor, group=group)
        if not torch.equal(tensor, torch.full((elements,), 3.0)):
            raise RuntimeError(f"rank {rank}: wrong sum")
    calls = [call for call in flight_record(group).calls if call.what.startswith("float32")]
    dist.destroy_process_group(group)
    return [f"{call.what}: {call.algorithm}" for call in calls]


def main() -> None:
    """Up to 16 KB the algorithm of the file is taken, once it is proved; beyond, what it would be without the file."""
    algorithm = compile_trace(record(star, collective("allreduce", RANKS)))
    with tempfile.TemporaryDirectory() as folder:
        save(algorithm, Path(folder) / "star.xml", dialect="executor", min_bytes=0, max_bytes=16384)
        os.environ["MSCCL_ALGO_DIR"] = folder
        for rank, calls in enumerate(launch(work, RANKS)):
            print(f"rank {rank}: {'; '.join(calls)}")


if __name__ == "__main__":
    main()
