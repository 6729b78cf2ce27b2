"""What a proof costs stays near linear where much meets in one slot. Memory is measured, for it does not vary."""

from __future__ import annotations

import tracemalloc

import pytest
from verify_samples import I, O, Plan

from commlib.collectives import Placement, allreduce, custom
from commlib.ir.algorithm import Op
from commlib.verify import verify


def star_allreduce(n: int) -> Plan:
    """Rank 0 has a threadblock per peer; one after another they reduce into one slot, then all send it."""
    plan = Plan("star", allreduce(n), 0)
    plan.block(0).add(Op.COPY, (I, 0), (O, 0))
    for peer in range(1, n):
        block = plan.block(0, peer, peer)
        block.add(Op.RECV_REDUCE_COPY, (O, 0), (O, 0), deps=[(peer - 1, 0)])
        block.add(Op.SEND, (O, 0), deps=[(n - 1, 0)])
        plan.block(peer, send=0).add(Op.SEND, (I, 0))
        plan.block(peer, recv=0).add(Op.RECV, None, (O, 0))
    return plan


def chunk_sum(n: int) -> Plan:
    """All chunks of one rank are reduced into one slot, one after another."""
    plan = Plan("sum", custom("sum", [n], [1], {(0, 0): [(0, k) for k in range(n)]}, [(0, n)]), 0)
    block = plan.block(0)
    for k in range(n):
        block.add(Op.REDUCE if k else Op.COPY, (I, k), (O, 0))
    return plan


def far_overwrites(n: int) -> Plan:
    """A chain through n threadblocks; what each wrote before is written again at the chain's end."""
    plan = Plan("far", custom("far", [1], [n], {(0, k): [(0, 0)] for k in range(n)}, [(n, 0)]), 0)
    for k in range(n):
        block = plan.block(0)
        block.add(Op.COPY, (I, 0), (O, k))
        block.add(Op.NOP, count=0, deps=[(k - 1, 1)] if k else [])
    last = plan.block(0)
    for k in range(n):
        last.add(Op.COPY, (I, 0), (O, k), deps=[] if k else [(n - 1, 1)])
    return plan


@pytest.mark.parametrize("make", [star_allreduce, chunk_sum, far_overwrites])
def test_memory(make) -> None:
    """Vector clocks of all threadblocks took 20 and 60 MB here, explicit multisets 50 MB."""
    algorithm = make(1000).build()
    tracemalloc.start()
    report = verify(algorithm)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.proved == set(Placement)
    assert peak < 15e6


def test_a_proof_of_nothing_does_not_list_the_slots() -> None:
    algorithm = Plan("nothing", allreduce(1, 200_000), 0).build()
    tracemalloc.start()
    assert verify(algorithm).proved == {Placement.IN}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6


def test_a_missing_link_of_the_chain_is_found() -> None:
    plan = far_overwrites(300)
    plan.blocks[150].rows[1].deps = []
    report = verify(plan.build(), [Placement.OUT])
    placed = report.placements[Placement.OUT]
    assert len(placed.findings) + sum(placed.more.values()) == 150
