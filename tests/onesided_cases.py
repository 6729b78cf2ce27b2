"""One-sided programs for the tests of runtimes: every operation, several ranks, counts above one, mixed with messages.

``ONE_SIDED`` has one of each; the verifier proves them in their placements.
"""

from __future__ import annotations

from commlib import collectives
from commlib.collectives import Collective, Placement
from commlib.dsl.onesided import OneSidedProgram, ThreadblockWriter
from commlib.ir.algorithm import Algorithm


def _others(rank: int, ranks: int) -> list[int]:
    return [(rank + step) % ranks for step in range(1, ranks)]


def _meet(block: ThreadblockWriter, ranks: int) -> None:
    """A barrier: everything that any rank did before is there for all after."""
    for peer in _others(block.rank, ranks):
        block.signal(peer)
    for peer in _others(block.rank, ranks):
        block.wait(peer)


def _flush(block: ThreadblockWriter, ranks: int) -> None:
    """What was put may be overwritten, also by the caller once the rank has left."""
    for peer in _others(block.rank, ranks):
        block.flush(peer)


def one_shot(ranks: int, chunks: int = 1) -> Algorithm:
    """Allreduce: everyone puts all its input to everyone, who reduces it in the order of ranks."""
    k = OneSidedProgram("one_shot", collectives.allreduce(ranks, chunks))
    for me in range(ranks):
        block = k.threadblock(me)
        for peer in _others(me, ranks):
            block.put(k.input(me)[:], k.scratch(peer)[me * chunks : (me + 1) * chunks])
        _meet(block, ranks)
        _flush(block, ranks)
        theirs = [k.scratch(me)[rank * chunks : (rank + 1) * chunks] for rank in range(ranks)]
        sources = [k.input(me)[:] if rank == me else theirs[rank] for rank in range(ranks)]
        block.read_reduce(sources, k.output(me)[:])
    return k.algorithm()


def staged(ranks: int) -> Algorithm:
    """Allreduce in two phases; a threadblock per peer puts and gets, the first one reduces to output and scratch."""
    k = OneSidedProgram("staged", collectives.allreduce(ranks, ranks))
    for me in range(ranks):
        first, peers = k.threadblock(me, channel=1), {peer: k.threadblock(me) for peer in _others(me, ranks)}
        arrived = []
        for peer, block in peers.items():
            block.put(k.input(me)[peer], k.scratch(peer)[me])
            block.signal(peer)
            arrived.append(block.wait(peer))
        sources = [k.input(me)[me] if rank == me else k.scratch(me)[rank] for rank in range(ranks)]
        first.read_reduce_store(sources, [k.scratch(me)[ranks], k.output(me)[me]], after=arrived)
        _meet(first, ranks)
        begun = first.nop()
        for peer, block in peers.items():
            block.get(k.scratch(peer)[ranks], k.output(me)[peer], after=begun)
        last = [block.flush(peer) for peer, block in peers.items()]
        first.nop(after=last)
        _meet(first, ranks)
    return k.algorithm()


def shared(ranks: int) -> Algorithm:
    """Allreduce in the tensors themselves: rank r reduces chunk r of all inputs into all outputs."""
    k = OneSidedProgram("shared", collectives.allreduce(ranks, ranks))
    for me in range(ranks):
        block = k.threadblock(me)
        _meet(block, ranks)
        everyone = range(ranks)
        block.read_reduce_store([k.input(r)[me] for r in everyone], [k.output(r)[me] for r in everyone])
        _meet(block, ranks)
    return k.algorithm()


def gets(ranks: int, chunks: int) -> Algorithm:
    """Allgather: everyone gets every shard out of its owner's input."""
    k = OneSidedProgram("gets", collectives.allgather(ranks, chunks))
    for me in range(ranks):
        block = k.threadblock(me)
        _meet(block, ranks)
        block.copy(k.input(me)[:], k.output(me)[me * chunks : (me + 1) * chunks])
        for peer in _others(me, ranks):
            block.get(k.input(peer)[:], k.output(me)[peer * chunks : (peer + 1) * chunks])
        _meet(block, ranks)
    return k.algorithm()


def puts(ranks: int, chunks: int, name: str = "alltoall") -> Algorithm:
    """Alltoall, also with sizes: shards are put into scratch and copied to the output there."""
    k = OneSidedProgram("puts", collectives.collective(name, ranks, chunks))
    for me in range(ranks):
        block = k.threadblock(me)
        own = slice(me * chunks, (me + 1) * chunks)
        for peer in _others(me, ranks):
            block.put(k.input(me)[peer * chunks : (peer + 1) * chunks], k.scratch(peer)[own])
        _flush(block, ranks)
        _meet(block, ranks)
        block.copy(k.input(me)[own], k.output(me)[own])
        for peer in _others(me, ranks):
            theirs = slice(peer * chunks, (peer + 1) * chunks)
            block.copy(k.scratch(me)[theirs], k.output(me)[theirs])
    return k.algorithm()


