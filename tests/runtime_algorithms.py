"""Small algorithms, built by hand, for the tests of the runtime."""

from commlib import collectives
from commlib.collectives import Buffer
from commlib.ir.algorithm import Algorithm, Op
from commlib.ir.builder import AlgorithmBuilder

I, O, S = Buffer.INPUT, Buffer.OUTPUT, Buffer.SCRATCH  # noqa: E741


def _builder(name: str, collective: collectives.Collective, scratch: int = 0) -> AlgorithmBuilder:
    return AlgorithmBuilder(name, collective, [scratch] * collective.ranks)


def ring_allreduce(ranks: int, channels: int = 1) -> Algorithm:
    """One ring per channel; chunk k of a channel starts at rank k."""
    b = _builder("ring_allreduce", collectives.allreduce(ranks, ranks * channels))
    for rank in range(ranks):
        for channel in range(channels):
            b.threadblock(rank, (rank + 1) % ranks, (rank - 1) % ranks, channel)
            at = [channel * ranks + (rank - hop) % ranks for hop in range(ranks)]
            b.step(Op.SEND, (I, at[0]))
            for hop in range(1, ranks - 1):
                b.step(Op.RECV_REDUCE_SEND, (I, at[hop]))
            b.step(Op.RECV_REDUCE_COPY_SEND, (I, at[-1]), (O, at[-1]))
            for hop in range(ranks - 2):
                b.step(Op.RECV_COPY_SEND, None, (O, at[hop]))
            b.step(Op.RECV, None, (O, at[ranks - 2]))
    return b.build()


def allpairs_allreduce(ranks: int) -> Algorithm:
    """Rank r reduces chunk r in scratch copies and sends it back; a threadblock per peer, and one that reduces."""
    b = _builder("allpairs_allreduce", collectives.allreduce(ranks, ranks), ranks)
    for rank in range(ranks):
        peers = [peer for peer in range(ranks) if peer != rank]
        b.threadblock(rank)
        b.step(Op.COPY, (I, rank), (O, rank))
        for index, peer in enumerate(peers):
            b.step(Op.REDUCE, (S, peer), (O, rank), depends=[(index + 1, 1)])
        for peer in peers:
            b.threadblock(rank, peer, peer)
            b.step(Op.SEND, (I, peer))
            b.step(Op.RECV, None, (S, peer))
            b.step(Op.SEND, (O, rank), depends=[(0, ranks - 1)])
            b.step(Op.RECV, None, (O, peer))
    return b.build()


def direct_alltoall(ranks: int, chunks: int = 1, name: str = "alltoall") -> Algorithm:
    """Every pair exchanges its shards, each as one message of ``chunks`` chunks."""
    b = _builder("direct_" + name, collectives.collective(name, ranks, chunks))
    for rank in range(ranks):
        b.threadblock(rank)
        b.step(Op.COPY, (I, rank * chunks), (O, rank * chunks), chunks)
        for peer in range(ranks):
            if peer != rank:
                b.threadblock(rank, peer, peer)
                b.step(Op.SEND, (I, peer * chunks), None, chunks)
                b.step(Op.RECV, None, (O, peer * chunks), chunks)
    return b.build()


def ring_allgather(ranks: int, chunks: int = 1) -> Algorithm:
    """Every shard goes round the ring."""
    b = _builder("ring_allgather", collectives.allgather(ranks, chunks))
    for rank in range(ranks):
        b.threadblock(rank, (rank + 1) % ranks, (rank - 1) % ranks)
        b.step(Op.SEND, (I, 0), None, chunks)
        for hop in range(1, ranks - 1):
            b.step(Op.RECV_COPY_SEND, None, (O, (rank - hop) % ranks * chunks), chunks)
        b.step(Op.RECV, None, (O, (rank + 1) % ranks * chunks), chunks)
        b.threadblock(rank)
        b.step(Op.COPY, (I, 0), (O, rank * chunks), chunks)
    return b.build()


def ring_reducescatter(ranks: int, chunks: int = 1) -> Algorithm:
    """Shard r starts at rank r + 1 and ends, reduced, at rank r."""
    b = _builder("ring_reducescatter", collectives.reducescatter(ranks, chunks))
    for rank in range(ranks):
        b.threadblock(rank, (rank + 1) % ranks, (rank - 1) % ranks)
        b.step(Op.SEND, (I, (rank - 1) % ranks * chunks), None, chunks)
        for hop in range(2, ranks):
            b.step(Op.RECV_REDUCE_SEND, (I, (rank - hop) % ranks * chunks), None, chunks)
        b.step(Op.RECV_REDUCE_COPY, (I, rank * chunks), (O, 0), chunks)
    return b.build()


def chain(name: str, ranks: int, chunks: int = 2, root: int = 0) -> Algorithm:
    """Broadcast down, or reduce up, the chain root, root + 1, ..."""
    b = _builder(f"chain_{name}", collectives.collective(name, ranks, chunks, root))
    down = name == "broadcast"
    for rank in range(ranks):
        place, step = (rank - root) % ranks, 1 if down else -1
        before, after = (rank - step) % ranks, (rank + step) % ranks
        first, last = (place == 0, place == ranks - 1) if down else (place == ranks - 1, place == 0)
        b.threadblock(rank, None if last else after, None if first else before)
        for chunk in range(chunks):
            if first:
                b.step(Op.SEND, (I, chunk))
            elif down:
                b.step(Op.RECV if last else Op.RECV_COPY_SEND, None, (O, chunk))
            elif last:
                b.step(Op.RECV_REDUCE_COPY, (I, chunk), (O, chunk))
            else:
                b.step(Op.RECV_REDUCE_SEND, (I, chunk))
        if first and down:
            b.step(Op.COPY, (I, 0), (O, 0), chunks)
    return b.build()


def detour(ranks: int = 2) -> Algorithm:
    """Sendrecv of two chunks that arrive in each other's slots, then change places: long chunks in short slots."""
    b = _builder("detour", collectives.sendrecv(ranks, 2), 1)
    for rank in range(ranks):
        b.threadblock(rank, (rank + 1) % ranks, (rank - 1) % ranks)
        b.step(Op.SEND, (I, 0))
        b.step(Op.SEND, (I, 1))
        b.step(Op.RECV, None, (O, 1))
        b.step(Op.RECV, None, (O, 0))
        b.step(Op.COPY, (O, 0), (S, 0))
        b.step(Op.COPY, (O, 1), (O, 0))
        b.step(Op.COPY, (S, 0), (O, 1))
    return b.build()


SMALL: tuple[Algorithm, ...] = (
    ring_allreduce(2),
    ring_allreduce(4),
    ring_allreduce(3, channels=2),
    allpairs_allreduce(4),
    direct_alltoall(4),
    direct_alltoall(3, chunks=3),
    ring_allgather(4, chunks=2),
    ring_reducescatter(4, chunks=3),
    chain("broadcast", 4, chunks=3, root=1),
    chain("reduce", 4, chunks=3, root=2),
    detour(),
)
