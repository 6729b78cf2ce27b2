"""Write an algorithm, compile it, have it proved, and look at what came out.

Run: python examples/01_ring_allreduce.py
"""

from commlib import Program, collective, compile_trace, prove, record


def ring(p: Program) -> None:
    """Each chunk goes round the ring once to be reduced and once more to be spread."""
    n = p.ranks
    for i in range(n):
        c = p.chunk(i, "input", i)
        for hop in range(1, n):
            c = p.chunk((i + hop) % n, "input", i).reduce(c, into="output")
        for hop in range(n, 2 * n - 1):
            c = c.copy((i + hop) % n)


def main() -> None:
    """Compile for 4 ranks and print rank 0's steps and the proof."""
    algorithm = compile_trace(record(ring, collective("allreduce", ranks=4, chunks=4)))
    for block in algorithm.threadblocks(0):
        print(f"rank 0 sends to {block.send}, receives from {block.recv}")
        for number in block.steps:
            print("   ", algorithm.step(number))
    print(prove(algorithm).text())


if __name__ == "__main__":
    main()
