"""Near: the rings of the ranks of one host, in a group over several, for sends and receives.

The segments are of these messages alone. Each has room for one rank more than there are: a ring that the rank's own
threads write to, so that its wait for rings ends when something has come over another transport, too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from commlib.runtime.liveness import process_condition
from commlib.runtime.shm.context import PythonContext
from commlib.runtime.shm.control import LINE, PAGE, SegmentLayout
from commlib.runtime.shm.load import load_context, native_is_built
from commlib.runtime.shm.memory import Mapping
from commlib.runtime.shm.options import ShmOptions, ShmUnavailable
from commlib.runtime.shm.rendezvous import meet
from commlib.runtime.shm.segment import create_segment
from commlib.runtime.shm.views import read_view, write_state
from commlib.runtime.shm.waiting import Bells, make_fence

Standing = Literal["lives", "stopped", "ended", "closed"]


class _Roomy(ShmOptions):
    """Segments with a ring more than there are ranks."""

    def layout(self, ranks: int) -> SegmentLayout:
        """For one rank more."""
        return super().layout(ranks + 1)


class Near:
    """One rank's rings to the others of its host, which are called by their numbers in the group."""

    def __init__(self, rank: int, members: Sequence[int], options: _Roomy, mappings: Sequence[Mapping], native: bool):
        """Not for users: ``open`` makes them."""
        self.rank, self.members = rank, tuple(members)
        self.peers = tuple(peer for peer in members if peer != rank)
        self._at = {peer: at for at, peer in enumerate(members)}
        layout, at = options.layout(len(members)), self._at[rank]
        extra, descriptor = create_segment(layout, len(members))
        os.close(descriptor)
        self._mappings = [*mappings, extra]
        segments = [mapping.address for mapping in self._mappings]
        spins, yields = options.looks(len(members))
        self._context = _context_class(native)(
            at, len(segments), layout, tuple(segments), spins, yields, options.slice_seconds, _no_call, 1
        )
        self._controls = [np.asarray(mapping).data[: layout.control_end] for mapping in mappings]
        self._bells, self._fence, self._waking = Bells(at, layout, segments), make_fence(), threading.Lock()
        self._word = layout.ring_words(len(members)) // 8
        self.wait_rings = self._context.wait_rings

    @classmethod
    def open(cls, store: Any, rank: int, members: Sequence[int], options: ShmOptions, timeout: float) -> Near:
        """Meet the other ranks of this host at a store (under a prefix that only they use); all of them call this.

        Where they cannot share memory, each of them has rings to nobody.

        Raises:
            ExecutionError: a rank did not come.
            OSError: there is no memory.
        """
        small = replace(options, lane_bytes=PAGE, slot_bytes=LINE, depth=1)
        roomy = _Roomy(**{name: getattr(small, name) for name in small.__dataclass_fields__})
        if len(members) > 1:
            try:
                native = options.native and native_is_built()
                found = meet(store, list(members).index(rank), len(members), roomy, timeout, native)
                return cls(rank, members, roomy, found.mappings, found.native)
            except ShmUnavailable:
                pass
        own, descriptor = create_segment(roomy.layout(1), 0)
        os.close(descriptor)
        return cls(rank, (rank,), roomy, [own], options.native and native_is_built())

    def ring_write(self, peer: int, address: int, size: int, /) -> int:
        """How many of these bytes the ring to a peer took."""
        return self._context.ring_write(self._at[peer], address, size)  # type: ignore[no-any-return]

    def ring_read(self, peer: int, address: int, size: int, /) -> int:
        """How many bytes were read of what came from a peer."""
        return self._context.ring_read(self._at[peer], address, size)  # type: ignore[no-any-return]

    def wake(self) -> None:
        """End this rank's wait for rings: count one byte more in the ring that nobody reads."""
        with self._waking:
            self._controls[self._at[self.rank]].cast("Q")[self._word] += 1
            self._fence()
            self._bells.ring(self._at[self.rank])

    def standing(self, peer: int) -> Standing:
        """What has become of a rank of this host."""
        view = read_view(self._controls[self._at[peer]])
        return "closed" if view.state == "closed" else process_condition(view.pid, view.start)

    def close(self) -> None:
        """Say that this rank sends no more. The memory goes with its last user."""
        write_state(self._controls[self._at[self.rank]], "closed")


def _context_class(native: bool) -> Any:
    """Rings that no other rank has may be Python's on any machine."""
    try:
        return load_context(native)
    except ShmUnavailable:
        return PythonContext


def _no_call(*_: object) -> None:
    """No tables are run here."""
