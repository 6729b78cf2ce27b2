"""What communication costs a step of DistributedDataParallel: a step, less the same step without communication."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

WIDTH, LAYERS, BATCH = 2048, 6, 4
"""Six square layers: 25 million parameters, and little to compute."""


def _step(model: Any, given: torch.Tensor, synchronize: bool) -> float:
    """Seconds of a forward and a backward pass; the ranks begin it together because the step before joined them."""
    model.zero_grad(set_to_none=False)
    began = time.perf_counter()
    if synchronize:
        model(given).sum().backward()
    else:
        with model.no_sync():
            model(given).sum().backward()
    return time.perf_counter() - began


def _model(group: Any) -> Any:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    return DistributedDataParallel(torch.nn.Sequential(*layers), process_group=group)


def compare(groups: dict[str, Any], steps: int, barrier: str = "gloo") -> dict[str, dict[str, Any]]:
    """Steps of each backend in turn, with communication ("step") and without ("alone"), in seconds.

    "alone" begins after a barrier, so that all ranks compute at the same time, as they do in a step.
    """
    models = {name: _model(group) for name, group in groups.items()}
    given = torch.ones(BATCH, WIDTH)
    times: dict[str, dict[str, list[float]]] = {name: {"step": [], "alone": []} for name in models}
    for number in range(steps + 3):
        for name, model in models.items():
            for kind in ("step", "alone"):
                torch.distributed.barrier(groups[barrier])
                seconds = _step(model, given, kind == "step")
                if number >= 3:  # buckets are rebuilt after the first step
                    times[name][kind].append(seconds)
    parameters = sum(p.numel() for p in next(iter(models.values())).parameters())
    return {name: {**kinds, "parameters": parameters, "median": median(kinds["step"])} for name, kinds in times.items()}
