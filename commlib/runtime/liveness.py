"""Whether another process of this machine lives, is stopped or has ended: Linux says so in ``/proc``."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path
from typing import Literal

Condition = Literal["lives", "stopped", "ended"]
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def this_process() -> str:
    """This process as others may look it up: machine and pid namespace, pid, and when it started."""
    found = _stat(os.getpid())
    return "" if found is None else f"{_machine()} {os.getpid()} {found[1]}"


def condition(process: str) -> Condition | None:
    """What has become of a process that ``this_process`` described; None if it runs elsewhere or nothing is known."""
    parts = process.rsplit(" ", 2)
    if len(parts) != 3 or parts[0] != _machine():
        return None
    return process_condition(int(parts[1]), int(parts[2]))


def process_condition(pid: int, start: int) -> Condition:
    """What has become of the process of this pid namespace that had this id and began at this time (clock ticks)."""
    found = _stat(pid)
    if found is None or int(found[1]) != start or found[0] in "ZX":
        return "ended"
    return "stopped" if found[0] in "Tt" else "lives"


def start_time(pid: int) -> int:
    """When a process began, in clock ticks since the machine's start; 0 if there is none: pids come again, this not."""
    found = _stat(pid)
    return 0 if found is None else int(found[1])


@cache
def _machine() -> str:
    """Host name, boot and pid namespace: only where all agree do pids mean the same processes."""
    try:
        return f"{socket.gethostname()} {_BOOT.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return "unknown"


def _stat(pid: int) -> tuple[str, str] | None:
    """State and start time of a process (fields 3 and 22 of proc_pid_stat(5)); None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return fields[0], fields[19]
