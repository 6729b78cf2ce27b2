"""Default rates of cables, for files that say which cables there are but not what they cost.

They are nominal rates and round latencies, not measurements of your machine. PCIe and CPU rates are those that NCCL
assumes (graph/topo.h of NCCL 2).
"""

from __future__ import annotations

import re

NVLINK_ALPHA = 0.3e-6
"""Seconds; what TACCL measured on V100."""
NVLINK_LANE = 25e9
"""Bytes per second and direction of one NVLink lane, generations 2 to 4."""
XGMI_LANE = 50e9
"""Bytes per second and direction of one Infinity Fabric link."""
PCIE_ALPHA = 1e-6
"""Seconds for a message between two GPUs over PCIe."""
NIC_ALPHA = 2.6e-6
"""Seconds for a message between nodes; what TACCL measured."""
NIC_RATE = 25e9
"""Bytes per second of a NIC whose speed is not known: 200 Gb/s."""
PATH_RATES = {"PIX": 24e9, "PXB": 24e9, "PHB": 18e9, "NODE": 18e9, "SOC": 10e9, "SYS": 10e9}
"""Bytes per second of the paths that ``nvidia-smi topo -m`` names, for PCIe 4 x16, nearest first."""

_GENERATION_3 = 60
_LANE_RATES = {"2.5": 15, "5": 30, "5.0": 30, "8": 60, "8.0": 60, "16": 120, "16.0": 120, "32": 240, "32.0": 240,
               "64": 480, "64.0": 480}  # fmt: skip
_SPEED = re.compile(r"\s*([0-9]{1,2}(?:\.[0-9])?)\s*GT/s", re.ASCII)
_SKYLAKE = 0x55


def pcie_rate(speed: str, width: int) -> float:
    """Bytes per second of a PCIe link, such as ``8 GT/s`` of 16 lanes: 12 GB/s.

    What the kernel does not know is taken as NCCL does: generation 3, and 16 lanes where the width is 0.
    """
    found = _SPEED.match(speed)
    lane = _LANE_RATES.get(found[1], _GENERATION_3) if found else _GENERATION_3
    return (width or 16) * lane / 80 * 1e9


def cpu_rate(arch: str, vendor: str, model: int) -> float:
    """Bytes per second between two CPU sockets or NUMA nodes."""
    if arch == "ppc64":
        return 32e9
    if vendor == "AuthenticAMD":
        return 16e9
    return 10e9 if vendor == "GenuineIntel" and model >= _SKYLAKE else 6e9
