"""Which host this process is on: whether two processes may share memory is a matter of kernel, namespace and user."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def host_identity() -> str:
    """Equal for two processes exactly if they may share memory: boot, pid namespace and user.

    The environment variable ``COMMLIB_HOST`` is put in front: it emulates several hosts on one machine.
    """
    return f"{os.environ.get('COMMLIB_HOST', '')}|{_machine()}|{os.geteuid()}"


@cache
def _machine() -> str:
    try:
        return f"{_BOOT.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{platform.node()} without /proc, pid {os.getpid()}"


def is_x86_64() -> bool:
    """Whether this machine orders plain loads with loads and stores with stores, which pure Python relies on."""
    return platform.machine().lower() in ("x86_64", "amd64")
