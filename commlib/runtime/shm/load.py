"""Which context executes the tables: the native core where it is built and allowed, else pure Python."""

from __future__ import annotations

import importlib
import os
from typing import Any

from commlib.runtime.shm.context import PythonContext
from commlib.runtime.shm.host import is_x86_64
from commlib.runtime.shm.options import ShmUnavailable


def native_is_built() -> bool:
    """Whether the native core is there, and the environment (``COMMLIB_NATIVE=0``) does not forbid it."""
    return load_native() is not None


def load_native() -> Any:
    """The native core (``commlib.native._core``), or None: not built, or forbidden by ``COMMLIB_NATIVE=0``."""
    return None if os.environ.get("COMMLIB_NATIVE", "1") == "0" else _native()


def load_context(native: bool | None = None) -> Any:
    """The class of contexts: native or Python, by default native where it is built.

    Raises:
        ShmUnavailable: pure Python on a machine where it has no memory fences (not x86-64), or there is no core.
    """
    if native is None:
        native = native_is_built()
    if native:
        found = _native()
        if found is None:
            raise ShmUnavailable("the native core (commlib.native) is not built")
        return found.Context
    if not is_x86_64():
        raise ShmUnavailable("pure Python has no memory fences, which this machine needs; build commlib.native")
    return PythonContext


def _native() -> Any:
    try:
        return importlib.import_module("commlib.native").core
    except ImportError:
        return None
