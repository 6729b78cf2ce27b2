"""What machine the figures are of."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def describe() -> dict[str, str]:
    """Processor, cores, caches, memory, kernel, Python."""
    return {
        "processor": _after("/proc/cpuinfo", "model name", platform.machine()),
        "cores": str(len(os.sched_getaffinity(0))),
        "caches": ", ".join(_caches()),
        "memory": _after("/proc/meminfo", "MemTotal", "?"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _after(path: str, key: str, otherwise: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return otherwise
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), otherwise)


def _caches() -> list[str]:
    root = Path("/sys/devices/system/cpu/cpu0/cache")
    found = []
    for index in sorted(root.glob("index*")):
        try:
            level, size = ((index / name).read_text().strip() for name in ("level", "size"))
        except OSError:
            continue
        if level != "1":
            found.append(f"L{level} {size}")
    return found
