"""Functions on ranks whose default group is a commlib one, for tests of the backend."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from timely import wait_until

import commlib.torch_backend
from commlib.runtime.launcher import launch
from commlib.torch_backend import flight_record
from commlib.torch_backend.group import core_of
from commlib.torch_backend.messages import MessageRunner

gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
"""torch 2.13 gives ``all_gather_into_tensor`` another name."""
SECONDS = 30.0
"""The time-out of the groups."""


def run_on(
    ranks: int, function: Callable[..., Any], *args: Any, transport: str = "auto", limit: float = 100.0, **options: Any
) -> list[Any]:
    """``function(rank, *args)`` on each rank, in a world of commlib, within ``limit`` seconds; the values by rank."""
    return launch(_be, ranks, (function, args, {"transport": transport, **options}), timeout=limit)


def _be(rank: int, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Swap the launcher's gloo world for one of commlib, on the same store."""
    store, ranks = world_store(), dist.get_world_size()
    dist.barrier()  # gloo's connections are complete on all ranks before one closes its own
    dist.destroy_process_group()
    begin(dist.PrefixStore("backend", store), rank, ranks, **options)
    value = function(rank, *args)
    if dist.is_initialized():
        dist.destroy_process_group()
    return value


def world_store() -> Any:
    """The store of the default group; torch 2.6 has no method for it."""
    return dist.distributed_c10d._world.pg_map[dist.group.WORLD][1]


def begin(store: Any, rank: int, ranks: int, timeout: float = SECONDS, **options: Any) -> None:
    """Make a world of commlib."""
    dist.init_process_group(
        "commlib",
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout),
        pg_options=commlib.torch_backend.Options(**options),
    )


def at_a_signal_in_a_call(handler: Callable[..., Any]) -> None:
    """Have a signal come to this thread when its next call runs: it must be one that waits for another rank."""
    signal.signal(signal.SIGALRM, handler)

    def strike() -> None:
        wait_until(lambda: [call.state for call in flight_record(last=1).calls] == ["running"])
        os.kill(os.getpid(), signal.SIGALRM)

    threading.Thread(target=strike, daemon=True).start()


def await_call(core: Any) -> None:
    """Wait until another thread is in a call of this group, or about to be: it holds the group's lock."""
    while core.lock.acquire(blocking=False):
        core.lock.release()
        time.sleep(0.001)


def threads_left() -> list[str]:
    """The threads of this process's groups that do not end: closing waits for them, but not for ever."""

    def found() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("commlib")]

    with contextlib.suppress(AssertionError):
        wait_until(lambda: not found())
    return found()


def has_heard() -> bool:
    """Whether this rank knows that its group has failed; over gloo that takes a beat."""
    runner = core_of().runner
    return not isinstance(runner, MessageRunner) or runner.monitor.cause is not None
