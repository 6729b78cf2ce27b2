"""Emit: put every threadblock in order, reduce the dependences transitively, fill the Algorithm's columns.

Within a threadblock instructions go by level, sends before receives, then trace order. A hazard between two
threadblocks of a rank becomes a dependence unless threadblock order and other dependences imply it already.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from commlib.compiler.channels import hinted_threadblock
from commlib.compiler.order import threadblock_order
from commlib.ir.algorithm import NOTHING, Algorithm, Ints, Origins
from commlib.ir.graph import InstructionGraph

Clock = dict[int, int]


@dataclass(frozen=True)
class Emit:
    """Ordered graph and its hazards in, Algorithm out.

    Near linear: whether a dependence is implied is read off clocks, which have an entry for each threadblock of the
    rank that was heard of; they are made only where there is something to ask.
    """

    def __call__(self, graph: InstructionGraph, hazards: tuple[Ints, Ints]) -> Algorithm:
        """Apply the pass."""
        row_of_block = _block_rows(graph)
        tb = row_of_block[graph.block]
        order = threadblock_order(graph.with_columns(block=tb))
        position = np.empty(len(graph), dtype=np.int64)
        position[order] = np.arange(len(graph))
        sorted_graph = graph.keep(order)
        before, after = position[hazards[0]], position[hazards[1]]
        deps = reduce_dependences(sorted_graph.rank, sorted_graph.level, tb[order], before, after)
        return _algorithm(sorted_graph, tb[order], deps)


def _block_rows(graph: InstructionGraph) -> Ints:
    """The threadblock row of each block: by rank, the user's threadblocks at their numbers, others in the gaps."""
    blocks = int(graph.block.max(initial=NOTHING)) + 1
    first = np.lexsort((graph.time, graph.level, graph.block))
    head = first[np.flatnonzero(np.diff(graph.block[first], prepend=NOTHING))]
    rank = graph.rank[head]
    hint = np.full(blocks, NOTHING, dtype=np.int64)
    np.maximum.at(hint, graph.block, hinted_threadblock(graph))
    wanted = np.lexsort((graph.time[head], graph.level[head], rank))
    if (hint != NOTHING).any():
        wanted = np.array(_fill_gaps(wanted.tolist(), rank.tolist(), hint.tolist()), dtype=np.int64)
    rows = np.empty(blocks, dtype=np.int64)
    rows[wanted] = np.arange(blocks)
    return rows


def _fill_gaps(order: list[int], rank: list[int], hint: list[int]) -> list[int]:
    result: list[int] = []
    for one in sorted(set(rank)):
        own = [block for block in order if rank[block] == one]
        hinted = {hint[block]: block for block in own if hint[block] != NOTHING}
        free = iter([block for block in own if hint[block] == NOTHING])
        for place in range(max(hinted, default=0) + 1):
            block = hinted.get(place)
            result.extend([block] if block is not None else [b for b in [next(free, None)] if b is not None])
        result.extend(free)
    return result


def reduce_dependences(rank: Ints, level: Ints, tb: Ints, before: Ints, after: Ints) -> list[tuple[int, list[int]]]:
    """The dependences that remain of the hazards ``before`` -> ``after`` (step numbers): (step, what it waits for).

    Steps are numbered in threadblock order; ``rank``, ``level`` and ``tb`` are those of each step. What threadblock
    order or another dependence implies is left out. Ranks are taken one by one, so that clocks are short-lived.
    """
    cross = tb[before] != tb[after]
    before, after = before[cross], after[cross]
    if not len(before):
        return []
    order = np.lexsort((-level[before], after, level[after], rank[after]))
    before_list, after_list = before[order].tolist(), after[order].tolist()
    block, starts = tb.tolist(), np.flatnonzero(np.diff(after[order], prepend=NOTHING)).tolist()
    ranks, current = rank[after[order]].tolist(), NOTHING
    levels = level.tolist()
    knowledge = _Knowledge(block, levels)
    found: list[tuple[int, list[int]]] = []
    for begin, end in zip(starts, [*starts[1:], len(before_list)], strict=True):
        if ranks[begin] != current:
            current = ranks[begin]
            knowledge = _Knowledge(block, levels)
        waits = knowledge.join(after_list[begin], before_list[begin:end])
        if waits:
            found.append((after_list[begin], sorted(waits)))
    return found


class _Join:
    """A step that waits, what it waits for, the join before it in its threadblock, and its clock once asked for."""

    __slots__ = ("before", "clock", "step", "waits")

    def __init__(self, step: int, waits: list[int], before: _Join | None) -> None:
        self.step, self.waits, self.before = step, waits, before
        self.clock: Clock | None = None


