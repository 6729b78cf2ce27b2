"""Scripted faults: rank r fails, stops, raises or is late when it begins its s-th step. For tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from commlib.errors import ExecutionError


@dataclass(frozen=True)
class Fault:
    """What ``rank`` does when it begins its ``step``-th step of a launch, counted over threadblocks and tiles.

    ``kill`` and ``stop`` are SIGKILL and SIGSTOP to its own process, ``raise`` an ExecutionError, ``delay`` a pause of
    ``seconds`` (virtual ones in the reference executor, where kill and stop both end the rank's steps).
    """

    rank: int
    step: int
    action: Literal["kill", "stop", "raise", "delay"]
    seconds: float = 0.0


@dataclass
class FaultScript:
    """Counts the steps of one rank and does what the faults say; an engine ``Hook``."""

    rank: int
    faults: tuple[Fault, ...]
    sleep: Callable[[float], None] = time.sleep
    steps: int = field(default=0)

    def __call__(self, threadblock: int, step: int, tile: int) -> None:
        """One more step begins."""
        for fault in self.faults:
            if fault.rank == self.rank and fault.step == self.steps:
                self._do(fault, threadblock, step, tile)
        self.steps += 1

    def _do(self, fault: Fault, threadblock: int, step: int, tile: int) -> None:
        if fault.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault.action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fault.action == "delay":
            self.sleep(fault.seconds)
        else:
            raise ExecutionError(
                f"rank {self.rank} threadblock {threadblock} step {step} tile {tile}: the scripted failure",
                rank=self.rank,
                threadblock=threadblock,
                step=step,
            )
