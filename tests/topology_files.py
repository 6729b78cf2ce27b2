"""Small files of every form of topology, for the tests of readers and their fuzz."""

from __future__ import annotations

import json

TACCL = json.dumps(
    {
        "name": "NDv2_1MB",
        "gpus_per_node": 8,
        "nics_per_node": 1,
        "alpha": 0.3,
        "node_betas_list": [23, 46],
        "node_invbws_list": [23, 46],
        "remote_invbw": 107,
        "remote_alpha": 2.6,
        "remote_beta": 105,
    }
)
CUSTOM = json.dumps(
    {
        "name": "three_32KB",
        "gpus_per_node": 3,
        "nics_per_node": 1,
        "alpha": 1,
        "links": [[0, 1, 0], [1, 0, 1], [1, 0, 0]],
        "betas": [[0, 5, 0], [6.5, 0, 7], [8, 0, 0]],
        "invbws": [[0, 6, 0], [7.5, 0, 8], [9, 0, 0]],
        "remote_invbw": 20,
        "remote_alpha": 2.6,
        "remote_beta": 17.4,
    }
)
OURS = json.dumps(
    {
        "format": "commlib-topology",
        "version": 1,
        "name": "two pairs",
        "ranks": 4,
        "unit": {"name": "us", "seconds": 1e-6, "chunk_bytes": 1048576},
        "node_of": [0, 0, 1, 1],
        "resources": {"nic 0 out": None, "nic 1 in": 1e-10},
        "kinds": {"nvlink": {"alpha": 1e-6, "beta": 1e-11}, "ib": {"alpha": 3e-6, "beta": 1e-10, "pipelined": True}},
        "links": [[0, 1, "nvlink"], [1, 0, "nvlink"], [2, 3, "nvlink"], [3, 2, "nvlink"],
                  [0, 2, "ib", ["nic 0 out", "nic 1 in"]], [1, 3, "ib", ["nic 0 out", "nic 1 in"]], [2, 0, "ib"]],
    }
)  # fmt: skip
NODE_LINK = json.dumps(
    {
        "directed": False,
        "multigraph": False,
        "graph": {"name": "triangle"},
        "nodes": [{"id": "a", "node": 0}, {"id": "b", "node": 0}, {"id": "c", "node": 1}],
        "links": [
            {"source": "a", "target": "b", "alpha": 1e-6, "beta": 1e-11},
            {"source": "b", "target": "c", "beta": 1e-10},
            {"source": "c", "target": "a", "beta": 2e-10},
        ],
    }
)
GRAPHML = """<?xml version='1.0' encoding='utf-8'?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:schemaLocation="http://graphml.graphdrawing.org/xmlns http://graphml.graphdrawing.org/xmlns/1.0/graphml.xsd">
<key id="d1" for="edge" attr.name="beta" attr.type="double"/>
<key id="d0" for="edge" attr.name="alpha" attr.type="double"/>
<graph edgedefault="directed">
<node id="1"/><node id="0"/><node id="2"/>
<edge source="0" target="1"><data key="d0">1e-06</data><data key="d1">1e-11</data></edge>
<edge source="1" target="2"><data key="d1">2e-11</data></edge>
<edge source="2" target="0"><data key="d1">3e-11</data></edge>
</graph></graphml>
"""


def _gpu(rank: int, cables: str) -> str:
    return (
        f'<pci busid="0000:0{rank}:00.0" class="0x030200" link_speed="8 GT/s" link_width="16">'
        f'<gpu dev="{rank}" sm="70" rank="{rank}" gdr="1">{cables}</gpu></pci>'
    )


def _nvlink(target: int, count: int) -> str:
    return f'<nvlink target="0000:0{target}:00.0" count="{count}" tclass="0x030200"/>'


def _nic(name: str, dev: int, speed: int) -> str:
    return (
        f'<pci busid="0000:e{dev}:00.0" class="0x020700" link_speed="8 GT/s" link_width="16"><nic>'
        f'<net name="{name}" dev="{dev}" speed="{speed}" port="1" guid="0x0" maxconn="262144" gdr="1"/></nic></pci>'
    )


def _cpu(number: int, content: str) -> str:
    return (
        f'<cpu numaid="{number}" affinity="ffff" arch="x86_64" vendor="GenuineIntel" familyid="6" modelid="79">'
        f'<pci busid="0000:a{number}:00.0" class="0x060400" link_speed="8 GT/s" link_width="16">{content}</pci></cpu>\n'
    )


NCCL = (
    '<system version="1">\n'
    + _cpu(0, _gpu(0, _nvlink(1, 2)) + "\n" + _gpu(1, _nvlink(0, 2) + _nvlink(2, 1)) + _nic("mlx5_0", 0, 100000))
    + _cpu(1, _gpu(2, _nvlink(1, 1)) + _gpu(3, "") + _nic("mlx5_1", 1, 100000) + _nic("eth0", 2, 1000))
    + "</system>\n"
)
"""Four GPUs at two CPUs: 0=1 by two lanes, 1-2 by one, 3 has PCIe only; an InfiniBand NIC at each CPU."""

_SWITCHED = '<nvlink target="0000:c0:00.0" count="6" tclass="0x068000"/>'
NCCL_SWITCH = (
    '<system version="1">' + _cpu(0, "".join(_gpu(rank, _SWITCHED * (2 if rank else 1)) for rank in range(3)))
) + "</system>"
"""Three GPUs at NVSwitches, the first with half the lanes; no NIC."""

SMI = """\t\x1b[4mGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tNIC1\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV2\tSYS\tSYS\tPIX\tSYS\t0-19\t0\t\tN/A
GPU1\tNV2\t X \tNV1\tSYS\tPIX\tSYS\t0-19\t0\t\tN/A
GPU2\tSYS\tNV1\t X \tPHB\tSYS\tPIX\t20-39\t1\t\tN/A
GPU3\tSYS\tSYS\tPHB\t X \tSYS\tPHB\t20-39\t1\t\tN/A
NIC0\tPIX\tPIX\tSYS\tSYS\t X \tSYS
NIC1\tSYS\tSYS\tPIX\tPHB\tSYS\t X

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_1
"""
FILES = {
    "taccl.json": TACCL,
    "custom.json": CUSTOM,
    "ours.json": OURS,
    "node_link.json": NODE_LINK,
    "graph.graphml": GRAPHML,
    "nccl.xml": NCCL,
    "nccl_switch.xml": NCCL_SWITCH,
    "smi.txt": SMI,
}
