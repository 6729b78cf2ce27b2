"""Limits of the readers: what a file may ask for before anything of that size is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from commlib.collectives import MAX_RANKS, Collective
from commlib.errors import LimitError
from commlib.ir.algorithm import Algorithm


@dataclass(frozen=True)
class ReaderLimits:
    """Upper bounds; a file beyond one is refused with a LimitError that names the limit.

    ``max_slots`` bounds the chunks of all buffers of all ranks together, whether the file declares them or its steps
    imply them. A file of a few bytes can ask for any number, and who verifies or runs it keeps some 50 to 130 bytes
    for each: with the default, 4 M, the largest such file takes a few hundred megabytes and seconds to verify.
    ``max_work`` bounds slots x steps (ranks x chunks x steps). The analyses are near linear in the sum of both, but
    a content is as long as what was combined in it, and in the worst case each step combines anew: the product is
    what the worst file costs. Slots alone allow a product of 2**47; the default is 2**42. Ring allgather on 1024
    ranks (1 M slots, 1 M steps: 2**40) and alltoall on 512 ranks are well inside all of them. A one-sided step has any
    number of operands: ``max_operands`` bounds those of all steps together, and each counts as a step in the work.
    """

    max_bytes: int = 512 << 20
    max_depth: int = 8
    max_attributes: int = 64
    max_attribute_length: int = 8192
    max_ranks: int = MAX_RANKS
    max_threadblocks: int = 1 << 22
    max_steps: int = 1 << 25
    max_slots: int = 1 << 22
    max_work: int = 1 << 42
    max_dependences: int = 1 << 26
    max_operands: int = 1 << 25


DEFAULT_LIMITS = ReaderLimits()


def refuse(file: str, line: int, limit: str, bound: int, what: str) -> LimitError:
    """The error for a file that asks for more than a limit allows."""
    return LimitError(f"{file}:{line}: {what}, over the limit {limit} = {bound}", file=file, line=line, limit=limit)


def check_sizes(
    collective: Collective,
    scratch: Sequence[int],
    steps: int,
    limits: ReaderLimits,
    file: str,
    line: int = 1,
    operands: int = 0,
) -> None:
    """Refuse sizes that would make the users of an Algorithm allocate too much. O(ranks).

    ``operands`` are those of the one-sided steps of all ranks.

    Raises:
        LimitError: more slots, steps or work than the limits allow.
    """
    ranks = range(collective.ranks)
    slots = sum(collective.input_chunks(rank) + collective.output_chunks(rank) for rank in ranks) + sum(scratch)
    if slots > limits.max_slots:
        raise refuse(file, line, "max_slots", limits.max_slots, f"{slots} chunks in the buffers of all ranks")
    if steps > limits.max_steps:
        raise refuse(file, line, "max_steps", limits.max_steps, f"{steps} steps")
    work = slots * (steps + operands)
    if work > limits.max_work:
        raise refuse(file, line, "max_work", limits.max_work, f"ranks x chunks x steps is {work}")


def check_algorithm(algorithm: Algorithm, limits: ReaderLimits, file: str) -> None:
    """``check_sizes`` of a whole Algorithm, for forms that hold it whole.

    Raises:
        LimitError: more slots, steps, operands or work than the limits allow.
    """
    operands = len(algorithm.operand_rank)
    if operands > limits.max_operands:
        raise refuse(file, 1, "max_operands", limits.max_operands, f"{operands} operands of one-sided steps")
    check_sizes(algorithm.collective, algorithm.scratch_chunks, algorithm.step_count, limits, file, operands=operands)
