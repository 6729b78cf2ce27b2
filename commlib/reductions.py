"""Reductions: how contributions are prepared, combined in pairs, and finished.

A reduction is (prepare each contribution, combine two, finish the output). Only *combine* happens inside an
Algorithm; ``avg`` is ``sum`` with a finish and ``premul_sum`` is ``sum`` with a prepare, as in NCCL, which defines both
on integers too.
The flags say which rewrites a pass may do: chunk reordering needs associative and commutative, replication into
instances needs elementwise, the transpose of a program needs linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from commlib.errors import SpecError


class DtypeKind(Enum):
    """The kinds of element types a reduction may be defined on."""

    FLOAT = "float"
    INTEGER = "integer"
    BOOL = "bool"
    COMPLEX = "complex"


Combine = Literal["sum", "prod", "min", "max", "band", "bor", "bxor"]
_ARITHMETIC = frozenset({DtypeKind.FLOAT, DtypeKind.INTEGER, DtypeKind.COMPLEX, DtypeKind.BOOL})
_ORDERED = frozenset({DtypeKind.FLOAT, DtypeKind.INTEGER, DtypeKind.BOOL})
_BITS = frozenset({DtypeKind.INTEGER, DtypeKind.BOOL})
_SCALED = frozenset({DtypeKind.FLOAT, DtypeKind.INTEGER, DtypeKind.COMPLEX})


@dataclass(frozen=True)
class Reduction:
    """One reduction operator.

    ``combine`` is what an Algorithm's reduce steps do to two elements. ``prepare == "scale"`` multiplies each
    contribution by a factor before it is combined; ``finish == "divide"`` divides the output by the number of ranks
    (integers truncate toward zero; a sum that overflows has wrapped before).
    """

    name: str
    combine: Combine
    kinds: frozenset[DtypeKind]
    prepare: Literal["scale"] | None = None
    finish: Literal["divide"] | None = None
    elementwise: bool = True
    associative: bool = True
    commutative: bool = True
    linear: bool = False

    def supports(self, kind: DtypeKind) -> bool:
        """Whether the reduction is defined on elements of this kind."""
        return kind in self.kinds


REDUCTIONS: dict[str, Reduction] = {
    reduction.name: reduction
    for reduction in (
        Reduction("sum", "sum", _ARITHMETIC, linear=True),
        Reduction("prod", "prod", _ARITHMETIC),
        Reduction("min", "min", _ORDERED),
        Reduction("max", "max", _ORDERED),
        Reduction("avg", "sum", _SCALED, finish="divide", linear=True),
        Reduction("band", "band", _BITS),
        Reduction("bor", "bor", _BITS),
        Reduction("bxor", "bxor", _BITS),
        Reduction("premul_sum", "sum", _SCALED, prepare="scale", linear=True),
    )
}


def reduction(name: str) -> Reduction:
    """The reduction of this name.

    Raises:
        SpecError: there is none; the message lists those there are.
    """
    try:
        return REDUCTIONS[name]
    except KeyError:
        known = ", ".join(REDUCTIONS)
        raise SpecError(f"no reduction is called {name!r}; there are {known}", reduction=name) from None
