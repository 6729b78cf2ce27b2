"""Units: an Algorithm cut as finely as any run may cut it.

On a large launch a step of count k may move its k chunks as k messages, each passed on before the next has come.
A *unit* is one such part: unit u of a step with a message receives chunk u, reads and writes its slots, then sends
chunk u. All checks work on units; what holds for this finest cut holds for every coarser one, because a coarser cut
only adds order. Local steps are listed chunk by chunk as well, for uniformity: no message or dependence can begin or
end between their units. A signal, wait, flush or nop is one unit.

Unit numbers follow step numbers, so those of a threadblock are a contiguous range in program order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from commlib.ir.algorithm import NOTHING, Algorithm, Ints
from commlib.ir.links import Links


@dataclass(frozen=True, eq=False)
class Units:
    """The units of an Algorithm whose messages match.

    ``first[s]`` is the first unit of step s (one row more than steps); ``step`` and ``offset`` are the step of each
    unit and its chunk within the step; ``partner`` is the unit that receives what a unit sends, or NOTHING.
    ``waits`` lists, for the first unit of a step with dependences, the last unit of each step it depends on, and for
    a step that waits for a signal, also the unit that gives it.
    """

    algorithm: Algorithm
    links: Links
    first: Ints
    step: Ints
    offset: Ints
    partner: Ints
    waits: dict[int, list[int]]

    def __len__(self) -> int:
        return len(self.step)

    @cached_property
    def threadblock(self) -> Ints:
        """The threadblock row of each unit."""
        return self.algorithm.step_threadblock[self.step]

    @cached_property
    def send_link(self) -> Ints:
        """The connection on which each unit sends, or NOTHING."""
        return self.links.send_link[self.step]

    @cached_property
    def recv_link(self) -> Ints:
        """The connection on which each unit receives, or NOTHING."""
        return self.links.recv_link[self.step]


def units(algorithm: Algorithm, links: Links, partner_step: Ints, signals: Links | None = None) -> Units:
    """Cut the algorithm into units; ``partner_step`` comes from ``Links.partners``, ``signals`` from ``signal_links``.

    O(units).
    """
    sizes = np.maximum(algorithm.count, 1)
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    step = np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)
    offset = np.arange(len(step), dtype=np.int64) - first[step]
    peer = partner_step[step]
    partner = np.where(peer == NOTHING, NOTHING, first[peer] + offset)
    waits = _waits(algorithm, first)
    if signals is not None:
        for signal, wait in zip(*signals.messages(), strict=True):
            waits.setdefault(int(first[wait]), []).append(int(first[signal]))
    return Units(algorithm, links, first, step, offset, partner, waits)


def _waits(algorithm: Algorithm, first: Ints) -> dict[int, list[int]]:
    start = algorithm.dep_start.tolist()
    last = (first[algorithm.dep + 1] - 1).tolist()
    waiting = np.flatnonzero(np.diff(algorithm.dep_start)).tolist()
    begin = first[:-1].tolist()
    return {begin[s]: last[start[s] : start[s + 1]] for s in waiting}
