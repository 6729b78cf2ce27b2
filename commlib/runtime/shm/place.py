"""Place: what sends and receives need of the session, or of whatever else, that they run on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class RingWatch(Protocol):
    """Says why nothing moves; see ``watch.Watch``."""

    def refuse(self) -> None:
        """Raise if the group has failed."""

    def on_ring_stall(self, seconds: float, peers: Sequence[int], what: str, timeout: float) -> None:
        """Nothing has moved for so many seconds; raise if there is no hope."""


class RingContext(Protocol):
    """The rings of a rank; see ``interface.Context``."""

    def ring_write(self, peer: int, address: int, bytes: int, /) -> int:
        """How many of these bytes the ring to a peer took."""

    def ring_read(self, peer: int, address: int, bytes: int, /) -> int:
        """How many bytes were read of what came from a peer."""

    def wait_rings(self, timeout: float, /) -> object:
        """Until a ring has changed."""


class Slices(Protocol):
    """Options that have a slice."""

    @property
    def slice_seconds(self) -> float:
        """Seconds for which a wait sleeps before it asks the watch."""


class Place(Protocol):
    """What messages need of a session."""

    rank: int
    ranks: int
    timeout: float

    @property
    def context(self) -> RingContext:
        """The rings."""

    @property
    def watch(self) -> RingWatch:
        """The watch."""

    @property
    def options(self) -> Slices:
        """The options."""