class _Knowledge:
    """Which steps of other threadblocks each threadblock of a rank knows to be done, through its dependences.

    Levels grow along dependences and never fall along a threadblock, so that a step knows of lower ones only: many
    questions are answered by that, without a clock. ``_steps`` are the steps of ``_joins``, to be searched.
    """

    def __init__(self, block: list[int], level: list[int]) -> None:
        self._block, self._level = block, level
        self._joins: dict[int, list[_Join]] = {}
        self._steps: dict[int, list[int]] = {}

    def join(self, step: int, candidates: list[int]) -> list[int]:
        """Note that ``step`` waits for these steps (deepest first); those that are news to it."""
        history = self._joins.setdefault(self._block[step], [])
        last = history[-1] if history else None
        waits: list[int] = []
        for candidate in candidates:
            if not (last is not None and self._knows(last, candidate)) and not any(
                self._implies(wait, candidate) for wait in waits
            ):
                waits.append(candidate)
        if waits:
            history.append(_Join(step, waits, last))
            self._steps.setdefault(self._block[step], []).append(step)
        return waits

    def _implies(self, step: int, candidate: int) -> bool:
        if self._block[step] == self._block[candidate]:
            return candidate <= step
        if self._level[candidate] >= self._level[step]:
            return False
        join = self._join_at(step)
        return join is not None and self._knows(join, candidate)

    def _join_at(self, step: int) -> _Join | None:
        """The last join of a step's threadblock at or before it."""
        block = self._block[step]
        place = bisect_right(self._steps.get(block, ()), step)
        return self._joins[block][place - 1] if place else None

    def _knows(self, join: _Join, candidate: int) -> bool:
        if self._level[candidate] >= self._level[join.step]:
            return False
        return self._clock(join).get(self._block[candidate], NOTHING) >= candidate

    def _clock(self, join: _Join) -> Clock:
        """For each threadblock, the last step known to be done; made when first asked for, with those it builds on."""
        if join.clock is not None:
            return join.clock
        pending = [join]
        while pending:
            top = pending[-1]
            sources = [each for each in (top.before, *map(self._join_at, top.waits)) if each is not None]
            missing = [each for each in sources if each.clock is None]
            if top.clock is None and not missing:
                top.clock = self._merged(top, sources)
            if missing:
                pending.extend(missing)
            else:
                pending.pop()
        return join.clock or {}

    def _merged(self, join: _Join, sources: list[_Join]) -> Clock:
        first, *others = [source.clock or {} for source in sources] or [{}]
        clock = first.copy()
        for other in others:
            for block, step in other.items():
                if clock.get(block, NOTHING) < step:
                    clock[block] = step
        for step in join.waits:
            block = self._block[step]
            if clock.get(block, NOTHING) < step:
                clock[block] = step
        return clock


def _algorithm(graph: InstructionGraph, tb: Ints, deps: list[tuple[int, list[int]]]) -> Algorithm:
    trace = graph.trace
    blocks = int(tb.max(initial=NOTHING)) + 1
    starts = np.searchsorted(tb, np.arange(blocks + 1))
    peers = {}
    for name, peer in (("tb_send", graph.send_peer), ("tb_recv", graph.recv_peer), ("tb_channel", graph.channel)):
        peers[name] = np.full(blocks, NOTHING, dtype=np.int64)
        np.maximum.at(peers[name], tb, peer)
    waits = np.zeros(len(graph) + 1, dtype=np.int64)
    for step, found in deps:
        waits[step + 1] = len(found)
    t = graph.operation
    return Algorithm(
        trace.name,
        trace.collective,
        trace.scratch_chunks,
        tb_rank=graph.rank[starts[:-1]],
        tb_send=peers["tb_send"],
        tb_recv=peers["tb_recv"],
        tb_channel=np.maximum(peers["tb_channel"], 0),
        tb_start=starts,
        op=graph.op,
        source_buffer=graph.source_buffer,
        source_index=graph.source_index,
        destination_buffer=graph.destination_buffer,
        destination_index=graph.destination_index,
        count=graph.count,
        dep_start=np.cumsum(waits),
        dep=np.array([step for _, found in sorted(deps) for step in found], dtype=np.int64),
        placements=trace.placements,
        protocol=trace.protocol,
        origins=Origins(trace.files, trace.column("file")[t], trace.column("line")[t]),
    )
