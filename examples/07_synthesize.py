"""Synthesize an allgather for a DGX-1, see why nothing is faster, and run what comes out in this process."""

from commlib import prove
from commlib.topology import draw, named
from synth import question, solve


def main() -> None:
    """Print the machine, the time, the bound with its certificate, and the proof."""
    dgx1 = named("dgx1")
    print(draw(dgx1))
    result = solve(question(dgx1, "allgather"))
    print(f"{result.time * 1e6:g} us with the {result.engine} engine; no schedule takes less than")
    print(f"{result.bound * 1e6:g} us: {result.certificate.certificate.text()}")
    print(prove(result.algorithm).text())
    assert result.proven


if __name__ == "__main__":
    main()
