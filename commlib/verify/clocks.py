"""Vector clocks, as dictionaries or as arrays. Clocks are never changed once made, so that units can share them."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Clock = TypeVar("Clock")


class Clocks(Protocol, Generic[Clock]):
    """How clocks of one kind are made and read."""

    @property
    def exhausted(self) -> bool:
        """Whether making them has cost more than was allowed."""

    def later(self, one: Clock | None, other: Clock | None) -> Clock | None:
        """The clock that knows what either knows (None knows nothing)."""

    def marked(self, clock: Clock | None, component: int, unit: int) -> Clock:
        """The clock that also knows this unit of this component."""

    def last(self, clock: Clock, component: int) -> int:
        """The last unit of a component that the clock knows, or -1."""


class SparseClocks:
    """Dictionaries of the components known: O(what is known) per change, up to ``budget`` entries in all."""

    def __init__(self, budget: int) -> None:
        self._budget = budget

    @property
    def exhausted(self) -> bool:
        """Whether making them has cost more than was allowed."""
        return self._budget < 0

    def later(self, one: dict[int, int] | None, other: dict[int, int] | None) -> dict[int, int] | None:
        """The clock that knows what either knows."""
        if one is None or one is other:
            return other
        if other is None:
            return one
        self._budget -= len(one) + len(other)
        merged = dict(one)
        for component, unit in other.items():
            if merged.get(component, -1) < unit:
                merged[component] = unit
        return merged

    def marked(self, clock: dict[int, int] | None, component: int, unit: int) -> dict[int, int]:
        """The clock that also knows this unit of this component."""
        if clock is None:
            return {component: unit}
        self._budget -= len(clock)
        return clock | {component: unit}

    def last(self, clock: dict[int, int], component: int) -> int:
        """The last unit of a component that the clock knows, or -1."""
        return clock.get(component, -1)


class DenseClocks:
    """Arrays of ``width`` components: O(width) per change, whatever is known."""

    exhausted = False

    def __init__(self, width: int) -> None:
        self._nothing = np.full(width, -1, dtype=np.int32)

    def later(
        self, one: npt.NDArray[np.int32] | None, other: npt.NDArray[np.int32] | None
    ) -> npt.NDArray[np.int32] | None:
        """The clock that knows what either knows."""
        if one is None or one is other:
            return other
        return one if other is None else np.maximum(one, other)

    def marked(self, clock: npt.NDArray[np.int32] | None, component: int, unit: int) -> npt.NDArray[np.int32]:
        """The clock that also knows this unit of this component."""
        own = (self._nothing if clock is None else clock).copy()
        own[component] = unit
        return own

    def last(self, clock: npt.NDArray[np.int32], component: int) -> int:
        """The last unit of a component that the clock knows, or -1."""
        return int(clock[component])
