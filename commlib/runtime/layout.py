"""ChunkLayout: where the chunks of a launch lie, in elements. An Algorithm speaks of chunk indices only.

A shard of n elements in C chunks has chunks of ceil(n / C) elements, the last ones short or empty. A chunk keeps its
length wherever it goes, scratch slots have the nominal size, and a step of count k moves k spans. alltoallv is the
same with a matrix of sizes. Where a program combines chunks of different length, or puts a chunk into a slot too
short for it, it runs on a padded copy in which every slot has the nominal size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from commlib.collectives import Buffer, Collective, Placement
from commlib.errors import SpecError
from commlib.ir.algorithm import RECEIVES, SENDS, Algorithm, Ints
from commlib.runtime.flow import Label, flow, slot_label

Sizes = tuple[tuple[int, ...], ...]
"""alltoallv: ``sizes[s][d]`` elements go from rank s to rank d."""


@dataclass(frozen=True)
class ChunkLayout:
    """Element spans of a collective's slots; build it with ``plan_layout``.

    ``elements`` is the size of a shard (of the largest one for alltoallv); ``padded``: slots in the buffers that
    the program works on are all ``nominal`` long (the user's own tensors never are).
    """

    collective: Collective
    placement: Placement
    elements: int
    sizes: Sizes | None = None
    padded: bool = False

    @property
    def nominal(self) -> int:
        """The length of a full chunk, in elements."""
        return -(-self.elements // self.collective.chunks)

    def length(self, label: Label) -> int:
        """The length of a chunk of this label (see ``flow.slot_label``), in elements."""
        if isinstance(label, int) or self.sizes is None:
            return _part(self.elements, self.collective.chunks, label if isinstance(label, int) else label[2])
        sender, receiver, chunk = label
        return _part(self.sizes[sender][receiver], self.collective.chunks, chunk)

    def user_slots(self, rank: int, buffer: Buffer) -> tuple[tuple[int, int], ...]:
        """(start, length) of each slot of an input or output buffer, in the user's tensor."""
        return self._user_slots[rank, buffer]

    def slot(self, rank: int, buffer: Buffer, index: int) -> int:
        """Where a slot starts in the buffer that the program works on."""
        if self.padded or buffer is Buffer.SCRATCH:
            return index * self.nominal
        return self._user_slots[rank, buffer][index][0]

    def buffer_elements(self, rank: int, buffer: Buffer) -> int:
        """The size of the user's input or output buffer of a rank."""
        return sum(length for _, length in self._user_slots[rank, buffer])

    def span(self, rank: int) -> tuple[int, int, int]:
        """In place: (input offset, output offset, size) in the one span of a rank, in the user's elements."""
        sizes = [self.buffer_elements(rank, buffer) for buffer in (Buffer.INPUT, Buffer.OUTPUT)]
        starts = [self._offset(offset) for offset in self.collective.in_place_offsets(rank)]
        return starts[0], starts[1], max(start + size for start, size in zip(starts, sizes, strict=True))

    def _offset(self, chunks: int) -> int:
        """Offsets are whole shards."""
        return chunks // self.collective.chunks * self.elements

    @cached_property
    def _user_slots(self) -> dict[tuple[int, Buffer], tuple[tuple[int, int], ...]]:
        c, found = self.collective, {}
        for rank in range(c.ranks):
            for buffer, chunks in ((Buffer.INPUT, c.input_chunks(rank)), (Buffer.OUTPUT, c.output_chunks(rank))):
                lengths = [self.length(slot_label(c, rank, buffer, index)) for index in range(chunks)]
                found[rank, buffer] = _spans(lengths)
        return found


def plan_layout(
    algorithm: Algorithm, placement: Placement, elements: int, sizes: Sequence[Sequence[int]] | None = None
) -> ChunkLayout:
    """The layout of a launch: shards of ``elements`` elements, or alltoallv with ``sizes[sender][receiver]``.

    Raises:
        SpecError: a negative size, sizes that do not fit the collective, or in place where it has no meaning.
    """
    c = algorithm.collective
    if placement is Placement.IN and not c.can_be_in_place:
        raise SpecError(f"{c.name} has no in-place form: its definition gives no offsets", collective=c.name)
    matrix = _matrix(c, placement, sizes)
    if matrix is not None:
        elements = max((size for row in matrix for size in row), default=0)
    if elements < 0:
        raise SpecError(f"{c.name}: a shard of {elements} elements", elements=elements)
    plain = ChunkLayout(c, placement, elements, matrix)
    if matrix is None and elements % c.chunks == 0:
        return plain
    return ChunkLayout(c, placement, elements, matrix, padded=_needs_padding(algorithm, plain))


def message_lengths(algorithm: Algorithm, layout: ChunkLayout, step: int) -> tuple[int, ...]:
    """The lengths, in elements, of the chunks that a step moves."""
    count = int(algorithm.count[step])
    if layout.padded or (layout.sizes is None and layout.elements % layout.collective.chunks == 0):
        return (layout.nominal,) * count
    return tuple(layout.length(label) for label in flow(algorithm, layout.placement).moved[step])


def chunk_lengths(algorithm: Algorithm, layout: ChunkLayout, steps: Ints, chunks: Ints) -> Ints:
    """The length, in elements, of chunk ``chunks[i]`` of step ``steps[i]``, for all i at once."""
    if layout.padded or (layout.sizes is None and layout.elements % layout.collective.chunks == 0):
        return np.full(len(steps), layout.nominal, dtype=np.int64)
    moved = flow(algorithm, layout.placement).moved
    lengths: dict[Label, int] = {}
    found = np.empty(len(steps), dtype=np.int64)
    for row, (step, chunk) in enumerate(zip(steps.tolist(), chunks.tolist(), strict=True)):
        label = moved[step][chunk]
        if label not in lengths:
            lengths[label] = layout.length(label)
        found[row] = lengths[label]
    return found


def slot_starts(layout: ChunkLayout, ranks: Ints, buffers: Ints, indices: Ints) -> Ints:
    """Where input and output slots start, as ``ChunkLayout.slot`` has it, for all at once."""
    if layout.padded:
        return indices * layout.nominal
    if layout.sizes is None:
        shards, chunks = np.divmod(indices, layout.collective.chunks)
        return np.asarray(shards * layout.elements + np.minimum(chunks * layout.nominal, layout.elements))
    slots = zip(ranks.tolist(), buffers.tolist(), indices.tolist(), strict=True)
    return np.array([layout.slot(rank, Buffer(buffer), index) for rank, buffer, index in slots], dtype=np.int64)


def prove_layout(algorithm: Algorithm, layout: ChunkLayout) -> None:
    """Check that slots do not overlap, that every chunk fits where it goes, and that both ends of each message
    agree on its lengths; O(chunks moved).

    Raises:
        SpecError: they do not (a bug of this package, or a program that the verifier did not prove).
    """
    for rank in range(algorithm.ranks):
        for buffer in (Buffer.INPUT, Buffer.OUTPUT):
            _prove_slots(layout, rank, buffer)
    fifos: dict[tuple[int, int, int], tuple[list[tuple[int, ...]], list[tuple[int, ...]]]] = {}
    for row in range(len(algorithm.tb_rank)):
        block = algorithm.threadblock(row)
        for step in block.steps:
            op, lengths = algorithm.op[step], message_lengths(algorithm, layout, step)
            if SENDS[op] and block.send is not None:
                fifos.setdefault((block.rank, block.send, block.channel), ([], []))[0].append(lengths)
            if RECEIVES[op] and block.recv is not None:
                fifos.setdefault((block.recv, block.rank, block.channel), ([], []))[1].append(lengths)
    for (sender, receiver, channel), (sent, received) in fifos.items():
        if sent != received:
            raise SpecError(f"message lengths differ from rank {sender} to rank {receiver} on channel {channel}")


def _prove_slots(layout: ChunkLayout, rank: int, buffer: Buffer) -> None:
    end = 0
    for index, (start, length) in enumerate(layout.user_slots(rank, buffer)):
        if start < end or length < 0 or length > layout.nominal:
            raise SpecError(f"slot {buffer.letter}[{index}] of rank {rank} overlaps its neighbour")
        end = start + length


def _needs_padding(algorithm: Algorithm, layout: ChunkLayout) -> bool:
    found = flow(algorithm, layout.placement)
    return any(layout.length(a) != layout.length(b) for a, b in found.combined) or any(
        layout.length(chunk) > layout.length(slot) for chunk, slot in found.stored
    )


def _matrix(c: Collective, placement: Placement, sizes: Sequence[Sequence[int]] | None) -> Sizes | None:
    if sizes is None:
        return None
    if c.name != "alltoallv":
        raise SpecError(f"{c.name} takes no sizes; alltoallv does", collective=c.name)
    matrix = tuple(tuple(int(size) for size in row) for row in sizes)
    if len(matrix) != c.ranks or any(len(row) != c.ranks for row in matrix):
        raise SpecError(f"alltoallv on {c.ranks} ranks takes a {c.ranks} x {c.ranks} matrix of sizes")
    if any(size < 0 for row in matrix for size in row):
        raise SpecError("alltoallv: a size cannot be negative")
    if placement is Placement.IN and any(matrix[s][d] != matrix[d][s] for s in range(c.ranks) for d in range(s)):
        raise SpecError("alltoallv in place takes a symmetric matrix of sizes")
    return matrix


def _part(elements: int, chunks: int, chunk: int) -> int:
    """The length of chunk number ``chunk`` of ``elements`` cut in ``chunks``."""
    nominal = -(-elements // chunks)
    return max(0, min(nominal, elements - chunk * nominal))


def _spans(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    spans, start = [], 0
    for length in lengths:
        spans.append((start, length))
        start += length
    return tuple(spans)
