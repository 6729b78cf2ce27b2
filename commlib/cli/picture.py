"""Small pictures of an algorithm in text: who sends how much to whom, and the steps of each threadblock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from commlib.ir.algorithm import Algorithm, Threadblock

WIDEST = 32
"""Ranks beyond which a matrix no longer fits a screen."""


def traffic_lines(algorithm: Algorithm) -> Iterator[str]:
    """The matrix of ``traffic`` as text, with a dot for nothing."""
    from commlib.ir.stats import traffic

    if algorithm.ranks > WIDEST:
        yield f"(no traffic matrix: {algorithm.ranks} ranks are more than the {WIDEST} that fit)"
        return
    cells = [["." if not value else str(value) for value in row] for row in traffic(algorithm).tolist()]
    names = [str(rank) for rank in range(algorithm.ranks)]
    width = max(len(cell) for row in [names, *cells] for cell in row) + 1
    yield "chunks sent, row to column"
    yield " " * 6 + "".join(name.rjust(width) for name in names)
    for name, row in zip(names, cells, strict=True):
        yield name.rjust(6) + "".join(cell.rjust(width) for cell in row)


def rank_lines(algorithm: Algorithm, rank: int) -> Iterator[str]:
    """The threadblocks of a rank, a line per step: number, operation, operands, what it waits for, message."""
    yield f"rank {rank}"
    for block in algorithm.threadblocks(rank):
        yield f"  {_block_title(block)}"
        for number in block.steps:
            step = algorithm.step(number)
            yield f"    {step.index:>4}  {step!s:<32}{_message(block, number, algorithm)}".rstrip()


def _block_title(block: Threadblock) -> str:
    receives = "" if block.recv is None else f"  recv from {block.recv}"
    sends = "" if block.send is None else f"  send to {block.send}"
    return f"threadblock {block.index}  channel {block.channel}{receives}{sends}"


def _message(block: Threadblock, number: int, algorithm: Algorithm) -> str:
    """Where the step's message comes from and goes to: "3 => 1" (chunks when more than one)."""
    step = algorithm.step(number)
    comes = f"{block.recv} => " if step.op.receives else ""
    goes = f" => {block.send}" if step.op.sends else ""
    return f"  {comes}({block.rank}){goes}" if comes or goes else ""
