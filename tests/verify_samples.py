"""Small algorithms for the verifier's tests, as plans: lists of threadblocks that a test can change and build."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

from commlib.collectives import Buffer, Collective, allgather, allreduce, alltoall
from commlib.ir.algorithm import Algorithm, Op
from commlib.ir.builder import AlgorithmBuilder
from commlib.verify.reference import Pick

I, O, S = Buffer  # noqa: E741
Slot = tuple[Buffer, int] | None
_CLOCK = itertools.count()


@dataclass
class Row:
    op: Op
    src: Slot = None
    dst: Slot = None
    count: int = 1
    deps: list[tuple[int, int]] = field(default_factory=list)
    when: int = field(default_factory=_CLOCK.__next__)


@dataclass
class Block:
    rank: int
    send: int | None = None
    recv: int | None = None
    channel: int = 0
    rows: list[Row] = field(default_factory=list)

    def add(self, op: Op, src: Slot = None, dst: Slot = None, count: int = 1, deps: list[tuple[int, int]] = ()) -> None:
        self.rows.append(Row(op, src, dst, count, list(deps)))


@dataclass
class Plan:
    name: str
    collective: Collective
    scratch: int
    blocks: list[Block] = field(default_factory=list)

    def block(self, rank: int, send: int | None = None, recv: int | None = None, channel: int = 0) -> Block:
        self.blocks.append(Block(rank, send, recv, channel))
        return self.blocks[-1]

    def build(self) -> Algorithm:
        builder = AlgorithmBuilder(self.name, self.collective, [self.scratch] * self.collective.ranks)
        line = 0
        for block in self.blocks:
            builder.threadblock(block.rank, block.send, block.recv, block.channel)
            for row in block.rows:
                line += 1
                builder.step(row.op, row.src, row.dst, row.count, row.deps, line)
        return builder.build("plan.py")


def ring_allreduce(n: int, size: int = 1) -> Plan:
    """One threadblock per rank, fused steps of count ``size``; right in both placements."""
    plan = Plan("ring", allreduce(n, n * size), 0)
    for r in range(n):
        b = plan.block(r, (r + 1) % n, (r - 1) % n)
        at = [((r - k) % n) * size for k in range(2 * n)]
        b.add(Op.SEND, (I, at[0]), count=size)
        for k in range(1, n - 1):
            b.add(Op.RECV_REDUCE_SEND, (I, at[k]), count=size)
        b.add(Op.RECV_REDUCE_COPY_SEND, (I, at[n - 1]), (O, at[n - 1]), size)
        for k in range(n, 2 * n - 2):
            b.add(Op.RECV_COPY_SEND, None, (O, at[k]), size)
        b.add(Op.RECV, None, (O, at[2 * n - 2]), size)
    return plan


def in_place_ring(n: int) -> Plan:
    """As the msccl-tools' rings: touches the input only, so it is right in place only."""
    plan = ring_allreduce(n)
    for block in plan.blocks:
        for row in block.rows:
            row.dst = row.dst and (I, row.dst[1])
    return plan


def split_ring(n: int) -> Plan:
    """Ring allreduce with a sending and a receiving threadblock per rank. In place, the order of a chunk's first
    send and its last write comes from the messages round the ring alone."""
    plan = Plan("split ring", allreduce(n, n), 0)
    for r in range(n):
        send, recv = plan.block(r, send=(r + 1) % n), plan.block(r, recv=(r - 1) % n)
        send.add(Op.SEND, (I, r))
        for k in range(1, 2 * n - 1):
            c = (r - k) % n
            if k < n:
                recv.add(Op.RECV_REDUCE_COPY, (I, c), (O, c))
            else:
                recv.add(Op.RECV, None, (O, c))
            if k < 2 * n - 2:
                send.add(Op.SEND, (O, c), deps=[(1, k - 1)])
    return plan


def allpairs(n: int) -> Plan:
    """Two-shot allreduce: a threadblock per peer, and a local one that reduces from scratch."""
    plan = Plan("allpairs", allreduce(n, n), n)
    for r in range(n):
        peers = [p for p in range(n) if p != r]
        for p in peers:
            b = plan.block(r, p, p)
            b.add(Op.SEND, (I, p))
            b.add(Op.RECV, None, (S, p))
            b.add(Op.SEND, (O, r), deps=[(n - 1, n - 1)])
            b.add(Op.RECV, None, (O, p))
        local = plan.block(r)
        local.add(Op.COPY, (I, r), (O, r))
        for tb, p in enumerate(peers):
            local.add(Op.REDUCE, (S, p), (O, r), deps=[(tb, 1)])
    return plan


def doubling_allgather(n: int) -> Plan:
    """Recursive doubling, n a power of two: a threadblock per round, messages of 1, 2, 4, ... chunks."""
    plan = Plan("doubling", allgather(n), 0)
    for r in range(n):
        plan.block(r).add(Op.COPY, (I, 0), (O, r))
        for k in range(n.bit_length() - 1):
            size = 1 << k
            mine, peer = r // size * size, r ^ size
            b = plan.block(r, peer, peer)
            b.add(Op.SEND, (O, mine), count=size, deps=[(k, 1 if k else 0)])
            b.add(Op.RECV, None, (O, peer // size * size), size)
    return plan


def direct_alltoall(n: int) -> Plan:
    """Each pair exchanges directly; right out of place, racy in place."""
    plan = Plan("alltoall", alltoall(n), 0)
    for r in range(n):
        plan.block(r).add(Op.COPY, (I, r), (O, r))
        for p in range(n):
            if p != r:
                plan.block(r, send=p).add(Op.SEND, (I, p))
                plan.block(r, recv=p).add(Op.RECV, None, (O, p))
    return plan


def plan_of(algorithm: Algorithm) -> Plan:
    """An Algorithm as a plan, so that it can be changed."""
    plan = Plan(algorithm.name, algorithm.collective, max(algorithm.scratch_chunks))
    for rank in range(algorithm.ranks):
        for tb in algorithm.threadblocks(rank):
            block = plan.block(rank, tb.send, tb.recv, tb.channel)
            for step in map(algorithm.step, tb.steps):
                slots = (span and (span.buffer, span.index) for span in (step.source, step.destination))
                block.add(step.op, *slots, count=step.count, deps=step.depends)
    return plan


def picks(seed: int, number: int) -> list[Pick]:
    """Interleavings: first, last, random, and random fixed priorities between threadblocks."""
    rng = random.Random(seed)
    chosen: list[Pick] = [min, max]
    for _ in range(number):
        chosen.append(random.Random(rng.random()).choice)
        chosen.append(_by_priority(random.Random(rng.random())))
    return chosen


def _by_priority(rng: random.Random) -> Pick:
    priority: dict[tuple[int, int], float] = {}
    return lambda places: min(places, key=lambda place: priority.setdefault(place, rng.random()))
