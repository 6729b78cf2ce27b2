"""Errors as users of torch.distributed catch them: commlib's own kinds that are torch's ``DistBackendError`` as well.

``except RuntimeError`` and ``except dist.DistBackendError`` go on working when a program changes its backend.
"""

from __future__ import annotations

import torch.distributed as dist

from commlib.errors import (
    CommlibError,
    DeadlineError,
    ExecutionError,
    MismatchError,
    PeerFailedError,
    SpecError,
)

_KINDS: dict[type[CommlibError], type[CommlibError]] = {}


def as_torch(error: BaseException) -> BaseException:
    """The same error, of a class that is also torch's; anything but a CommlibError is returned as it is."""
    if not isinstance(error, CommlibError) or isinstance(error, RuntimeError):
        return error
    kind = next(known for known in (*_KINDS, CommlibError) if isinstance(error, known))
    both = _KINDS[kind](error.message, **error.fields)
    for note in getattr(error, "__notes__", ()):
        both.add_note(note)
    return both.with_traceback(error.__traceback__)


class TorchCommlibError(CommlibError, dist.DistBackendError):
    """A CommlibError for callers of torch.distributed."""


class TorchExecutionError(ExecutionError, dist.DistBackendError):
    """An ExecutionError for callers of torch.distributed."""


class TorchDeadlineError(DeadlineError, dist.DistBackendError):
    """A DeadlineError for callers of torch.distributed."""


class TorchPeerFailedError(PeerFailedError, dist.DistBackendError):
    """A PeerFailedError for callers of torch.distributed."""


class TorchMismatchError(MismatchError, dist.DistBackendError):
    """A MismatchError for callers of torch.distributed."""


class TorchSpecError(SpecError, dist.DistBackendError):
    """A SpecError for callers of torch.distributed."""


_KINDS.update(
    {
        DeadlineError: TorchDeadlineError,
        PeerFailedError: TorchPeerFailedError,
        MismatchError: TorchMismatchError,
        ExecutionError: TorchExecutionError,
        SpecError: TorchSpecError,
        CommlibError: TorchCommlibError,
    }
)
