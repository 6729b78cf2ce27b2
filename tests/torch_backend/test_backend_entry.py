"""How torch finds the backend: by its entry point, lightly; under torchrun; with the debug level DETAIL."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch.distributed as dist
from timely import timely

from commlib.errors import SpecError
from commlib.torch_backend import Options, register
from commlib.torch_backend.options import options_from
from commlib.torch_entry import create

PROJECT = Path(__file__).resolve().parents[2]


def _python(code: str, *options: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        check=True,
    )
    return done.stdout + done.stderr


def test_the_project_declares_the_entry_point():
    found = re.search(r'entry-points."torch.backends"\]\ncommlib = "(.*)"', (PROJECT / "pyproject.toml").read_text())
    assert found is not None
    assert EntryPoint("commlib", found[1], "torch.backends").load() is register


def test_registration_loads_nothing_but_itself():
    code = (
        "import sys, torch.distributed as dist; known = set(sys.modules)\n"
        "from commlib.torch_entry import register; register(); register()\n"
        "print(dist.Backend._plugins['COMMLIB'].creator_fn.__name__)\n"
        "print(sorted(m for m in set(sys.modules) - known))"
    )
    told = _python(code, TORCH_DEVICE_BACKEND_AUTOLOAD="0").splitlines()
    assert told[0] == create.__name__
    assert told[1] == "['commlib', 'commlib.torch_entry']"


@timely
def test_registration_is_quick():
    """Beside torch itself, whose import takes a second: a few milliseconds, also on a busy machine."""
    told = _python("import torch, commlib.torch_entry", "-X", "importtime", TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    lines = [line.split("|") for line in told.splitlines() if line.rstrip().endswith("commlib.torch_entry")]
    assert len(lines) == 1
    assert int(lines[0][1]) < 100_000


def test_importing_the_package_registers_it_even_first():
    told = _python(
        "import commlib.torch_backend, torch.distributed as dist; print(dist.is_backend_available('commlib'))"
    )
    assert told.strip().endswith("True")


def test_options_are_checked():
    assert options_from(None).transport in ("auto", os.environ.get("COMMLIB_TRANSPORT"))
    with pytest.raises(SpecError, match="no transport is called 'pigeon'; there are auto, shm, gloo"):
        Options(transport="pigeon")
    with pytest.raises(SpecError, match=r"pg_options must be commlib.*, not of type dict"):
        options_from({})


PROGRAM = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("commlib")
rank, ranks = dist.get_rank(), dist.get_world_size()
tensor = torch.full((4,), float(rank))
dist.all_reduce(tensor)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 2))
model(torch.ones(1, 3)).sum().backward()
gathered = [None] * ranks
dist.all_gather_object(gathered, [os.environ["TORCHELASTIC_RUN_ID"], tensor.tolist(), dist.get_backend()])
if rank == 0:
    print(gathered[0][1:], len(gathered), dist.get_debug_level(), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.timeout(110)
def test_torchrun_with_debug_detail(tmp_path):
    assert dist.is_available()
    program = tmp_path / "program.py"
    program.write_text("import commlib.torch_backend\n" + PROGRAM)
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "TORCH_DISTRIBUTED_DEBUG": "DETAIL",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**environment, "GLOO_SOCKET_IFNAME": "lo"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[[1.0, 1.0, 1.0, 1.0], 'commlib'] 2 DebugLevel.DETAIL" in done.stdout


ALONE = """
import sys, torch, torch.distributed as dist
assert not dist.is_initialized() and "commlib.runtime" not in sys.modules
store = dist.HashStore()
dist.init_process_group("commlib", store=store, rank=0, world_size=1)
tensor = torch.ones(3)
dist.all_reduce(tensor)
print(tensor.tolist(), dist.get_backend())
dist.destroy_process_group()
"""


def test_an_installed_package_needs_no_import(tmp_path):
    """What an installation leaves behind, made of pyproject.toml; torch finds the entry point there."""
    declared = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in found.items())
        for group, found in declared.items()
        if group == "torch.backends"
    ]
    installed = tmp_path / "commlib-0.0.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: commlib\nVersion: 0.0.0\n")
    (installed / "entry_points.txt").write_text("\n".join(lines))
    path = f"{tmp_path}{os.pathsep}{PROJECT}"
    told = _python(ALONE, "-P", PYTHONPATH=path, TORCH_DEVICE_BACKEND_AUTOLOAD="1")
    assert "[1.0, 1.0, 1.0] commlib" in told
