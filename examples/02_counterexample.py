"""Two mistakes: one that the language refuses at once, and one that only the proof finds.

Run: python examples/02_counterexample.py
"""

from commlib import CommlibError, Program, collective, compile_trace, prove, record


def stale(p: Program) -> None:
    """Swaps two ranks' data, but the second copy reads what the first one overwrote in place."""
    a, b = p.chunk(0, "input"), p.chunk(1, "input")
    a.copy(1, "output")
    b.copy(0, "output")


def incomplete(p: Program) -> None:
    """A ring allreduce that stops one hop too early."""
    n = p.ranks
    for i in range(n):
        c = p.chunk(i, "input", i)
        for hop in range(1, n):
            c = p.chunk((i + hop) % n, "input", i).reduce(c, into="output")
        for hop in range(n, 2 * n - 2):
            c = c.copy((i + hop) % n)


def main() -> None:
    """Print the error of the first program and the counterexample of the second."""
    try:
        record(stale, collective("sendrecv", ranks=2))
    except CommlibError as error:
        print(f"{type(error).__name__}: {error}")
    report = prove(compile_trace(record(incomplete, collective("allreduce", ranks=3, chunks=3))))
    print(report.text())
    first = report.findings[0]
    print(f"as a program reads it: kind={first.kind}, rank={first.rank}, chunk={first.chunk}")


if __name__ == "__main__":
    main()
