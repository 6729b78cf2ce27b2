"""Describe a machine of your own: four GPUs in two pairs behind a slow shared bus; which size wants which algorithm?"""

from commlib.topology import Link, Resource, Topology, draw
from synth import Budget, question
from synth.auto import solve_range

PAIR = Link(alpha=1e-6, beta=1 / 50e9)
ACROSS = Link(alpha=4e-6, beta=1 / 10e9, resources=("bus",))


def machine() -> Topology:
    """Ranks 0, 1 and 2, 3 are linked directly; between the pairs everything takes the one bus."""
    pairs = {(a, b) for a in range(4) for b in range(4) if a != b}
    links = {(a, b): PAIR if a // 2 == b // 2 else ACROSS for a, b in pairs}
    return Topology("two pairs", 4, links, {"bus": Resource()}, node_of=(0, 0, 1, 1))


def main() -> None:
    """Print the machine and the best allreduce for each part of 1 KB to 256 MB."""
    topology = machine()
    print(draw(topology))
    ranges = solve_range(
        lambda size, chunks: question(topology, "allreduce", size=size, chunks=chunks),
        1 << 10,
        256 << 20,
        budget=Budget(seconds=8),
        chunks=(1, 4),
    )
    for part in ranges:
        low, high = part.times
        print(f"{part.low:12g} to {part.high:12g} bytes: {part.result.engine}, {low * 1e6:.1f} to {high * 1e6:.1f} us")


if __name__ == "__main__":
    main()
