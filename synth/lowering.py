"""Lowering: moves become a Trace, as the public DSL records it, and so everything that a hand-written program becomes.

Operations are recorded in the order in which moves arrive, which is an order of dependences and the order of every
link. A rank keeps a parcel where it wants it in the end, in its output, and what it only passes on in scratch; its
own chunks are copied to their outputs last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from commlib.compiler import CompileOptions, compile_trace
from commlib.dsl import BufferLike, Chunk, Program
from commlib.errors import LimitError
from commlib.ir.algorithm import Algorithm
from commlib.ir.trace import COLUMNS, Trace
from commlib.topology import Topology
from synth.columns import trace_rows
from synth.errors import ScheduleError
from synth.moves import Move, Moves, Parcel
from synth.placing import RELAY, places

COMPILED = 1 << 24
"""Moves that are compiled at most, those of all instances together."""
SCHEDULED = CompileOptions(fuse=False, keep_order=True)
"""How the trace of a schedule is compiled: every connection carries chunks in the order of the trace, and nothing is
fused, because a fused step would make a link wait for a receive that the schedule does not wait for."""


def lower(moves: Moves, name: str = "synthesized", *, instances: int = 1, topology: Topology | None = None) -> Trace:
    """The program of moves, right in place and out of place (where the collective has both).

    ``instances`` cuts every chunk into that many parts, each with a channel of its own on every link. With a
    ``topology``, links must be among its. Compile it with ``SCHEDULED``. Complexity: O(M log M).

    Raises:
        ScheduleError: the moves send what is not there (see ``check_moves``).
        ProgramError: the topology lacks a link.
    """
    program = Program(moves.collective, name, topology=topology, instances=instances)
    found = trace_rows(moves) if topology is None else None
    if found is None:
        return recorded(moves, program)
    scratch, rows = found
    return replace(program.trace(), scratch_chunks=scratch, rows=rows)


def recorded(moves: Moves, program: Program) -> Trace:
    """The trace of moves, recorded step by step: what ``trace_rows`` does at once. Where this file is, says nothing."""
    rows = list(moves.rows())
    arrived = [rows[m] for m in np.argsort(moves.arrival, kind="stable").tolist()]
    _Recording(program, moves.parcels, arrived).run(arrived)
    trace = program.trace()
    plain = trace.rows.copy()
    plain[:, [COLUMNS.index("file"), COLUMNS.index("line")]] = 0
    return replace(trace, rows=plain, files=())


def compiled(moves: Moves, name: str = "synthesized", *, instances: int = 1) -> Algorithm:
    """The algorithm of moves: ``lower``, then the compiler. Nothing is verified here.

    Raises:
        LimitError: more than ``COMPILED`` moves, those of all instances together.
        ScheduleError: as ``lower``.
    """
    if len(moves) * instances > COMPILED:
        raise LimitError(
            f"{name}: {len(moves)} moves in {instances} instances are more than {COMPILED}: ask for fewer instances",
            limit=COMPILED,
            instances=instances,
        )
    return compile_trace(lower(moves, name, instances=instances), SCHEDULED)


class _Recording:
    """A program being recorded, and what each (parcel, rank) holds outside the rank's input."""

    def __init__(self, program: Program, parcels: Sequence[Parcel], rows: Sequence[Move]) -> None:
        self._program, self._parcels = program, parcels
        self._places = places(program.collective, parcels, rows)
        self._held: dict[tuple[int, int], Chunk] = {}
        most = max(self._places.relays)
        self._buffers = {RELAY: program.scratch(RELAY, most)} if most else {}

    def run(self, rows: Sequence[Move]) -> None:
        """Record everything."""
        for move in rows:
            self._move(move)
        for place in self._places.early:
            self._gather(*place)
        for number, parcel in enumerate(self._parcels):
            for rank, slots in parcel.slots.items():
                self._deliver(number, rank, slots)

    def _move(self, move: Move) -> None:
        value = self._value(move.parcel, move.source)
        place = (move.parcel, move.target)
        own = self._parcels[move.parcel].sources.get(move.target, ()) if move.reduces else ()
        if move.reduces and place in self._held:
            self._held[place] = self._held[place].reduce(value)
        elif len(own) == 1:
            mine = self._program.chunk(move.target, "input", own[0])
            self._held[place] = mine.reduce(value, into=self._home(*place))
        elif own:
            self._held[place] = self._gather(*place).reduce(value)
        else:
            self._held[place] = value.copy(move.target, *self._home(*place))

    def _value(self, parcel: int, rank: int) -> Chunk:
        """What a rank has of a parcel."""
        held = self._held.get((parcel, rank))
        if held is not None:
            return held
        own = self._parcels[parcel].sources.get(rank, ())
        if not own:
            raise ScheduleError(f"rank {rank} has nothing of parcel {parcel} to send", parcel=parcel, rank=rank)
        return self._program.chunk(rank, "input", own[0]) if len(own) == 1 else self._gather(parcel, rank)

    def _gather(self, parcel: int, rank: int) -> Chunk:
        """Bring a rank's own contributions together at the parcel's home."""
        home = self._home(parcel, rank)
        first, *others = (self._program.chunk(rank, "input", k) for k in self._parcels[parcel].sources[rank])
        together = first.reduce(others[0], into=home) if others else first.copy(rank, *home)
        for other in others[1:]:
            together = together.reduce(other)
        self._held[parcel, rank] = together
        return together

    def _deliver(self, parcel: int, rank: int, slots: tuple[int, ...]) -> None:
        """Copy a complete parcel to those of its output slots where it is not."""
        home = self._places.home.get((parcel, rank))
        for slot in slots:
            if home != ("output", slot):
                self._value(parcel, rank).copy(rank, "output", slot)

    def _home(self, parcel: int, rank: int) -> tuple[BufferLike, int]:
        buffer, index = self._places.home[parcel, rank]
        return self._buffers.get(buffer, "output"), index
