"""Statistics of an Algorithm: how much it moves, how many steps it takes, and how long its chain of messages is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from commlib.ir.algorithm import NOTHING, SENDS, Algorithm, Ints
from commlib.ir.links import links


@dataclass(frozen=True)
class Stats:
    """What an Algorithm costs, in steps, messages and chunks.

    ``chunks_sent`` has one entry per rank. ``critical_path`` is the largest number of messages, one after another,
    on a chain of threadblock order, dependences and messages; None when sends and receives do not match or steps
    wait for one another in a circle.
    """

    steps: int
    threadblocks: int
    channels: int
    messages: int
    chunks_sent: tuple[int, ...]
    critical_path: int | None
    longest_threadblock: int

    @property
    def chunks_moved(self) -> int:
        """All chunks sent by all ranks."""
        return sum(self.chunks_sent)

    @property
    def max_chunks_sent(self) -> int:
        """The chunks sent by the rank that sends most."""
        return max(self.chunks_sent, default=0)


def statistics(algorithm: Algorithm) -> Stats:
    """Count steps, messages and chunks, and find the critical path. O(steps + dependences)."""
    sending = SENDS[algorithm.op]
    sent = np.bincount(algorithm.step_rank[sending], weights=algorithm.count[sending], minlength=algorithm.ranks)
    return Stats(
        steps=algorithm.step_count,
        threadblocks=len(algorithm.tb_rank),
        channels=algorithm.channels,
        messages=int(sending.sum()),
        chunks_sent=tuple(sent.astype(np.int64).tolist()),
        critical_path=_critical_path(algorithm),
        longest_threadblock=int(np.diff(algorithm.tb_start).max(initial=0)),
    )


def _critical_path(a: Algorithm) -> int | None:
    """Longest path by messages, over the steps in topological order."""
    partner = links(a).partners(a.count)
    if partner is None:
        return None
    steps = np.arange(a.step_count, dtype=np.int64)
    follows = np.isin(steps, a.tb_start, invert=True)
    edges = [
        (steps[follows] - 1, steps[follows], 0),
        (a.dep, np.repeat(steps, np.diff(a.dep_start)), 0),
        (np.flatnonzero(partner != NOTHING), partner[partner != NOTHING], 1),
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
