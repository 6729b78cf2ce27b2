"""Define a collective of one's own by what it must leave behind, and write an algorithm for it.

Halo exchange on a line: each rank holds 3 chunks of a field, and needs its neighbours' nearest chunks beside them.

Run: python examples/04_custom_collective.py
"""

from commlib import Collective, Program, compile_trace, custom, prove, record

RANKS = 4


def halo_exchange() -> Collective:
    """Output chunk 0 is the left neighbour's last chunk, chunk 1 the right neighbour's first; none beyond the ends."""
    sources = {(r, 0): [(r - 1, 2)] for r in range(1, RANKS)}
    sources |= {(r, 1): [(r + 1, 0)] for r in range(RANKS - 1)}
    return custom("halo", inputs=[3] * RANKS, outputs=[2] * RANKS, sources=sources)


def exchange(p: Program) -> None:
    """Send both borders to both neighbours."""
    for r in range(p.ranks):
        if r > 0:
            p.chunk(r, "input", 0).copy(r - 1, "output", 1)
        if r < p.ranks - 1:
            p.chunk(r, "input", 2).copy(r + 1, "output", 0)


def main() -> None:
    """It has no in-place form, so only out of place is judged."""
    algorithm = compile_trace(record(exchange, halo_exchange()))
    print(f"{algorithm.step_count} steps on {algorithm.channels} channel")
    print(prove(algorithm).text())


if __name__ == "__main__":
    main()
