"""Runners: what carries out a group's requests. One interface; shared memory, messages, or one rank alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from commlib.runtime.tensors import divide, scale
from commlib.torch_backend.request import Request

Line = torch.Tensor | None
"""A contiguous tensor of one dimension; None where a rank has no input or no output."""


class Runner(Protocol):
    """Runs requests, one at a time: the group sees to that.

    In place, ``input`` and ``output`` lie in one span as ``Collective.in_place_offsets`` says. ``aliases``: that they
    may lie so in a call out of place too, on any of the ranks.
    """

    aliases: bool

    def prepare(self, request: Request, registered: bool = False) -> Any:
        """What calls of one request share: algorithm, proof, layout, plan. Kept by the runner.

        Args:
            registered: other ranks reach the tensors of the call where they lie, on all ranks.

        Raises:
            VerificationError: the algorithm is not proved.
            SpecError: type or reduction are not supported.
        """

    def run(self, prepared: Any, input: Line, output: Line, factor: complex | None, timeout: float) -> None:
        """Run one call; ``factor`` is that of a premul_sum.

        Raises:
            ExecutionError: it failed, and the group cannot be used any more.
        """

    def replay(self, prepared: Any, input: Line, output: Line, timeout: float) -> Callable[[], object] | None:
        """The same call as a function without arguments, as fast as can be; None if the runner has no such thing."""

    def registered(self, *lines: Line) -> bool:
        """Whether other ranks reach these tensors where they lie."""

    def reaches(self, places: Sequence[tuple[int, int]]) -> bool:
        """Whether other ranks reach the memory at these (address, bytes)."""

    def register(self, line: torch.Tensor) -> bool:
        """Move a tensor's storage to where other ranks reach it (all ranks call this); False where none can."""

    def forget(self) -> None:
        """Choose algorithms anew from now on."""

    def interrupt(self) -> None:
        """End the call that another thread is in, here and on the ranks that wait for it; the group has failed then."""

    def close(self) -> None:
        """Let go of everything."""


class SoloRunner:
    """A group of one rank: each collective copies its input to its output."""

    aliases = True

    def prepare(self, request: Request, registered: bool = False) -> Request:  # noqa: ARG002
        """Nothing is planned."""
        return request

    def run(self, prepared: Request, input: Line, output: Line, factor: complex | None, timeout: float) -> None:  # noqa: ARG002
        """Copy, and scale for a premul_sum."""
        if input is None or output is None:
            return
        if factor is not None and prepared.reduction == "premul_sum":
            output.copy_(scale(input, factor))
        elif input.data_ptr() != output.data_ptr():
            output.copy_(input)

    def replay(self, prepared: Request, input: Line, output: Line, timeout: float) -> None:
        """None."""

    def registered(self, *lines: Line) -> bool:  # noqa: ARG002
        """No: there are no others."""
        return False

    def reaches(self, places: Sequence[tuple[int, int]]) -> bool:  # noqa: ARG002
        """No."""
        return False

    def register(self, line: torch.Tensor) -> bool:  # noqa: ARG002
        """Nothing to do."""
        return False

    def forget(self) -> None:
        """Nothing is chosen."""

    def interrupt(self) -> None:
        """No call waits for anybody."""

    def close(self) -> None:
        """Nothing is held."""


def closing(rank: int) -> str:
    """Why a call that is interrupted ends."""
    return f"rank {rank} closed its group (destroy_process_group, or the end of the process) while a call was under way"


def before(reduction: str | None, factor: complex | None, line: torch.Tensor) -> torch.Tensor:
    """A rank's contribution as it enters the combination: scaled for premul_sum, else the line itself."""
    return scale(line, factor) if reduction == "premul_sum" and factor is not None else line


def after(reduction: str | None, output: Line, ranks: int) -> None:
    """Finish the output: the mean of ``ranks`` contributions for avg."""
    if reduction == "avg" and output is not None:
        divide(output, ranks)


def span_of(input: Line, output: Line) -> Line:
    """The line that holds both, in place."""
    if input is None or output is None:
        return output if input is None else input
    return output if output.numel() >= input.numel() else input
