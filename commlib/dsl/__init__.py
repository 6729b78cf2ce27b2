"""The language: a Program hands out chunk references; copying and reducing them records a Trace.

    def ring(p: Program) -> None:
        n = p.ranks
        for i in range(n):
            c = p.chunk(i, "input", i)
            for hop in range(1, n):
                c = p.chunk((i + hop) % n, "input", i).reduce(c, into="output")
            for hop in range(n, 2 * n - 1):
                c = c.copy((i + hop) % n)

A program says for which placements it is meant. ``"both"`` (the default) is one program that is right in place and
out of place: the input is never written by its name, and a slot that the output overwrites in place is stale from
then on in both. ``"in"`` lets the program work in the shared buffer; ``"out"`` knows that the buffers are apart.

An OneSidedProgram writes out what each threadblock does, with put, get, signal, wait and the like (see ``onesided``).

Every misuse raises at the line that commits it: the message names that line, the chunk and, for a stale reference,
the line that overwrote it.
"""

from __future__ import annotations

from commlib.dsl.chunk import Chunk
from commlib.dsl.memory import BufferLike, PlacementName, Scratch
from commlib.dsl.onesided import OneSidedProgram, StepHandle, ThreadblockWriter
from commlib.dsl.places import Area, Place
from commlib.dsl.program import Program, record

__all__ = [
    "Area",
    "BufferLike",
    "Chunk",
    "OneSidedProgram",
    "Place",
    "PlacementName",
    "Program",
    "Scratch",
    "StepHandle",
    "ThreadblockWriter",
    "record",
]
