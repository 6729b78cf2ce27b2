"""What compiling and proving costs per chunk operation, and how that grows.

    python benchmarks/compile_cost.py            # up to 10^5 operations
    python benchmarks/compile_cost.py --large    # the large cases too, up to 10^6 operations

Each case runs in a process of its own, so that peak memory is its own: bytes per operation are the growth of the
peak resident size over that of the imports. "trace" runs the DSL program, "compile" goes from Trace to Algorithm;
the budget of 30 us per operation is for their sum. "verify" proves one placement and is per step.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

CASES = [
    ("ring_allreduce", 64, False),
    ("ring_allreduce", 128, False),
    ("ring_allreduce", 256, False),
    ("ring_allgather", 128, False),
    ("ring_allgather", 256, False),
    ("direct_alltoall", 256, False),
    ("direct_alltoall", 512, True),
    ("ring_allgather", 1024, True),
]


def measure(name: str, ranks: int) -> dict[str, float]:
    """Trace, compile and verify one library algorithm; times in seconds, memory in bytes."""
    from commlib import algorithms, compile_trace, prove

    entry = algorithms.find(name)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    trace = algorithms.trace(entry.collective, entry.name, ranks)
    traced = time.perf_counter()
    algorithm = compile_trace(trace)
    compiled = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = prove(algorithm, sorted(trace.placements, key=lambda p: p.value)[-1:])
    proved = time.perf_counter()
    if not report.ok:
        raise SystemExit(report.text())
    return {
        "operations": len(trace),
        "steps": algorithm.step_count,
        "trace": traced - start,
        "compile": compiled - traced,
        "verify": proved - compiled,
        "memory": (peak - base) * 1024,
    }


def row(name: str, ranks: int, m: dict[str, float]) -> str:
    """One line of the table."""
    per_op, per_step = 1e6 / m["operations"], 1e6 / m["steps"]
    both = m["trace"] + m["compile"]
    return (
        f"{name:<16} {ranks:>5} {m['operations']:>10,} {m['trace'] * per_op:>8.1f} {m['compile'] * per_op:>8.1f} "
        f"{both * per_op:>8.1f} {both:>8.2f} {m['memory'] / m['operations']:>8.0f} {m['verify'] * per_step:>8.1f} "
        f"{m['verify']:>8.2f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "RANKS"), help="measure one case and print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return
    units = ("us/op", "us/op", "us/op", "s", "B/op", "us/step", "s")
    heads = ("trace", "compile", "sum", "sum", "memory", "verify", "verify")
    for first, second, third, rest in (("", "", "", heads), ("algorithm", "ranks", "chunk ops", units)):
        print(f"{first:<16} {second:>5} {third:>10} " + " ".join(f"{head:>8}" for head in rest))
    for name, ranks, large in CASES:
        if large and not arguments.large:
            continue
        command = [sys.executable, __file__, "--one", name, str(ranks)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(row(name, ranks, json.loads(done.stdout)), flush=True)


if __name__ == "__main__":
    main()
