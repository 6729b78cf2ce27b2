"""Binding: a call's tensors to the buffers that a program works on, staged where they must be.

Staged are inputs and outputs that are not contiguous, contributions that premul_sum scales (an input is never
modified out of place), and launches that run padded. Everything else is worked on where it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from commlib.collectives import Buffer, Collective, Placement
from commlib.errors import SpecError
from commlib.runtime.engine import Buffers
from commlib.runtime.layout import ChunkLayout
from commlib.runtime.tensors import check_tensor, check_writable, divide, flat, is_plain, plain, scale


@dataclass(frozen=True)
class Tensors:
    """A call's tensors: in place only ``span`` (input and output lie in it), out of place ``input`` and ``output``."""

    placement: Placement
    input: torch.Tensor | None
    output: torch.Tensor | None
    span: torch.Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """The element type."""
        tensors = [tensor for tensor in (self.span, self.output, self.input) if tensor is not None]
        if len({tensor.dtype for tensor in tensors}) != 1:
            raise SpecError(f"input and output differ in type: {', '.join(str(t.dtype) for t in tensors)}")
        return tensors[0].dtype


def classify(
    collective: Collective, rank: int, given: torch.Tensor | None, output: torch.Tensor | None, in_place: bool | None
) -> Tensors:
    """Find out what a call means: in place when there is no output or it lies where in place puts it.

    Raises:
        SpecError: no tensor at all, not CPU tensors, an output whose elements share memory, or one that overlaps the
            input in another way.
    """
    for tensor, what in ((given, "input"), (output, "output")):
        if tensor is not None:
            check_tensor(tensor, what)
    target = given if output is None and in_place is not False else output
    if target is not None:
        check_writable(target, "output")
    if in_place is False or (given is None and output is not None):
        return Tensors(Placement.OUT, given, output, None)
    if given is None:
        raise SpecError(f"{collective.name}: rank {rank} gave neither input nor output", rank=rank)
    if output is None or output is given:
        return Tensors(Placement.IN, None, None, given)
    span = _span_of(collective, rank, given, output)
    if span is not None:
        return Tensors(Placement.IN, None, None, span)
    if in_place or _overlap(given, output):
        raise SpecError(f"{collective.name}: input and output of rank {rank} overlap, but not as in place has it")
    return Tensors(Placement.OUT, given, output, None)


