"""Run an algorithm on real processes: 4 of them, with a torch.distributed gloo group between them.

Run: python examples/06_on_processes.py
(Under torchrun: call init_process_group("gloo") yourself, then what ``work`` does.)
"""

from commlib import Algorithm, Communicator, algorithms, compile_trace, launch

RANKS = 4


def work(rank: int, algorithm: Algorithm) -> list[float]:
    """What each process does; its first elements come back to the launcher."""
    import torch

    with Communicator(timeout=20) as communicator:
        mine = torch.arange(10, dtype=torch.float32) + 100 * rank
        total = communicator.run(algorithm, mine, torch.empty_like(mine))
        communicator.run(algorithm, mine)  # without an output it is in place
        if not torch.equal(mine, total):
            raise RuntimeError(f"rank {rank}: in place and out of place differ")
    return total[:3].tolist()


def main() -> None:
    """10 elements do not divide into 4 chunks: that is no matter."""
    algorithm = compile_trace(algorithms.trace("allreduce", "ring", RANKS))
    for rank, first in enumerate(launch(work, RANKS, (algorithm,))):
        print(f"rank {rank}: {first}")


if __name__ == "__main__":
    main()
