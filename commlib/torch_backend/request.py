"""Request: what all ranks of a call must agree on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from commlib.collectives import Placement
from commlib.runtime.tensors import dtype_name


@dataclass(frozen=True)
class Request:
    """One collective of a group, without its tensors.

    Args:
        collective: a name of ``commlib.collectives``.
        elements: of a shard (0 for alltoallv, where ``sizes[s][d]`` elements go from rank s to rank d).
        reduction: a name of ``commlib.reductions``, or None where nothing is reduced.
        either: in place on some ranks, perhaps, and out of place on others; only for the library's algorithms, and
            those must be proved for both.
        name: what the user called, for messages; ranks whose names differ are in different calls.
    """

    collective: str
    elements: int
    dtype: torch.dtype
    reduction: str | None = None
    root: int | None = None
    placement: Placement = Placement.OUT
    sizes: tuple[tuple[int, ...], ...] | None = None
    name: str = ""
    either: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of a shard; of alltoallv, of the mean one."""
        if self.sizes is None:
            return self.elements * self.dtype.itemsize
        return sum(map(sum, self.sizes)) * self.dtype.itemsize // len(self.sizes) ** 2

    def text(self, algorithm: str) -> str:
        """The call in words: name, algorithm, type, reduction, root, size, placement."""
        root = "" if self.root is None else f" root {self.root}"
        how = "" if self.reduction is None else f" {self.reduction}"
        name = self.name or self.collective
        return f"{name} {algorithm} {dtype_name(self.dtype)}{how}{root} {self.elements} {self.placement.value}"