def stores(ranks: int, chunks: int, root: int) -> Algorithm:
    """Broadcast: the root stores to all outputs, its own included, chunk by chunk on two channels."""
    k = OneSidedProgram("stores", collectives.broadcast(ranks, chunks, root))
    for channel in range(2):
        for me in range(ranks):
            block = k.threadblock(me, channel=channel)
            if me != root:
                block.signal(root)
                block.wait(root)
                continue
            for peer in _others(me, ranks):
                block.wait(peer)
            for chunk in range(channel, chunks, 2):
                block.store(k.input(me)[chunk], [k.output(rank)[chunk] for rank in range(ranks)])
            for peer in _others(me, ranks):
                block.signal(peer)
    return k.algorithm()


def window(chunks: int) -> Algorithm:
    """Reduce to rank 1 through one scratch slot, which each chunk may have when the one before has left it."""
    k = OneSidedProgram("window", collectives.reduce(2, chunks, 1))
    sender, receiver = k.threadblock(0), k.threadblock(1)
    for chunk in range(chunks):
        if chunk:
            sender.wait(1)
        sender.put(k.input(0)[chunk], k.scratch(1)[0])
        sender.signal(1)
        receiver.wait(0)
        receiver.read_reduce([k.scratch(1)[0], k.input(1)[chunk]], k.output(1)[chunk])
        receiver.signal(0)
    sender.wait(1)
    return k.algorithm()


def one_way(chunks: int) -> Algorithm:
    """Broadcast on two ranks, of which the root waits for nobody: only the guard keeps it from running ahead."""
    k = OneSidedProgram("one_way", collectives.broadcast(2, chunks, 0))
    root, other = k.threadblock(0), k.threadblock(1)
    root.store(k.input(0)[:], [k.scratch(0)[0:chunks], k.output(0)[:]])
    root.signal(1)
    other.wait(0)
    other.get(k.scratch(0)[0:chunks], k.output(1)[:])
    return k.algorithm()


def pushed(chunks: int) -> Algorithm:
    """The same, but the root puts, and so has to know that the other has come."""
    k = OneSidedProgram("pushed", collectives.broadcast(2, chunks, 0))
    root, other = k.threadblock(0), k.threadblock(1)
    root.put(k.input(0)[:], k.scratch(1)[0:chunks])
    root.flush(1)
    root.signal(1)
    root.copy(k.input(0)[:], k.output(0)[:])
    other.wait(0)
    other.copy(k.scratch(1)[0:chunks], k.output(1)[:])
    return k.algorithm()


def crossed() -> Algorithm:
    """Sendrecv of two chunks that are put into each other's slots, then change places: long chunks in short slots."""
    k = OneSidedProgram("crossed", collectives.sendrecv(2, 2), placement="out")
    for me in range(2):
        block, peer = k.threadblock(me), 1 - me
        _meet(block, 2)
        block.put(k.input(me)[0], k.output(peer)[1])
        block.flush(peer)
        block.store(k.input(me)[1], [k.output(peer)[0]])
        _meet(block, 2)
        block.copy(k.output(me)[0], k.scratch(me)[0])
        block.copy(k.output(me)[1], k.output(me)[0])
        block.copy(k.scratch(me)[0], k.output(me)[1])
        _meet(block, 2)
    return k.algorithm()


def both_sides() -> Algorithm:
    """Allreduce on two ranks: chunk 0 as messages, chunk 1 one-sided, chunk 2 in what a message brought."""
    k = OneSidedProgram("both_sides", collectives.allreduce(2, 3))
    for me in range(2):
        peer = 1 - me
        messages = k.threadblock(me, channel=2, send=peer, recv=peer)
        one_sided = k.threadblock(me, channel=2)
        messages.send(k.input(me)[0])
        messages.recv_reduce_copy(k.input(me)[0], k.output(me)[0])
        put = one_sided.put(k.input(me)[1:3], k.scratch(peer)[3:5])
        one_sided.signal(peer, after=put)
        one_sided.flush(peer)
        ready = one_sided.wait(peer)
        messages.read_reduce([k.input(me)[1], k.scratch(me)[3]], k.output(me)[1], after=ready)
        messages.reduce(k.input(me)[2], k.scratch(me)[4])
        messages.copy(k.scratch(me)[4], k.output(me)[2])
    return k.algorithm()


def shifted() -> Algorithm:
    """A collective of one's own: outputs are the first two chunks of the input. In place, where they lie one chunk
    further, the step that moves both overlaps itself: there it has no meaning."""
    sources = {(rank, slot): frozenset({(rank, slot)}) for rank in range(2) for slot in range(2)}
    mine: Collective = collectives.custom("mine", [3, 3], [2, 2], sources, [(0, 1), (0, 1)])
    k = OneSidedProgram("shifted", mine, placement="out")
    for me in range(2):
        k.threadblock(me).read_reduce([k.input(me)[0:2]], k.output(me)[0:2])
    return k.algorithm()


ONE_SIDED: tuple[Algorithm, ...] = (
    one_shot(2),
    one_shot(3, chunks=2),
    staged(4),
    shared(3),
    gets(3, chunks=2),
    puts(3, chunks=2),
    stores(3, chunks=5, root=1),
    window(3),
    one_way(2),
    pushed(2),
    crossed(),
    both_sides(),
    shifted(),
)


def placements_of(algorithm: Algorithm) -> list[Placement]:
    """The placements that a program is proved in."""
    return [placement for placement in Placement if placement in algorithm.placements]
