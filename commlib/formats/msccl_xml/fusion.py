"""Fusion: the GPU runtimes run consecutive ``re`` steps as one, and where that is another program.

The parsers of microsoft/msccl, msccl-executor-nccl and RCCL all put a ``re`` into the transmission of the ``re``
before it when both have the same dstbuf, dstoff and srcbuf, the later has depid="-1" and the earlier hasdep="0"; nop
steps between them do not separate them. What is fused reads its destination once, adds every source and writes once,
over the cnt of its last step. That is another program

- where the cnts differ;
- where a later source overlaps the destination: it is read as it was before the first ``re``. In place, input and
  output are one memory;
- where a nop between them waits: the fused steps do not wait for it, a later one does.

So the writer puts hasdep="1" on a ``re`` that must not be fused with the next (nobody need wait for it), and the
reader refuses a file whose steps would be fused to another effect: read plainly it would be proved right, run it
would be wrong. The writer also ends each fused run after MAX_FUSED steps: older kernels hold no more sources.

The same parsers refuse a file in which a nop waits and the step that follows does not, and count a nop only when it
waits, so that dependences on steps after one that does not are met a step later. Both are only noted when read,
since no runtime computes anything wrong.
"""

from __future__ import annotations

import numpy as np

from commlib.collectives import Buffer, Placement
from commlib.formats.waits import Mask
from commlib.ir.algorithm import Algorithm, Ints, Op

MAX_FUSED = 16


def separators(algorithm: Algorithm, released: Mask) -> Mask:
    """The steps of an Algorithm without nops that need hasdep="1" so that no fusion changes what it computes.

    ``released``: the steps that have it because something waits for them. Linear.
    """
    a, needed = algorithm, np.zeros(algorithm.step_count, dtype=bool)
    earlier, later = fused(a, released)
    changed = alters(a, earlier, later)
    needed[earlier[changed]] = True
    inside = np.zeros(a.step_count, dtype=bool)
    inside[later[~changed]] = True
    number = np.arange(a.step_count)
    run = number - np.maximum.accumulate(np.where(inside, 0, number)) if a.step_count else number
    needed[np.flatnonzero(inside & (run % MAX_FUSED == 0)) - 1] = True
    return needed


def fused(algorithm: Algorithm, released: Mask) -> tuple[Ints, Ints]:
    """(earlier step, later step) of each two that the runtimes run as one. ``released``: the steps with hasdep="1"."""
    a = algorithm
    steps = np.flatnonzero(a.op != Op.NOP)
    earlier, later = steps[:-1], steps[1:]
    together = (a.op[earlier] == Op.REDUCE) & (a.op[later] == Op.REDUCE) & ~released[earlier]
    for column in (a.step_threadblock, a.destination_buffer, a.destination_index, a.source_buffer):
        together &= column[earlier] == column[later]
    together &= ~_waits(a)[later]
    return earlier[together], later[together]


def alters(algorithm: Algorithm, earlier: Ints, later: Ints) -> Mask:
    """Which of these pairs compute something else when fused."""
    a = algorithm
    changed: Mask = a.count[earlier] != a.count[later]
    return changed | _reads_what_it_writes(a, later) | _nop_waits(a, earlier, later)


def stranded_waits(algorithm: Algorithm) -> Ints:
    """The steps that wait for nothing after a nop that waits: GPU runtimes refuse a file that has one."""
    a = algorithm
    steps = np.flatnonzero(a.op != Op.NOP)
    first = a.tb_start[a.step_threadblock[steps]]
    before = np.maximum(np.concatenate(([0], steps[:-1] + 1))[: len(steps)], first)
    stranded: Ints = steps[~_waits(a)[steps] & (a.dep_start[before] < a.dep_start[steps])]
    return stranded


def miscounted(algorithm: Algorithm) -> Ints:
    """The steps that are waited for and come after a nop that waits for nothing, which GPU runtimes do not count."""
    a = algorithm
    uncounted = np.concatenate(([0], np.cumsum((a.op == Op.NOP) & ~_waits(a))))
    first = a.tb_start[a.step_threadblock[a.dep]]
    behind: Ints = a.dep[uncounted[a.dep] > uncounted[first]]
    return behind


def _waits(a: Algorithm) -> Mask:
    return np.diff(a.dep_start) > 0


def _nop_waits(a: Algorithm, earlier: Ints, later: Ints) -> Mask:
    between: Mask = a.dep_start[earlier + 1] < a.dep_start[later]
    return between


def _reads_what_it_writes(a: Algorithm, steps: Ints) -> Mask:
    """Whether the source of a step overlaps its destination, in one of the placements that the Algorithm is for."""
    source, destination = a.source_index[steps], a.destination_index[steps]
    source_buffer, destination_buffer = a.source_buffer[steps], a.destination_buffer[steps]
    same: Mask = source_buffer == destination_buffer
    if Placement.IN in a.placements and a.collective.can_be_in_place:
        begin = np.array([[*a.collective.in_place_offsets(rank), 0] for rank in range(a.ranks)], dtype=np.int64)
        source = source + begin[a.step_rank[steps], source_buffer]
        destination = destination + begin[a.step_rank[steps], destination_buffer]
        same = same | ((source_buffer != Buffer.SCRATCH) & (destination_buffer != Buffer.SCRATCH))
    overlap: Mask = same & (np.abs(source - destination) < a.count[steps])
    return overlap
