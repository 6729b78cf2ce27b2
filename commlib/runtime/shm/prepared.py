"""Prepared: a launch that is verified, laid out and tabulated, ready to be run any number of times."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from commlib.collectives import Buffer, Placement
from commlib.errors import SpecError
from commlib.ir.algorithm import STEP_COLUMNS, TB_COLUMNS, Algorithm
from commlib.reductions import reduction
from commlib.runtime.layout import ChunkLayout, plan_layout
from commlib.runtime.shm.options import ShmOptions
from commlib.runtime.table import RankTable
from commlib.runtime.tabulate import tabulate
from commlib.runtime.tensors import dtype_name, kernels_for
from commlib.verify import require, synchronizing


@dataclass(frozen=True)
class Launch:
    """What a launch is: all that ranks must agree on. ``reduce`` names a reduction; None for what only moves."""

    algorithm: Algorithm
    placement: Placement
    elements: int
    dtype: torch.dtype
    reduce: str | None
    sizes: tuple[tuple[int, ...], ...] | None
    reach: int
    text: str


@dataclass(frozen=True, eq=False)
class Prepared:
    """A launch on one rank of a session.

    ``layout`` says how large input and output are (``buffer_elements``; where it is ``padded``, the tensors that
    ``run`` takes are padded copies). ``exposed``: the buffers of this rank that other ranks read or write, so that
    they must be registered. ``handle`` is the context's own form of the table.
    """

    launch: Launch
    layout: ChunkLayout
    table: RankTable
    fingerprint: int
    text: str
    exposed: tuple[Buffer, ...]
    handle: Any

    def size(self, rank: int, buffer: Buffer) -> int:
        """The bytes of the input or output that ``run`` takes on a rank."""
        slots = self.layout.collective.buffer_chunks(rank, buffer, self.launch.algorithm.scratch_chunks)
        elements = slots * self.layout.nominal if self.layout.padded else self.layout.buffer_elements(rank, buffer)
        return elements * self.table.itemsize


def prepare_table(launch: Launch, rank: int, options: ShmOptions) -> tuple[ChunkLayout, RankTable]:
    """Prove a launch, lay it out and tabulate it for one rank; what concerns the algorithm alone is done once.

    Raises:
        VerificationError: the algorithm is not proved in this placement.
        SpecError: elements, type and reduction do not fit; NotTabulable: no table can express it.
    """
    algorithm = launch.algorithm
    kernels = kernels_for(launch.dtype, None if launch.reduce is None else reduction(launch.reduce))
    prove(algorithm, launch.placement, options.depth)
    layout = plan_layout(algorithm, launch.placement, launch.elements, launch.sizes)
    combine = None if launch.reduce is None else reduction(launch.reduce).combine
    name, together = dtype_name(launch.dtype), _synchronizing(algorithm)
    return layout, tabulate(algorithm, layout, rank, kernels.itemsize, name, combine, options.limits, together)


@lru_cache(maxsize=1024)
def prove(algorithm: Algorithm, placement: Placement, depth: int) -> None:
    """Require the proof of an algorithm in a placement; made once.

    Raises:
        VerificationError: it is not proved.
    """
    require(algorithm, placement, depth, whole_messages=True)


@lru_cache(maxsize=1024)
def _synchronizing(algorithm: Algorithm) -> bool:
    return synchronizing(algorithm)


def describe(launch: Launch) -> str:
    """A launch in words, the collective first: for boards, errors and flight records."""
    if launch.text:
        return launch.text
    a = launch.algorithm
    how = "move" if launch.reduce is None else launch.reduce
    words = (a.collective.name, a.name, dtype_name(launch.dtype), how, launch.elements, launch.placement.value)
    return " ".join(map(str, words))


def fingerprint(launch: Launch, options: ShmOptions) -> int:
    """Eight bytes of a hash of everything that all ranks must agree on, as a number above 0."""
    a = launch.algorithm
    digest = hashlib.sha256(_program_digest(a))
    agreed = (launch.placement, launch.elements, str(launch.dtype), launch.reduce, launch.sizes, launch.reach)
    digest.update(repr((agreed, launch.text, options.limits)).encode())
    return int.from_bytes(digest.digest()[:8], "little") or 1


@lru_cache(maxsize=1024)
def _program_digest(algorithm: Algorithm) -> bytes:
    digest = hashlib.sha256(repr((algorithm.collective, algorithm.scratch_chunks)).encode())
    for column in TB_COLUMNS + STEP_COLUMNS:
        digest.update(getattr(algorithm, column).tobytes())
    return digest.digest()


@lru_cache(maxsize=1024)
def exposed_buffers(algorithm: Algorithm, rank: int) -> tuple[Buffer, ...]:
    """Inputs and outputs of ``rank`` that steps of other ranks read or write."""
    mine = (algorithm.operand_rank == rank) & (algorithm.step_rank[algorithm.operand_step] != rank)
    found = np.unique(algorithm.operand_buffer[mine])
    return tuple(buffer for buffer in (Buffer.INPUT, Buffer.OUTPUT) if int(buffer) in found)


def as_sizes(sizes: Sequence[Sequence[int]] | None) -> tuple[tuple[int, ...], ...] | None:
    """A matrix of sizes that can be compared and hashed."""
    return None if sizes is None else tuple(tuple(map(int, row)) for row in sizes)


def refuse_reach(launch: Launch, readv: bool) -> None:
    """A launch reads other ranks' tensors in a way that this group has not.

    Raises:
        SpecError: process_vm_readv where it is not allowed, or to write.
    """
    if launch.reach == 2 and (not readv or launch.algorithm.touches_peers_tensors[1]):
        why = "this group may not" if not readv else "it writes them, too"
        raise SpecError(f"{launch.algorithm.name} cannot reach other ranks' tensors by process_vm_readv: {why}")
