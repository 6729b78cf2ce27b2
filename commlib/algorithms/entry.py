"""Entry: what the library knows of one of its algorithms, beside the function itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from commlib.collectives import MAX_RANKS, Placement, collective
from commlib.dsl import PlacementName, record
from commlib.errors import SpecError
from commlib.ir.trace import Trace

Values = Mapping[str, int]
"""An algorithm's parameters, each with its value."""
Size = Literal["small", "large"]


@dataclass(frozen=True)
class Parameter:
    """One whole-number parameter, at least 1, with its meaning in words."""

    name: str
    default: int
    meaning: str


def one_chunk(_ranks: int, _values: Values) -> int:
    """Shards of one chunk."""
    return 1


def chunk_per_rank(ranks: int, _values: Values) -> int:
    """Shards of one chunk for each rank."""
    return ranks


def any_ranks(_ranks: int, _values: Values) -> str | None:
    """No number of ranks is refused."""
    return None


def power_of_two_ranks(ranks: int, _values: Values) -> str | None:
    """Refuses all but powers of two."""
    return "the number of ranks must be a power of two" if ranks & (ranks - 1) else None


def whole_nodes(ranks: int, values: Values) -> str | None:
    """Refuses ranks that cannot be dealt evenly to ``nodes`` nodes."""
    return f"the ranks must be a multiple of nodes={values['nodes']}" if ranks % values["nodes"] else None


NODES = Parameter("nodes", 2, "nodes of the machine; node m has ranks m * local to (m + 1) * local - 1")


@dataclass(frozen=True)
class Entry:
    """One algorithm of the library.

    ``function`` is the DSL program, called ``<name>_<collective>``; it takes the Program and those of
    ``parameters`` that are in its signature (``passes``). ``chunks(ranks, values)`` is the number of chunks per
    shard that it is written for, ``refuses(ranks, values)`` says why it cannot run on so many ranks, or None.
    ``good_for`` are the message sizes at which one would choose it.
    """

    collective: str
    function: Callable[..., None]
    good_for: tuple[Size, ...]
    chunks: Callable[[int, Values], int] = one_chunk
    parameters: tuple[Parameter, ...] = ()
    refuses: Callable[[int, Values], str | None] = any_ranks
    placement: PlacementName = "both"

    @property
    def full_name(self) -> str:
        """The function's name, such as "ring_allreduce"."""
        return self.function.__name__

    @property
    def name(self) -> str:
        """The name among the algorithms of its collective, such as "ring"."""
        return self.full_name.removesuffix(f"_{self.collective}")

    @property
    def summary(self) -> str:
        """The first sentence of the function's docstring."""
        return (self.function.__doc__ or "").split("\n\n")[0].replace("\n    ", " ").strip()

    @property
    def placements(self) -> frozenset[Placement]:
        """The placements in which it is right."""
        return frozenset(Placement) if self.placement == "both" else frozenset({Placement(self.placement)})

    def supports(self, ranks: int, **parameters: int) -> bool:
        """Whether it can run on so many ranks with these parameters.

        Raises:
            SpecError: no such parameter, or a value below 1.
        """
        return 1 <= ranks <= MAX_RANKS and self.refuses(ranks, self.values(parameters)) is None

    def values(self, given: Values) -> dict[str, int]:
        """All parameters: those given, and the defaults of the others.

        Raises:
            SpecError: no such parameter, or a value below 1.
        """
        known = {parameter.name: parameter.default for parameter in self.parameters}
        for name, value in given.items():
            if name not in known:
                there = ", ".join(known) or "none"
                raise SpecError(f"{self.full_name} has no parameter {name!r}; there are: {there}", parameter=name)
            if type(value) is not int or value < 1:
                raise SpecError(f"{name} of {self.full_name} must be a whole number >= 1, not {value!r}", value=value)
        return {**known, **given}

    def trace(
        self,
        ranks: int,
        *,
        root: int | None = None,
        instances: int = 1,
        blocked: bool = False,
        protocol: str = "Simple",
        **parameters: int,
    ) -> Trace:
        """The program on ``ranks`` ranks; ``instances`` and ``blocked`` as for Program, ``root`` by default 0.

        Raises:
            SpecError: a number of ranks, a root or a parameter that the algorithm cannot have, with the reason.
        """
        values = self.values(parameters)
        if ranks < 1:
            raise SpecError(f"{self.full_name} needs at least 1 rank, not {ranks}", ranks=ranks)
        reason = self.refuses(ranks, values)
        if reason is not None:
            raise SpecError(f"{self.full_name} does not run on {ranks} ranks: {reason}", ranks=ranks, **values)
        conditions = collective(self.collective, ranks, self.chunks(ranks, values), root)
        passed = {name: values[name] for name in self._passed()}
        return record(
            lambda p: self.function(p, **passed),
            conditions,
            name=self.full_name,
            placement=self.placement,
            instances=instances,
            blocked=blocked,
            protocol=protocol,
        )

    def _passed(self) -> list[str]:
        """The parameters that the function takes itself; the others only set the number of chunks."""
        code = self.function.__code__
        taken = code.co_varnames[: code.co_argcount]
        return [parameter.name for parameter in self.parameters if parameter.name in taken]
