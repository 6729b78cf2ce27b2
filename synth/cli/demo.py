"""The synthesizer's part of ``commlib demo``: topology and sketch to algorithm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from synth.cli.progress import duration

if TYPE_CHECKING:
    from commlib.ir.algorithm import Algorithm
    from synth.result import Result

NODES, LOCAL = 2, 4
SHAPE = f"fully_connected:{LOCAL}"
SKETCH = {
    "nnodes": NODES,
    "intranode_sketch": {"strategy": "none"},
    "internode_sketch": {"strategy": "relay", "internode_conn": {str(rank): [rank] for rank in range(LOCAL)}},
    "symmetry_offsets": [[LOCAL, NODES * LOCAL]],
    "hyperparameters": {"input_chunkup": 1},
}
"""Each rank sends over the network to its twin on the other node only, and both nodes do the same."""
SIZE = 1 << 20
SECONDS = 15.0


class SynthesisStage:
    """An allreduce for two nodes, synthesized."""

    name = "synthesized_allreduce"

    def make(self, folder: Path) -> tuple[list[str], Algorithm]:
        """What it did, and the algorithm; topology and sketch are left in the folder."""
        from commlib.topology import draw, topology_of, write_topology
        from synth.engine import Budget
        from synth.pipeline import question, solve
        from synth.sketch import read_sketch

        topology = topology_of(SHAPE, NODES, internode="all")
        write_topology(topology, folder / "topology.json")
        sketch_file = folder / "sketch.json"
        sketch_file.write_text(json.dumps(SKETCH, indent=2) + "\n", encoding="utf-8")
        asked = question(topology, "allreduce", size=SIZE, sketch=read_sketch(sketch_file))
        result = solve(asked, "auto", Budget(SECONDS), name=self.name)
        titles = [
            f"Describe the machine: {NODES} nodes x {LOCAL} ranks (topology.json)\n{draw(topology).rstrip()}",
            "Sketch what may be used: ranks send to their twins on the other node only (sketch.json)",
            f"Synthesize an allreduce of 1 MiB with {result.engine}\n{_facts(result)}",
        ]
        return titles, result.algorithm


def _facts(result: Result) -> str:
    gap = "proven optimal" if result.proven else f"gap {result.gap:.1%}"
    found = f"predicted {duration(result.time)}, lower bound {duration(result.bound)} ({result.bound_kind}): {gap}"
    return f"{found}; searched for {result.seconds:.2f} s"


stage = SynthesisStage()
"""What the entry-point group ``commlib.demo`` names."""
