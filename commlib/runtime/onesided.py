"""One-sided steps in the engine: what an endpoint must offer for them, and the refusal where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from commlib.collectives import Buffer
from commlib.errors import SpecError
from commlib.ir.algorithm import ONE_SIDED, Algorithm, Step
from commlib.runtime.transport import Bytes, Endpoint


@runtime_checkable
class OneSidedEndpoint(Endpoint, Protocol):
    """An endpoint whose rank reaches other ranks' memory. Signals are counted, on (sender, receiver, channel)."""

    def signal(self, peer: int, channel: int) -> None:
        """Add one to the counter from this rank to ``peer``; whoever sees it sees all this rank wrote before."""
        ...

    def try_wait(self, peer: int, channel: int) -> bool:
        """Take the next signal from ``peer``, if it is there: what the peer wrote before can then be read."""
        ...

    def peer_buffer(self, peer: int, buffer: Buffer) -> Bytes:
        """The memory of the buffer that the peer's program works on in this launch, to read and write. The engine
        asks only for buffers that the program names, once it may use them."""
        ...


def peers_of(step: Step) -> tuple[int, ...]:
    """The other ranks that a one-sided step reaches, in order."""
    found = {remote.rank for remote in (*step.sources, *step.destinations)}
    if step.peer is not None:
        found.add(step.peer)
    return tuple(sorted(found - {step.rank}))


def refuse_unreachable(algorithm: Algorithm, reaches: Callable[[int, int], bool], transport: str) -> None:
    """Refuse a program with a one-sided step between ranks that the transport does not let reach each other.

    Args:
        reaches: whether a rank can use the memory of another.
        transport: its name, for the message.

    Raises:
        SpecError: it names the first such step and peer; it is the same on all ranks.
    """
    for number in ONE_SIDED[algorithm.op].nonzero()[0].tolist():
        step = algorithm.step(number)
        for peer in peers_of(step):
            if not reaches(step.rank, peer):
                raise unreachable(algorithm.name, (step.rank, step.threadblock, step.index), str(step), peer, transport)


def unreachable(name: str, place: tuple[int, int, int], step: str, peer: int, transport: str) -> SpecError:
    """The refusal of one step at ``place`` (rank, threadblock, step index)."""
    rank, threadblock, index = place
    return SpecError(
        f"{name}: rank {rank} threadblock {threadblock} step {index} ({step}) is one-sided, and {transport} does not "
        f"let rank {rank} reach the memory of rank {peer}; use a program of sends and receives between them",
        rank=rank,
        threadblock=threadblock,
        step=index,
        peer=peer,
        transport=transport,
    )
