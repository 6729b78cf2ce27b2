"""Operands: the tensors of a call as one line of memory each, staged where they do not lie that way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from commlib.errors import SpecError
from commlib.runtime.tensors import DTYPES, check_tensor, check_writable, is_plain
from commlib.torch_backend.failures import TorchSpecError, as_torch

REDUCIBLE = frozenset(DTYPES.values())
"""The element types that can be reduced; others can be moved, as integers of their size."""
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}


KEPT = 64 << 20
"""Bytes of a room that are kept after a call."""


class Rooms:
    """Memory to stage tensors in, kept between calls: fresh memory costs more than a copy.

    What exceeds ``KEPT`` bytes goes with the call that needs it: a group may live long.
    """

    def __init__(self) -> None:
        self._rooms: dict[str, torch.Tensor] = {}

    def take(self, role: str, elements: int, dtype: torch.dtype) -> torch.Tensor:
        """A line for one of the two roles of a call, "input" or "output"; what it holds is undefined."""
        size = elements * dtype.itemsize
        room = self._rooms.get(role)
        if size > KEPT:
            return torch.empty(elements, dtype=dtype)
        if room is None or room.numel() < size:
            room = torch.empty(max(4096, 1 << (size - 1).bit_length()), dtype=torch.uint8)
            self._rooms[role] = room
        return room[:size].view(dtype)

    def clear(self) -> None:
        """Give the memory back."""
        self._rooms.clear()


class Operand:
    """Tensors that are one line in this order; ``line`` is their memory, if they lie so, else None."""

    __slots__ = ("dtype", "elements", "line", "tensors")

    def __init__(self, tensors: Sequence[torch.Tensor], writes: bool = False) -> None:
        """Check the tensors; ``writes``: the call writes to them.

        Raises:
            SpecError: not strided CPU tensors of one type, or one to write to whose elements share memory.
        """
        what = "output" if writes else "input"
        for tensor in tensors:
            check(tensor, what, writes)
        self.dtype = tensors[0].dtype
        if any(tensor.dtype != self.dtype for tensor in tensors):
            kinds = ", ".join(sorted({str(tensor.dtype) for tensor in tensors}))
            raise TorchSpecError(f"the tensors of one {what} list differ in type: {kinds}")
        self.tensors = tensors
        self.elements = sum(tensor.numel() for tensor in tensors)
        self.line = _line(tensors)

    @property
    def movable(self) -> torch.dtype:
        """The type to move the elements as: their own, or an integer of that size for one that numpy lacks."""
        return self.dtype if self.dtype in REDUCIBLE else _SAME_SIZE[self.dtype.itemsize]

    @property
    def repeatable(self) -> bool:
        """Whether address, size, type and contiguity of the tensor say all: not of those that may be conjugate or
        negative views, which complex ones, and real ones of one element, can be without being strided."""
        return self.elements > 1 and self.dtype in REDUCIBLE and not self.dtype.is_complex

    def open(self, rooms: Rooms, role: str) -> torch.Tensor:
        """The line to write to."""
        return rooms.take(role, self.elements, self.dtype) if self.line is None else self.line

    def load(self, rooms: Rooms, role: str, always: bool = False) -> torch.Tensor:
        """The line to read; ``always``: a copy even if the tensors are one."""
        if self.line is not None and not always:
            return self.line
        line = rooms.take(role, self.elements, self.dtype)
        start = 0
        for tensor in self.tensors:
            end = start + tensor.numel()
            line[start:end].view(tensor.shape).copy_(tensor.detach())
            start = end
        return line

    def store(self, line: torch.Tensor) -> None:
        """Write the line back to the tensors, if it is not their own memory."""
        if line is self.line:
            return
        start = 0
        for tensor in self.tensors:
            end = start + tensor.numel()
            tensor.detach().copy_(line[start:end].view(tensor.shape))
            start = end

    def overlaps(self, other: Operand) -> bool:
        """Whether lines of the two share memory; staged ones do not."""
        if self.line is None or other.line is None or not self.elements or not other.elements:
            return False
        ends = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in (self.line, other.line)]
        return ends[0][0] < ends[1][1] and ends[1][0] < ends[0][1]


def check(tensor: torch.Tensor, what: str, writes: bool) -> None:
    """Refuse what is no strided CPU tensor, or cannot be written to.

    Raises:
        SpecError: it is so.
    """
    try:
        check_tensor(tensor, what)
        if writes:
            check_writable(tensor, what)
    except SpecError as error:
        raise as_torch(error) from None


def _line(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The memory of the tensors as one line, if it is one."""
    first = tensors[0].detach()
    if not all(map(is_plain, tensors)):
        return None
    if len(tensors) == 1:
        return first.view(-1)
    end = first.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != end:
            return None
        end += tensor.numel() * tensor.element_size()
    storage = first.untyped_storage()
    if end > storage.data_ptr() + storage.nbytes():
        return None
    return first.as_strided((sum(tensor.numel() for tensor in tensors),), (1,))
