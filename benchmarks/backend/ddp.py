"""What communication costs a step of DistributedDataParallel: a step, less the same step with a hook that communicates
nothing. That too fills the buckets and reads them back, which is DDP's own work, whatever the backend."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

WIDTH, LAYERS, BATCH = 2048, 6, 4
"""Six square layers: 25 million parameters, and little to compute."""


def _step(model: Any, given: torch.Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    model.zero_grad(set_to_none=False)
    began = time.perf_counter()
    model(given).sum().backward()
    return time.perf_counter() - began


def _model(group: Any) -> Any:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    return DistributedDataParallel(torch.nn.Sequential(*layers), process_group=group)


def _silent(ranks: int, bucket: Any) -> Any:
    """A hook of DDP that divides, as DDP does, and communicates nothing."""
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer().div_(ranks))
    return future


def compare(groups: dict[str, Any], steps: int, barrier: str = "gloo") -> dict[str, dict[str, Any]]:
    """Steps of each backend ("step"), and the same without communication ("alone"), in turn, in seconds.

    Each begins after a barrier, so that the ranks begin together.
    """
    models = {name: _model(group) for name, group in groups.items()}
    silent = _model(groups[barrier])
    silent.register_comm_hook(groups[barrier].size(), lambda ranks, bucket: _silent(ranks, bucket))
    given = torch.ones(BATCH, WIDTH)
    times: dict[str, dict[str, list[float]]] = {name: {"step": [], "alone": []} for name in models}
    for number in range(steps + 3):
        for name, model in models.items():
            for kind, which in (("step", model), ("alone", silent)):
                torch.distributed.barrier(groups[barrier])
                seconds = _step(which, given)
                if number >= 3:  # buckets are rebuilt after the first step
                    times[name][kind].append(seconds)
    parameters = sum(p.numel() for p in next(iter(models.values())).parameters())
    return {name: {**kinds, "parameters": parameters, "median": median(kinds["step"])} for name, kinds in times.items()}
