"""Programs of one's own, not under our launcher: under torchrun, and with a store that one of the ranks hosts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
QUIET = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "FATAL"}

PROGRAM = """
import os, signal, sys
import torch, torch.distributed as dist
from commlib.errors import ExecutionError
from commlib.runtime import Communicator
from runtime_algorithms import chain, ring_allreduce
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
comm = Communicator(timeout=8, transport=os.environ.get("TRANSPORT", "auto"))
total = comm.run(ring_allreduce(ranks), torch.ones(5) * rank, in_place=False)
lines = [f"sum {total[0]:g}"]
if sys.argv[1:] == [str(rank)]:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    sent = comm.run(chain("broadcast", ranks), torch.ones(50000) if rank == 0 else None, torch.zeros(50000))
    comm.run(ring_allreduce(ranks), torch.ones(5))
    lines.append(f"broadcast {sent.sum():g}")
except ExecutionError as error:
    lines.append(str(error))
dist.destroy_process_group()
print(*(f"rank {rank}: {line}" for line in lines), sep="\\n", flush=True)
"""


def _program(folder: Path) -> Path:
    script = folder / "program.py"
    script.write_text(PROGRAM)
    return script


def _environment() -> dict[str, str]:
    return {**os.environ, **QUIET, "PYTHONPATH": str(TESTS)}


def test_under_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run(
        [*command, str(_program(tmp_path))], env=_environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for rank in range(3):
        assert f"rank {rank}: sum 3" in done.stdout
        assert f"rank {rank}: broadcast 50000" in done.stdout


def test_the_rank_that_hosts_the_store_is_killed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    script, ranks = _program(tmp_path), []
    for rank in range(3):
        place = {
            "TRANSPORT": "gloo",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "RANK": str(rank),
            "WORLD_SIZE": "3",
        }
        command = [sys.executable, str(script), "0"]
        ranks.append(
            subprocess.Popen(
                command, env={**_environment(), **place}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        )
    outputs = [process.communicate(timeout=60)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [-signal.SIGKILL, 0, 0]
    for rank in (1, 2):
        assert f"rank {rank}: sum 3" in outputs[rank]
        assert "rank 0 is gone: its connection closed" in outputs[rank]
