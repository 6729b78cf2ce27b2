"""Running Algorithms: the reference executor, and the interpreter on gloo processes. torch is loaded on use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from commlib.runtime.faults import Fault, FaultScript
from commlib.runtime.layout import ChunkLayout, plan_layout, prove_layout
from commlib.runtime.reference import Outcome, run_local, simulate_run

if TYPE_CHECKING:
    from commlib.runtime.communicator import Communicator
    from commlib.runtime.launcher import RankOutcome, launch, launch_outcomes
    from commlib.runtime.measurement import Job, Row, measure

_WITH_TORCH = {
    "Communicator": "communicator",
    "RankOutcome": "launcher",
    "launch": "launcher",
    "launch_outcomes": "launcher",
    "Job": "measurement",
    "Row": "measurement",
    "measure": "measurement",
}

__all__ = [
    "ChunkLayout",
    "Communicator",
    "Fault",
    "FaultScript",
    "Job",
    "Outcome",
    "RankOutcome",
    "Row",
    "launch",
    "launch_outcomes",
    "measure",
    "plan_layout",
    "prove_layout",
    "run_local",
    "simulate_run",
]


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"commlib.runtime.{_WITH_TORCH[name]}"), name)
