"""Limits of the readers: what a file may ask for before anything of that size is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from commlib.collectives import MAX_RANKS, Buffer
from commlib.errors import LimitError
from commlib.ir.algorithm import Algorithm


@dataclass(frozen=True)
class ReaderLimits:
    """Upper bounds; a file beyond one is refused with a LimitError that names the limit.

    ``max_slots`` bounds the chunks of one kind of buffer summed over the ranks, and ranks x chunks per loop;
    ``max_work`` bounds ranks x chunks x steps. The defaults allow a ring allgather on 4096 ranks.
    """

    max_bytes: int = 512 << 20
    max_depth: int = 8
    max_attributes: int = 64
    max_attribute_length: int = 8192
    max_ranks: int = MAX_RANKS
    max_threadblocks: int = 1 << 22
    max_steps: int = 1 << 25
    max_slots: int = 1 << 24
    max_work: int = 1 << 49
    max_dependences: int = 1 << 26


DEFAULT_LIMITS = ReaderLimits()


def refuse(file: str, line: int, limit: str, bound: int, what: str) -> LimitError:
    """The error for a file that asks for more than a limit allows."""
    return LimitError(f"{file}:{line}: {what}, over the limit {limit} = {bound}", file=file, line=line, limit=limit)


def check_algorithm(algorithm: Algorithm, limits: ReaderLimits, file: str) -> None:
    """Refuse an algorithm whose sizes would make its users allocate too much (for forms that hold it whole).

    Raises:
        LimitError: more slots, steps or work than the limits allow.
    """
    ranks = range(algorithm.ranks)
    slots = max(sum(algorithm.buffer_chunks(rank, buffer) for rank in ranks) for buffer in Buffer)
    if slots > limits.max_slots:
        raise refuse(file, 1, "max_slots", limits.max_slots, f"{slots} chunks in one kind of buffer")
    if algorithm.step_count > limits.max_steps:
        raise refuse(file, 1, "max_steps", limits.max_steps, f"{algorithm.step_count} steps")
    if slots * algorithm.step_count > limits.max_work:
        what = f"ranks x chunks x steps is {slots * algorithm.step_count}"
        raise refuse(file, 1, "max_work", limits.max_work, what)
