"""Every example runs as its first lines say, in seconds, and prints what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROMISED = {
    "01_ring_allreduce.py": ["rrcs i[1] -> o[1]", "in place: proved\n  out of place: proved"],
    "02_counterexample.py": [
        "StaleReferenceError: ",
        "02_counterexample.py:13: input[0] of rank 1",
        "rank 0 o[2]: the contribution of rank 1 i[2] is lost",
        "kind=postcondition, rank=0, chunk=2",
    ],
    "03_save_and_load.py": ['<algo name="binomial_broadcast"', "JSON is the same algorithm: True", "XML too: True"],
    "04_custom_collective.py": ["12 steps on 1 channel", "out of place: proved"],
    "05_hierarchical.py": ["hierarchical_allreduce                      in+out     4           2.00S"],
    "06_on_processes.py": [f"rank {rank}: [600.0, 604.0, 608.0]" for rank in range(4)],
    "07_synthesize.py": ["no schedule takes less than\n69.9 us: 7 items must enter rank 0", "in place: proved"],
    "08_sketch.py": [
        "allgather: 912.2 us, bound 912.2 us, proof",
        "rank 8 cannot be reached from rank 4",
        "internode_sketch.gpus_to_sender_rev_map (items of other GPUs have no sender)",
    ],
    "09_own_topology.py": ["bus: 1, taken by 8 links", "        1024 to ", " to  2.68435e+08 bytes: "],
    "10_ddp_training.py": ["losses: 2.3138, ", "the same on gloo: True", "float32 sum 267786 in: staged_allreduce"],
    "11_plug_in_by_xml.py": [f"rank {rank}: float32 sum 1000 in: star; float32 sum 100000" for rank in range(3)],
    "12_several_hosts.py": [
        "rank 1 of 4 on host left: 6 6\nrank 2 of 4 on host right: 6 6\nrank 3 of 4 on host right: 7 6",
        "on 4 ranks over shared memory and gloo -> hierarchical_allreduce",
    ],
}


def test_each_example_is_run_here() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(PROMISED)


@pytest.mark.parametrize(("name", "promised"), PROMISED.items())
def test_example(name: str, promised: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    for text in promised:
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == []
