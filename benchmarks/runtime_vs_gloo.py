"""The runtime beside gloo's own collectives, interleaved in the same processes, as the README prints it.

    python benchmarks/runtime_vs_gloo.py

For each collective, number of ranks and size: medians in microseconds over three runs (each with processes of its own,
5 warm-up and 20 timed calls, torch.set_num_threads(1)), float32, out of place, and the ratio commlib / gloo of those
medians. Every first and last result is checked; a wrong one ends the benchmark.
"""

from __future__ import annotations

from statistics import median

from commlib import algorithms, compile_trace
from commlib.collectives import Placement
from commlib.runtime import Job, measure

CASES = (("allreduce", "ring"), ("allgather", "ring"), ("reducescatter", "ring"), ("alltoall", "direct"))
SIZES = (16 << 10, 1 << 20, 16 << 20)
RUNS = 3


def main() -> None:
    """Print the table."""
    print(
        f"{'collective':<15} {'algorithm':<10} {'ranks':>5} {'size':>9} {'commlib us':>11} {'gloo us':>9} {'ratio':>6}"
    )
    for collective, name in CASES:
        for ranks in (2, 4, 8):
            algorithm = compile_trace(algorithms.trace(collective, name, ranks))
            job = Job(SIZES, placements=(Placement.OUT,), vs=("gloo",))
            runs = [measure(algorithm, job) for _ in range(RUNS)]
            for rows in zip(*runs, strict=True):
                if any(row.wrong for row in rows):
                    raise SystemExit(f"{algorithm.name}: wrong results")
                own, peer = median(r.time_us for r in rows), median(r.peers["gloo"]["time_us"] for r in rows)
                size = f"{rows[0].size >> 10}K"
                print(f"{collective:<15} {name:<10} {ranks:>5} {size:>9} {own:>11.0f} {peer:>9.0f} {own / peer:>6.2f}")


if __name__ == "__main__":
    main()
