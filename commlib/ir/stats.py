"""Statistics of an Algorithm: how much it moves, how many steps it takes, and how long its chain of messages is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from commlib.collectives import Buffer
from commlib.ir.algorithm import SENDS, Algorithm, Ints, Op
from commlib.ir.links import links, signal_links


@dataclass(frozen=True)
class Stats:
    """What an Algorithm costs, in steps, messages and chunks.

    ``chunks_sent`` has one entry per rank: what it sent in messages, wrote to other ranks, or had read by them.
    ``remote_reads`` and ``remote_writes`` count the operands of one-sided steps that lie on other ranks.
    ``critical_path`` is the largest number of messages and signals, one after another, on a chain of threadblock
    order, dependences, messages and signals; None when sends and receives, or signals and waits, do not match or
    steps wait for one another in a circle.
    """

    steps: int
    threadblocks: int
    channels: int
    messages: int
    chunks_sent: tuple[int, ...]
    critical_path: int | None
    longest_threadblock: int
    signals: int = 0
    remote_reads: int = 0
    remote_writes: int = 0

    @property
    def chunks_moved(self) -> int:
        """All chunks sent by all ranks."""
        return sum(self.chunks_sent)

    @property
    def max_chunks_sent(self) -> int:
        """The chunks sent by the rank that sends most."""
        return max(self.chunks_sent, default=0)


def statistics(algorithm: Algorithm) -> Stats:
    """Count steps, messages and chunks, and find the critical path. O(steps + operands + dependences)."""
    reads, writes = _remote_operands(algorithm)
    sent = np.zeros(algorithm.ranks, dtype=np.int64)
    for sender, _, chunks in _flows(algorithm):
        np.add.at(sent, sender, chunks)
    return Stats(
        steps=algorithm.step_count,
        threadblocks=len(algorithm.tb_rank),
        channels=algorithm.channels,
        messages=int(SENDS[algorithm.op].sum()),
        chunks_sent=tuple(sent.tolist()),
        critical_path=_critical_path(algorithm),
        longest_threadblock=int(np.diff(algorithm.tb_start).max(initial=0)),
        signals=int((algorithm.op == Op.SIGNAL).sum()),
        remote_reads=len(reads),
        remote_writes=len(writes),
    )


def traffic(algorithm: Algorithm) -> Ints:
    """The chunks that row sends to column, as a ranks x ranks matrix. O(ranks^2 + steps + operands).

    What a rank reads of another counts as sent by that one, what it writes there as sent by itself.
    """
    matrix = np.zeros((algorithm.ranks, algorithm.ranks), dtype=np.int64)
    for sender, receiver, chunks in _flows(algorithm):
        np.add.at(matrix, (sender, receiver), chunks)
    return matrix


def _flows(a: Algorithm) -> Iterator[tuple[Ints, Ints, Ints]]:
    """(sender, receiver, chunks) of the messages, of the remote reads and of the remote writes."""
    sending = SENDS[a.op]
    yield a.step_rank[sending], a.tb_send[a.step_threadblock[sending]], a.count[sending]
    reads, writes = _remote_operands(a)
    step, rank = a.operand_step, a.operand_rank
    yield rank[reads], a.step_rank[step[reads]], a.count[step[reads]]
    yield a.step_rank[step[writes]], rank[writes], a.count[step[writes]]


def _remote_operands(a: Algorithm) -> tuple[Ints, Ints]:
    """The rows of operands that read, and that write, slots of other ranks."""
    remote = (a.operand_buffer >= Buffer.INPUT) & (a.operand_rank != a.step_rank[a.operand_step])
    return np.flatnonzero(remote & (a.operand_writes == 0)), np.flatnonzero(remote & (a.operand_writes == 1))


def _critical_path(a: Algorithm) -> int | None:
    """Longest path by messages and signals, over the steps in topological order."""
    met = [found for found in (links(a), signal_links(a)) if len(found)]
    if any(found.partners(a.count) is None for found in met):
        return None
    steps = np.arange(a.step_count, dtype=np.int64)
    follows = np.isin(steps, a.tb_start, invert=True)
    edges = [
        (steps[follows] - 1, steps[follows], 0),
        (a.dep, np.repeat(steps, np.diff(a.dep_start)), 0),
        *((found.sends, found.recvs, 1) for found in met),
    ]
    source, target, weight = (
        np.concatenate(column)
        for column in zip(*((s, t, np.full(len(s), w, dtype=np.int64)) for s, t, w in edges), strict=True)
    )
    return _longest_path(a.step_count, source, target, weight)


def _longest_path(nodes: int, source: Ints, target: Ints, weight: Ints) -> int | None:
    """The heaviest path of a directed graph; None when it has a cycle. Kahn's algorithm, O(nodes + edges)."""
    order = np.argsort(source, kind="stable")
    start = np.searchsorted(source[order], np.arange(nodes + 1)).tolist()
    targets, weights = target[order].tolist(), weight[order].tolist()
    missing = np.bincount(target, minlength=nodes).tolist()
    longest, ready, done = [0] * nodes, [n for n in range(nodes) if not missing[n]], 0
    while ready:
        node = ready.pop()
        done += 1
        for edge in range(start[node], start[node + 1]):
            successor = targets[edge]
            longest[successor] = max(longest[successor], longest[node] + weights[edge])
            missing[successor] -= 1
            if not missing[successor]:
                ready.append(successor)
    return max(longest, default=0) if done == nodes else None
