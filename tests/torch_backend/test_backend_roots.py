"""Ranks that disagree about the root, through torch: all are told by the next call, with both roots."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from backend_ranks import run_on


def _roots(rank: int) -> list[str]:
    """Everyone broadcasts as the root, then calls that agree, until one fails.

    Who comes late may be told in the broadcast: the others are in the next call then.
    """
    dist.all_reduce(torch.ones(10))
    for call in range(4):
        tensor = torch.full((10,), float(call))
        try:
            dist.broadcast(tensor, src=rank) if call == 0 else dist.all_reduce(tensor)
        except dist.DistBackendError as error:
            return [type(error).__name__, str(error), str(call)]
        assert bool((tensor == 3.0 * call).all())
    return ["", "", ""]


@pytest.mark.parametrize("transport", ["shm", "gloo"])
def test_ranks_that_each_take_themselves_for_the_root_are_told_so(transport: str) -> None:
    for kind, text, call in run_on(3, _roots, transport=transport):
        assert kind == "TorchMismatchError", text
        assert call in ("0", "1"), text
        assert "is in call 2 (broadcast " in text
        assert sum(f" root {root} " in text for root in range(3)) == 2, text
