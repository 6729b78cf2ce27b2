"""AlgorithmBuilder: an Algorithm row by row, for the readers and for tests. The compiler fills columns itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from commlib.collectives import Buffer, Collective, Placement
from commlib.errors import AlgorithmError
from commlib.ir.algorithm import NOTHING, Algorithm, Ints, Op, Origins

Slot = tuple[int, Buffer, int]
"""(rank, buffer, index) of an operand of a one-sided step."""

_Operand = tuple[int, int, int, int]


@dataclass
class AlgorithmBuilder:
    """Builds an Algorithm row by row; the readers and tests use it, the compiler fills columns itself."""

    name: str
    collective: Collective
    scratch_chunks: Sequence[int]
    placements: frozenset[Placement] = frozenset(Placement)
    protocol: str = "Simple"
    _blocks: list[_Block] = field(default_factory=list)
    _sizes: Counter[int] = field(default_factory=Counter)

    def threadblock(self, rank: int, send: int | None = None, recv: int | None = None, channel: int = 0) -> int:
        """Begin a threadblock; threadblocks of a rank get indices 0, 1, ... in the order begun. Returns the index."""
        index = self._sizes[rank]
        self._sizes[rank] += 1
        send, recv = (NOTHING if peer is None else peer for peer in (send, recv))
        self._blocks.append(_Block(rank, index, send, recv, channel, []))
        return index

    def step(
        self,
        op: Op,
        source: tuple[Buffer, int] | None = None,
        destination: tuple[Buffer, int] | None = None,
        count: int = 1,
        depends: Sequence[tuple[int, int]] = (),
        line: int = 0,
        *,
        sources: Sequence[Slot] = (),
        destinations: Sequence[Slot] = (),
        peer: int | None = None,
    ) -> None:
        """Append a step to the threadblock begun last; ``depends`` are (threadblock, step) of the same rank.

        A one-sided step has ``sources`` and ``destinations``, slots as (rank, buffer, index), or a ``peer`` (signal,
        wait, flush), instead of ``source`` and ``destination``; the count of the latter is 0.
        """
        if not self._blocks:
            raise AlgorithmError(f"{self.name}: a step before any threadblock")
        operands: list[_Operand] = [(rank, int(buffer), index, 0) for rank, buffer, index in sources]
        operands += [(rank, int(buffer), index, 1) for rank, buffer, index in destinations]
        if peer is not None:
            operands.insert(0, (peer, NOTHING, NOTHING, 0))
        self._blocks[-1].rows.append(_Row(op, source, destination, count, tuple(depends), line, tuple(operands)))

    def build(self, file: str | None = None, origins: Origins | None = None) -> Algorithm:
        """The finished Algorithm; ``file`` names the origin of the steps' lines, or ``origins`` are given whole."""
        blocks = sorted(self._blocks, key=lambda block: block.rank)
        starts = np.cumsum([0] + [len(block.rows) for block in blocks], dtype=np.int64)
        rows = [row for block in blocks for row in block.rows]
        deps = self._dependences(blocks, starts)
        if file is not None:
            lines = np.array([row.line for row in rows], dtype=np.int64)
            origins = Origins((file,), np.zeros(len(rows), dtype=np.int64), lines)
        sources, destinations = [row.source for row in rows], [row.destination for row in rows]
        operands = np.array([o for row in rows for o in row.operands], dtype=np.int64).reshape(-1, 4)
        return Algorithm(
            self.name,
            self.collective,
            tuple(self.scratch_chunks),
            tb_rank=np.array([block.rank for block in blocks], dtype=np.int64),
            tb_send=np.array([block.send for block in blocks], dtype=np.int64),
            tb_recv=np.array([block.recv for block in blocks], dtype=np.int64),
            tb_channel=np.array([block.channel for block in blocks], dtype=np.int64),
            tb_start=starts,
            op=np.array([row.op for row in rows], dtype=np.int64),
            source_buffer=_column(sources, 0),
            source_index=_column(sources, 1),
            destination_buffer=_column(destinations, 0),
            destination_index=_column(destinations, 1),
            count=np.array([row.count for row in rows], dtype=np.int64),
            dep_start=np.cumsum([0] + [len(dep) for dep in deps], dtype=np.int64),
            dep=np.array([d for dep in deps for d in dep], dtype=np.int64),
            placements=self.placements,
            protocol=self.protocol,
            origins=origins,
            operand_start=np.cumsum([0] + [len(row.operands) for row in rows], dtype=np.int64),
            operand_rank=operands[:, 0],
            operand_buffer=operands[:, 1],
            operand_index=operands[:, 2],
            operand_writes=operands[:, 3],
        )

    def _dependences(self, blocks: list[_Block], starts: Ints) -> list[list[int]]:
        first = {(block.rank, block.index): int(start) for block, start in zip(blocks, starts, strict=False)}
        sizes = {(block.rank, block.index): len(block.rows) for block in blocks}
        found: list[list[int]] = []
        for block in blocks:
            for index, row in enumerate(block.rows):
                for threadblock, step in row.depends:
                    if not 0 <= step < sizes.get((block.rank, threadblock), 0):
                        raise AlgorithmError(
                            f"{self.name}: rank {block.rank} threadblock {block.index} step {index} depends on "
                            f"threadblock {threadblock} step {step}, which does not exist",
                            rank=block.rank,
                            threadblock=block.index,
                            step=index,
                            line=row.line,
                        )
                found.append([first[block.rank, threadblock] + step for threadblock, step in row.depends])
        return found


@dataclass(frozen=True)
class _Block:
    rank: int
    index: int
    send: int
    recv: int
    channel: int
    rows: list[_Row]


@dataclass(frozen=True)
class _Row:
    op: Op
    source: tuple[Buffer, int] | None
    destination: tuple[Buffer, int] | None
    count: int
    depends: tuple[tuple[int, int], ...]
    line: int
    operands: tuple[_Operand, ...] = ()


def _column(slots: list[tuple[Buffer, int] | None], part: int) -> Ints:
    return np.array([NOTHING if slot is None else slot[part] for slot in slots], dtype=np.int64)
