"""What differs between versions of torch, from 2.6 on, and what torch's option objects say: all of it in this file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed.distributed_c10d

from commlib.torch_backend.failures import TorchSpecError

c10d: Any = torch.distributed.distributed_c10d
"""torch's module, of whatever version: what its stubs say of these classes differs between versions."""

OPTIONS_TELL = hasattr(c10d.AllreduceOptions, "asyncOp")
"""Whether options say if the caller waits at once (``asyncOp``). In 2.6 few kinds do, and not every function asks."""

profiling: Callable[[], bool] = torch.autograd._profiler_enabled  # type: ignore[attr-defined]
"""Whether a profiler watches this thread (50 ns)."""

_NAMES = {
    "SUM": "sum",
    "AVG": "avg",
    "PRODUCT": "prod",
    "MIN": "min",
    "MAX": "max",
    "BAND": "band",
    "BOR": "bor",
    "BXOR": "bxor",
    "PREMUL_SUM": "premul_sum",
}
PREMUL = int(c10d.ReduceOp.RedOpType.PREMUL_SUM)
"""The hash of a premul_sum: those differ by their factor."""


WORKS_LIVE = hasattr(c10d.ProcessGroup, "all_gather_single")
"""Whether torch keeps a Work written in Python alive while its C++ part waits for it; 2.6 forgets its methods."""


_alive: set[Any] = set()
"""The works that older torch must find alive."""


def keep_alive(work: Any) -> None:
    """Keep the handle of an asynchronous call until someone has waited for it, where torch does not."""
    if not WORKS_LIVE:
        _alive.add(work)


def let_go(work: Any) -> None:
    """Someone has waited for it, or has its future."""
    _alive.discard(work)


def is_async(options: Any) -> bool:
    """Whether a call returns before it is done."""
    told = bool(getattr(options, "asyncOp", True))
    return told if OPTIONS_TELL or not told else _asked_to_go_on()


def _asked_to_go_on() -> bool:
    """Whether torch's function that made this call returns before it is done: its argument ``async_op``.

    It is read from the function's frame. What its caller waits for runs in the caller's own thread, where a signal
    handler's error comes out of the call and a call within a call is refused. What another than torch's functions
    called (torch's C++ part, a user of the group) may be waited for later.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__package__") == __package__:
        frame = frame.f_back
    if frame is None or frame.f_globals is not vars(c10d):
        return True
    given = frame.f_locals
    return bool(given.get("async_op", given.get("async_ops", True)))


class Telling:
    """A call's options, whose ``asyncOp`` says whether the call returns before it is done, on every torch."""

    __slots__ = ("_options", "asyncOp")

    def __init__(self, options: Any) -> None:
        self._options, self.asyncOp = options, is_async(options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._options, name)


def seconds(options: Any, default: float) -> float:
    """The timeout of a call in seconds, given as options, a timedelta or seconds; torch writes -1 ms for none."""
    if isinstance(options, (int, float)):
        options = timedelta(seconds=options)
    timeout = options if isinstance(options, timedelta) else getattr(options, "timeout", None)
    found = timeout.total_seconds() if isinstance(timeout, timedelta) else -1.0
    return found if found > 0 else default


def reduction_of(op: Any) -> tuple[str, complex | None]:
    """The name of a reduction in ``commlib.reductions``, and the factor of a premul_sum.

    Raises:
        SpecError: torch's placeholder "unused", or a factor that is a tensor of several elements.
    """
    kind = op.op if isinstance(op, c10d.ReduceOp) else op
    name = _NAMES.get(kind.name)
    if name is None:
        raise TorchSpecError(f"{kind.name} is no reduction")
    if name != "premul_sum":
        return name, None
    factor = op.__getstate__()[1]
    if isinstance(factor, torch.Tensor):
        if factor.numel() != 1:
            raise TorchSpecError(f"the factor of premul_sum has {factor.numel()} elements, not 1")
        factor = factor.item()
    return name, factor


def options_of(kind: type[Any], given: Any, named: dict[str, Any]) -> Any:
    """The options of a call that was made with plain arguments: a reduction, a root or a timeout.

    torch's groups take ``group.allreduce(tensor, op)`` and ``group.broadcast(tensor, root)`` as well as options.
    """
    if isinstance(given, kind):
        return given
    options = kind()
    if isinstance(given, (c10d.ReduceOp, c10d.ReduceOp.RedOpType)):
        named = {**named, "op": given}
    elif isinstance(given, int):
        named = {**named, "root": given}
    elif isinstance(given, timedelta):
        named = {**named, "timeout": given}
    for name, value in named.items():
        if value is not None:
            setattr(options, {"op": "reduceOp", "root": "rootRank"}.get(name, name), value)
    return options
