"""Deadlocks that only cut messages have: a runtime that sends whole messages does not run into them."""

from __future__ import annotations

import pytest

from commlib.collectives import Buffer, Placement, custom
from commlib.errors import VerificationError
from commlib.ir.algorithm import Algorithm, Op
from commlib.ir.builder import AlgorithmBuilder
from commlib.verify import FindingKind, require, verify

INPUT, OUTPUT = Buffer.INPUT, Buffer.OUTPUT


def exchange(chunks: int) -> Algorithm:
    """Two ranks, each with one threadblock that sends all its chunks as one message and then receives."""
    sources = {(r, k): [(1 - r, k)] for r in range(2) for k in range(chunks)}
    builder = AlgorithmBuilder("exchange", custom("exchange", [chunks] * 2, [chunks] * 2, sources), [0, 0])
    for rank in range(2):
        builder.threadblock(rank, send=1 - rank, recv=1 - rank)
        builder.step(Op.SEND, (INPUT, 0), count=chunks)
        builder.step(Op.RECV, None, (OUTPUT, 0), count=chunks)
    return builder.build()


def test_cut_into_more_chunks_than_the_fifo_holds_it_deadlocks():
    report = verify(exchange(16), [Placement.OUT])
    assert not report.ok
    assert {finding.kind for finding in report.findings} == {FindingKind.DEADLOCK}
    assert report.smallest_fifo_depth == 16
    assert verify(exchange(16), [Placement.OUT], fifo_depth=16).ok


def test_whole_messages_need_one_slot():
    report = verify(exchange(16), [Placement.OUT], fifo_depth=1, whole_messages=True)
    assert report.ok
    assert "smallest that works if messages are cut: 16" in report.text()
    assert require(exchange(16), Placement.OUT, 1, whole_messages=True).ok
    with pytest.raises(VerificationError, match="deadlock"):
        require(exchange(16), Placement.OUT, 1)


def test_a_real_deadlock_stays_one():
    builder = AlgorithmBuilder("both", custom("both", [1, 1], [1, 1], {}), [0, 0])
    for rank in range(2):
        builder.threadblock(rank, send=1 - rank, recv=1 - rank)
        builder.step(Op.RECV, None, (OUTPUT, 0))
        builder.step(Op.SEND, (INPUT, 0))
    report = verify(builder.build(), [Placement.OUT], whole_messages=True)
    assert [finding.kind for finding in report.findings] == [FindingKind.DEADLOCK]
