"""Right one-sided programs for the tests of the verifier, written in the DSL; together they have every kind of step."""

from __future__ import annotations

from collections.abc import Callable

from commlib.collectives import allgather, allreduce, alltoall, broadcast, reducescatter
from commlib.dsl import OneSidedProgram
from commlib.dsl.onesided import ThreadblockWriter
from commlib.ir.algorithm import Algorithm


def barrier(tb: ThreadblockWriter, rank: int, ranks: int) -> None:
    """Everyone signals everyone and waits for everyone."""
    peers = [p for p in range(ranks) if p != rank]
    for p in peers:
        tb.signal(p)
    for p in peers:
        tb.wait(p)


def one_shot(n: int) -> Algorithm:
    """Allreduce: put the own input into every scratch, wait for all, reduce what came in rank order."""
    k = OneSidedProgram("one_shot", allreduce(n))
    for r in range(n):
        tb = k.threadblock(r)
        tb.copy(k.input(r)[0], k.scratch(r)[r])
        for p in range(n):
            if p != r:
                tb.put(k.input(r)[0], k.scratch(p)[r])
                tb.signal(p)
        for p in range(n):
            if p != r:
                tb.wait(p)
                tb.flush(p)
        tb.read_reduce([k.scratch(r)[q] for q in range(n)], k.output(r)[0])
    return k.algorithm()


def direct_shared(n: int) -> Algorithm:
    """Allreduce on the tensors themselves: rank r reduces shard r of all inputs into all outputs."""
    k = OneSidedProgram("direct_shared", allreduce(n, n))
    for r in range(n):
        tb = k.threadblock(r)
        barrier(tb, r, n)
        tb.read_reduce_store([k.input(q)[r] for q in range(n)], [k.output(q)[r] for q in range(n)])
        barrier(tb, r, n)
    return k.algorithm()


def direct_staged(n: int) -> Algorithm:
    """Allreduce: stage shards in the own scratch, reduce the own shard out of all, get the others' results."""
    k = OneSidedProgram("direct_staged", allreduce(n, n))
    for r in range(n):
        tb = k.threadblock(r)
        tb.store(k.input(r)[0:n], [k.scratch(r)[0:n]])
        barrier(tb, r, n)
        shards = [k.scratch(q)[r] if q != r else k.input(r)[r] for q in range(n)]
        tb.read_reduce_store(shards, [k.output(r)[r], k.scratch(r)[n]])
        barrier(tb, r, n)
        for p in range(n):
            if p != r:
                tb.get(k.scratch(p)[n], k.output(r)[p])
    return k.algorithm()


def put_allgather(n: int) -> Algorithm:
    """Everyone puts its input into every output, a threadblock for each peer, and leaves when no put is in flight."""
    k = OneSidedProgram("put_allgather", allgather(n))
    for r in range(n):
        own = k.threadblock(r, channel=n).store(k.input(r)[0], [k.output(r)[r]])
        for p in range(n):
            if p != r:
                tb = k.threadblock(r, channel=0)
                tb.signal(p)
                tb.wait(p)
                tb.put(k.input(r)[0], k.output(p)[r], after=own)
                tb.signal(p)
                tb.wait(p)
                tb.flush(p)
    return k.algorithm()


def get_alltoall(n: int) -> Algorithm:
    """Everyone gets its shards out of the others' inputs; out of place only."""
    k = OneSidedProgram("get_alltoall", alltoall(n), placement="out")
    for r in range(n):
        k.threadblock(r, channel=n).copy(k.input(r)[r], k.output(r)[r])
        for p in range(n):
            if p != r:
                tb = k.threadblock(r)
                tb.signal(p)
                tb.wait(p)
                tb.get(k.input(p)[r], k.output(r)[p])
                tb.signal(p)
                tb.wait(p)
    return k.algorithm()


def reduce_scatter(n: int) -> Algorithm:
    """Reads straight out of the others' inputs; in place the own shard is written when all have read."""
    k = OneSidedProgram("reduce_scatter", reducescatter(n, 2))
    for r in range(n):
        tb = k.threadblock(r)
        barrier(tb, r, n)
        tb.read_reduce([k.input(q)[2 * r : 2 * r + 2] for q in range(n)], k.output(r)[0:2])
        barrier(tb, r, n)
    return k.algorithm()


def relayed_broadcast(n: int) -> Algorithm:
    """One- and two-sided steps mixed: the root puts to rank 1, which passes messages along; a last signal ends it."""
    k = OneSidedProgram("relayed_broadcast", broadcast(n, 2))
    root = k.threadblock(0)
    copied = k.threadblock(0, channel=1).copy(k.input(0)[0:2], k.output(0)[0:2])
    root.put(k.input(0)[0:2], k.scratch(1)[0:2])
    root.signal(1)
    root.flush(1)
    root.nop(after=copied)
    for r in range(1, n):
        tb = k.threadblock(r, send=(r + 1) if r + 1 < n else None, recv=r - 1 if r > 1 else None)
        if r == 1:
            tb.wait(0)
            tb.copy(k.scratch(1)[0:2], k.output(1)[0:2])
            if n > 2:
                tb.send(k.output(1)[0:2])
        elif r + 1 < n:
            tb.recv_copy_send(k.output(r)[0:2])
        else:
            tb.recv(k.output(r)[0:2])
    return k.algorithm()


def reused_slot(n: int) -> Algorithm:
    """Allgather in rounds through one scratch slot of the neighbour, which signals when it is free again."""
    k = OneSidedProgram("reused_slot", allgather(n))
    for r in range(n):
        right, left = (r + 1) % n, (r - 1) % n
        tb = k.threadblock(r)
        tb.copy(k.input(r)[0], k.output(r)[r])
        for step in range(n - 1):
            if step:
                tb.wait(right)
            tb.put(k.output(r)[(r - step) % n], k.scratch(right)[0])
            tb.signal(right)
            tb.wait(left)
            tb.copy(k.scratch(r)[0], k.output(r)[(r - step - 1) % n])
            if step < n - 2:
                tb.signal(left)
        tb.flush(right)
    return k.algorithm()


SAMPLES: dict[str, Callable[[int], Algorithm]] = {
    make.__name__: make
    for make in (
        one_shot,
        direct_shared,
        direct_staged,
        put_allgather,
        get_alltoall,
        reduce_scatter,
        relayed_broadcast,
        reused_slot,
    )
}
