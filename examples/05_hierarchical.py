"""Compare the library's allreduces for a machine of 2 nodes with 4 ranks each: hops, and chunks that leave a node.

Run: python examples/05_hierarchical.py
"""

from fractions import Fraction

from commlib import Algorithm, algorithms, compile_trace, prove
from commlib.ir.stats import statistics

NODES, LOCAL = 2, 4


def between_nodes(algorithm: Algorithm) -> Fraction:
    """What all ranks together send to another node, in messages of the whole size."""
    chunks = 0
    for rank in range(algorithm.ranks):
        for block in algorithm.threadblocks(rank):
            if block.send is not None and block.send // LOCAL != rank // LOCAL:
                steps = map(algorithm.step, block.steps)
                chunks += sum(step.count for step in steps if step.op.sends)
    return Fraction(chunks, algorithm.collective.chunks)


def main() -> None:
    """Print one line for each algorithm."""
    print(f"{'algorithm':40}{'proved':>10}{'hops':>6}{'between nodes':>16}")
    for entry in algorithms.algorithms("allreduce"):
        parameters = {"nodes": NODES} if entry.name == "hierarchical" else {}
        algorithm = compile_trace(entry.trace(NODES * LOCAL, **parameters))
        proved = "+".join(sorted(placement.value for placement in prove(algorithm).proved))
        hops = statistics(algorithm).critical_path
        print(f"{entry.full_name:40}{proved:>10}{hops:>6}{float(between_nodes(algorithm)):>15.2f}S")


if __name__ == "__main__":
    main()
