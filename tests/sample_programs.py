"""Programs that several tests use."""

from commlib.dsl import Program


def ring(p: Program) -> None:
    """The ten-line ring allreduce."""
    n = p.ranks
    for i in range(n):
        c = p.chunk(i, "input", i)
        for hop in range(1, n):
            c = p.chunk((i + hop) % n, "input", i).reduce(c, into="output")
        for hop in range(n, 2 * n - 1):
            c = c.copy((i + hop) % n)
