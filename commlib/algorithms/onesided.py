"""DirectEntry: what the library knows of one of its one-sided programs, beside the function itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from commlib.algorithms.entry import Parameter, Size, Values, one_chunk
from commlib.collectives import MAX_RANKS, Placement, collective
from commlib.dsl import OneSidedProgram, PlacementName
from commlib.errors import SpecError
from commlib.ir.algorithm import Algorithm

LARGE: tuple[Size, ...] = ("large",)


@dataclass(frozen=True)
class DirectEntry:
    """A one-sided program of the library, for ranks that share memory.

    ``chunks(ranks, {})`` is the number of chunks per shard that it is for, ``good_for`` are the message sizes at which
    one would choose it.
    """

    collective: str
    name: str
    function: Callable[[OneSidedProgram], None]
    good_for: tuple[Size, ...] = ("small", "large")
    chunks: Callable[[int, Values], int] = one_chunk
    placement: PlacementName = "both"
    parameters: ClassVar[tuple[Parameter, ...]] = ()

    @property
    def full_name(self) -> str:
        """Name and collective, such as "staged_allreduce"."""
        return f"{self.name}_{self.collective}"

    @property
    def summary(self) -> str:
        """The first sentence of the function's docstring."""
        return (self.function.__doc__ or "").split("\n\n")[0].replace("\n    ", " ").strip()

    @property
    def placements(self) -> frozenset[Placement]:
        """The placements in which it is right."""
        return frozenset(Placement) if self.placement == "both" else frozenset({Placement(self.placement)})

    def supports(self, ranks: int) -> bool:
        """Whether it can run on so many ranks."""
        return 1 <= ranks <= MAX_RANKS

    def algorithm(self, ranks: int, root: int | None = None) -> Algorithm:
        """The program on so many ranks; ``root`` is by default 0 where the collective has one.

        Raises:
            SpecError: fewer than one rank, or a root that there is not.
        """
        if ranks < 1:
            raise SpecError(f"{self.full_name} needs at least 1 rank, not {ranks}", ranks=ranks)
        conditions = collective(self.collective, ranks, self.chunks(ranks, {}), root)
        program = OneSidedProgram(self.full_name, conditions, placement=self.placement)
        self.function(program)
        return program.algorithm()