def _span_of(c: Collective, rank: int, given: torch.Tensor, output: torch.Tensor) -> torch.Tensor | None:
    """The tensor that holds both, if they lie as in place has it."""
    chunks = c.input_chunks(rank), c.output_chunks(rank)
    if not c.can_be_in_place or not given.numel() or not output.numel() or not all(map(is_plain, (given, output))):
        return None
    if chunks[0] * output.numel() != chunks[1] * given.numel():
        return None
    offsets = c.in_place_offsets(rank)
    distance = (offsets[1] - offsets[0]) * given.numel() // chunks[0] * given.element_size()
    if output.data_ptr() - given.data_ptr() != distance:
        return None
    return output if output.numel() > given.numel() else given


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    if not a.numel() or not b.numel():
        return False
    ranges = [(t.data_ptr(), t.data_ptr() + _extent(t)) for t in (a, b)]
    return ranges[0][0] < ranges[1][1] and ranges[1][0] < ranges[0][1]


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    steps = (max(0, size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (sum(steps) + 1) * tensor.element_size()


def shard_elements(c: Collective, rank: int, tensors: Tensors) -> int:
    """The size of a shard, from the sizes of the tensors.

    Raises:
        SpecError: a size that is not so many whole shards.
    """
    if tensors.span is not None:
        ends = zip(c.in_place_offsets(rank), (c.input_chunks(rank), c.output_chunks(rank)), strict=True)
        return _whole(c, tensors.span.numel(), max(offset + chunks for offset, chunks in ends), "in-place span")
    for tensor, chunks, what in (
        (tensors.input, c.input_chunks(rank), "input"),
        (tensors.output, c.output_chunks(rank), "output"),
    ):
        if tensor is not None and chunks:
            return _whole(c, tensor.numel(), chunks, what)
    raise SpecError(f"{c.name}: the tensors of rank {rank} do not say how large a shard is; give elements", rank=rank)


def _whole(c: Collective, elements: int, chunks: int, what: str) -> int:
    shards = max(1, chunks // c.chunks)
    if elements % shards:
        raise SpecError(f"{c.name}: an {what} of {elements} elements is not {shards} shards of equal size")
    return elements // shards


@dataclass
class Binding:
    """The buffers of one call, and where results are copied back to when the program has run."""

    layout: ChunkLayout
    rank: int
    tensors: Tensors
    factor: complex | None = None

    def __post_init__(self) -> None:
        self._copy_back: tuple[torch.Tensor, torch.Tensor] | None = None
        bind = self._bind_in_place if self.tensors.span is not None else self._bind_out_of_place
        self._working, self._target, self._result = bind()

    def buffers(self) -> Buffers:
        """Input and output as flat arrays."""
        return {buffer: flat(tensor) for buffer, tensor in self._working.items()}

    def finish(self, divide_by: int | None) -> torch.Tensor:
        """Copy back what was staged, divide for avg, and give the user's output."""
        done, target = self._working[Buffer.OUTPUT], self._target
        if self.layout.padded:
            self._unpack(done, target)
        elif done.data_ptr() != target.data_ptr():
            target.copy_(done)
        if divide_by is not None:
            divide(target, divide_by)
        if self._copy_back is not None:
            user, line = self._copy_back
            user.copy_(line.view(user.shape))
        return self._result

    def _bind_out_of_place(self) -> tuple[dict[Buffer, torch.Tensor], torch.Tensor, torch.Tensor]:
        layout, rank, tensors = self.layout, self.rank, self.tensors
        sizes = {buffer: layout.buffer_elements(rank, buffer) for buffer in (Buffer.INPUT, Buffer.OUTPUT)}
        given = tensors.input if tensors.input is not None else torch.empty(0, dtype=tensors.dtype)
        output = tensors.output
        if output is None:
            output = torch.empty(_shape(given, sizes[Buffer.OUTPUT]), dtype=tensors.dtype)
        for tensor, buffer in ((given, Buffer.INPUT), (output, Buffer.OUTPUT)):
            if tensor.numel() != sizes[buffer]:
                self._refuse(tensor, buffer, sizes[buffer])
        source, target = plain(given).view(-1), self._line(output, keeps=False)
        if self.factor is not None:
            source = scale(source, self.factor)
        working = {Buffer.INPUT: source, Buffer.OUTPUT: target}
        if layout.padded:
            slots = layout.collective.output_chunks(rank)
            working[Buffer.INPUT] = self._pack(source, Buffer.INPUT)
            working[Buffer.OUTPUT] = torch.zeros(slots * layout.nominal, dtype=tensors.dtype)
        return working, target, output

    def _bind_in_place(self) -> tuple[dict[Buffer, torch.Tensor], torch.Tensor, torch.Tensor]:
        layout, rank, span = self.layout, self.rank, self.tensors.span
        if span is None:
            raise SpecError("in place takes one tensor that holds input and output")
        starts = layout.span(rank)
        if span.numel() != starts[2]:
            raise SpecError(f"{layout.collective.name}: an in-place span of {span.numel()} elements, not {starts[2]}")
        sizes = [layout.buffer_elements(rank, buffer) for buffer in (Buffer.INPUT, Buffer.OUTPUT)]
        user = self._line(span, keeps=True)
        line = user
        if self.factor is not None:
            line = user.clone()
            mine = line[starts[0] : starts[0] + sizes[0]]
            mine.copy_(scale(mine, self.factor))
        parts = [line[start : start + size] for start, size in zip(starts[:2], sizes, strict=True)]
        if layout.padded:
            parts = self._pad_span(parts[0])
        target = user[starts[1] : starts[1] + sizes[1]]
        result = span if sizes[1] == span.numel() else target
        return {Buffer.INPUT: parts[0], Buffer.OUTPUT: parts[1]}, target, result

    def _line(self, tensor: torch.Tensor, keeps: bool) -> torch.Tensor:
        """The tensor's memory as a line to write to, or a line that is copied back to it in the end."""
        if is_plain(tensor):
            return tensor.detach().view(-1)
        line = plain(tensor).view(-1) if keeps else torch.empty(tensor.numel(), dtype=tensor.dtype)
        self._copy_back = (tensor.detach(), line)
        return line

    def _pad_span(self, source: torch.Tensor) -> list[torch.Tensor]:
        c, nominal = self.layout.collective, self.layout.nominal
        offsets = c.in_place_offsets(self.rank)
        chunks = c.input_chunks(self.rank), c.output_chunks(self.rank)
        ends = [(offset + count) * nominal for offset, count in zip(offsets, chunks, strict=True)]
        span = torch.zeros(max(ends), dtype=source.dtype)
        parts = [span[offset * nominal : end] for offset, end in zip(offsets, ends, strict=True)]
        parts[0].copy_(self._pack(source, Buffer.INPUT))
        return parts

    def _slots(self, buffer: Buffer) -> Sequence[tuple[int, int]]:
        return self.layout.user_slots(self.rank, buffer)

    def _pack(self, source: torch.Tensor, buffer: Buffer) -> torch.Tensor:
        """A copy in which every slot has the nominal length."""
        padded = torch.zeros(len(self._slots(buffer)) * self.layout.nominal, dtype=source.dtype)
        for index, (start, length) in enumerate(self._slots(buffer)):
            at = index * self.layout.nominal
            padded[at : at + length] = source[start : start + length]
        return padded

    def _unpack(self, padded: torch.Tensor, target: torch.Tensor) -> None:
        for index, (start, length) in enumerate(self._slots(Buffer.OUTPUT)):
            at = index * self.layout.nominal
            target[start : start + length] = padded[at : at + length]

    def _refuse(self, tensor: torch.Tensor, buffer: Buffer, size: int) -> None:
        raise SpecError(
            f"{self.layout.collective.name}: the {buffer.name.lower()} of rank {self.rank} has {tensor.numel()} "
            f"elements, not {size}",
            rank=self.rank,
        )


def _shape(given: torch.Tensor, elements: int) -> tuple[int, ...]:
    """The shape of an output of so many elements: the input's, with another first dimension where they differ."""
    if given.numel() == elements:
        return tuple(given.shape)
    row = given[0].numel() if given.dim() and given.numel() else 0
    return (elements // row, *given.shape[1:]) if row and elements % row == 0 else (elements,)
