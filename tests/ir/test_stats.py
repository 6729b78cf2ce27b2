"""Statistics of small algorithms, counted by hand."""

import pytest

from commlib.collectives import Buffer, allreduce
from commlib.ir.algorithm import Op
from commlib.ir.builder import AlgorithmBuilder
from commlib.ir.stats import statistics

I, O, S = Buffer  # noqa: E741


def _ring(n: int) -> AlgorithmBuilder:
    b = AlgorithmBuilder("ring", allreduce(n, n), [0] * n)
    for r in range(n):
        b.threadblock(r, (r + 1) % n, (r - 1) % n)
        b.step(Op.SEND, (I, r))
        for k in range(1, n - 1):
            b.step(Op.RECV_REDUCE_SEND, (I, (r - k) % n))
        b.step(Op.RECV_REDUCE_COPY_SEND, (I, (r + 1) % n), (O, (r + 1) % n))
        for k in range(n, 2 * n - 2):
            b.step(Op.RECV_COPY_SEND, None, (O, (r - k) % n))
        b.step(Op.RECV, None, (O, (r + 2) % n))
    return b


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_ring_allreduce(n: int) -> None:
    stats = statistics(_ring(n).build())
    assert stats.steps == n * (2 * n - 1)
    assert stats.critical_path == 2 * (n - 1)
    assert stats.messages == stats.chunks_moved == n * (2 * n - 2)
    assert stats.chunks_sent == (2 * n - 2,) * n
    assert stats.max_chunks_sent == stats.longest_threadblock - 1 == 2 * n - 2
    assert (stats.threadblocks, stats.channels) == (n, 1)


def test_dependences_carry_the_path() -> None:
    b = AlgorithmBuilder("relay", allreduce(3), [1, 1, 1])
    b.threadblock(0, send=1)
    b.step(Op.SEND, (I, 0))
    b.threadblock(1, recv=0)
    b.step(Op.RECV, None, (S, 0))
    b.threadblock(1, send=2, channel=1)
    b.step(Op.SEND, (S, 0), depends=[(0, 0)])
    b.threadblock(2, recv=1, channel=1)
    b.step(Op.RECV, None, (S, 0))
    stats = statistics(b.build())
    assert stats.critical_path == 2
    assert stats.channels == 2
    assert stats.chunks_sent == (1, 1, 0)


def test_no_critical_path_without_a_match_or_with_a_circle() -> None:
    b = AlgorithmBuilder("lost", allreduce(2), [0, 0])
    b.threadblock(0, send=1)
    b.step(Op.SEND, (I, 0))
    assert statistics(b.build()).critical_path is None
    b = AlgorithmBuilder("circle", allreduce(2), [0, 0])
    for tb in range(2):
        b.threadblock(0)
        b.step(Op.NOP, count=0, depends=[(1 - tb, 0)])
    assert statistics(b.build()).critical_path is None


def test_nothing_at_all() -> None:
    stats = statistics(AlgorithmBuilder("nothing", allreduce(2), [0, 0]).build())
    assert (stats.steps, stats.critical_path, stats.channels, stats.longest_threadblock) == (0, 0, 1, 0)
