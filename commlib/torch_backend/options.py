"""Options of a group: what a user may give as ``pg_options``, and the environment that fills the rest."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from commlib.errors import SpecError

TRANSPORTS = ("auto", "shm", "gloo")


def _transport() -> str:
    return os.environ.get("COMMLIB_TRANSPORT", "auto")


@dataclass(frozen=True)
class Options:
    """``dist.init_process_group("commlib", pg_options=Options(...))``; equal on all ranks.

    Args:
        transport: "auto" takes shared memory for a group on one host and else gloo; "shm" refuses what "auto" would
            do with gloo; "gloo" takes gloo even on one host. Default: COMMLIB_TRANSPORT, else "auto".
        register_buckets: move the buckets of DistributedDataParallel (and every other large, flat tensor with a
            storage of its own that is reduced again and again with ``async_op=True``) to shared memory, where other
            ranks read them in place; whatever has a bucket's raw address is parted from it.
        shm: a ``commlib.runtime.shm.session.ShmOptions``, or None for its defaults.

    Raises:
        SpecError: no such transport.
    """

    transport: str = field(default_factory=_transport)
    register_buckets: bool = False
    shm: Any = None

    def __post_init__(self) -> None:
        if self.transport not in TRANSPORTS:
            raise SpecError(f"no transport is called {self.transport!r}; there are {', '.join(TRANSPORTS)}")


def options_from(given: Any) -> Options:
    """The options of a group; torch hands on None where the user gave none.

    Raises:
        SpecError: options of another backend.
    """
    if given is None:
        return Options()
    if not isinstance(given, Options):
        raise SpecError(
            f"pg_options must be commlib.torch_backend.Options (or None), not of type {type(given).__name__}"
        )
    return given
