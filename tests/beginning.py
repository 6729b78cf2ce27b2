"""Ranks that wait for each other in tests, over the launcher's store: what happens in one must not come before another
is where it is to find out. A fault, say, strikes when all have begun the call; who came later would be refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist
from timely import wait_until

from commlib.runtime.faults import Fault, FaultScript


def keys(name: str) -> Any:
    """A part of the launcher's store."""
    return dist.PrefixStore(name, dist.distributed_c10d._get_default_store())  # type: ignore[attr-defined]


def come(name: str, rank: int) -> None:
    """Say that this rank has come so far."""
    keys(name).set(str(rank), "here")


def wait_for(name: str, ranks: Iterable[int]) -> None:
    """Wait until these ranks have come so far."""
    store, wanted = keys(name), [str(rank) for rank in ranks]
    wait_until(lambda: store.check(wanted), 40.0)


def meet(name: str, rank: int, ranks: Sequence[int]) -> None:
    """Return when all these ranks have come here; none of them is needed for that any more, it may end at once."""
    come(name, rank)
    wait_for(name, ranks)


class ScriptForAll(FaultScript):
    """Does what its faults say once every rank has come to a step of the call; it is the hook of all of them."""

    def __init__(self, rank: int, ranks: int, fault: Fault) -> None:
        super().__init__(rank, (fault,))
        self._ranks = ranks

    def __call__(self, threadblock: int, step: int, tile: int) -> None:
        """One more step begins."""
        if self.steps == 0:
            come("begun", self.rank)
        super().__call__(threadblock, step, tile)

    def _do(self, fault: Fault, threadblock: int, step: int, tile: int) -> None:
        wait_for("begun", range(self._ranks))
        super()._do(fault, threadblock, step, tile)
