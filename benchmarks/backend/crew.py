"""Crews: the ranks of one peer, started once and asked again and again; the controller's side."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer import ADDRESS

HERE = Path(__file__).resolve().parent
CLOSING = 5.0
"""Seconds that a crew has to end by itself."""
LOOK = 0.5
"""Seconds between two looks whether a crew that has not come is still there."""


class CrewLostError(Exception):
    """A crew did not start, died, or did not answer in time."""


@dataclass(frozen=True)
class Recipe:
    """How to start a crew: one command for all ranks, either ``mpiexec`` or the worker, which forks them."""

    name: str
    worker: str
    python: str = sys.executable
    launcher: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, ranks: int) -> list[str]:
        """What starts all ranks."""
        worker = [self.python, str(HERE / self.worker)]
        return [*self.launcher, "-n", str(ranks), *worker] if self.launcher else worker


def torch_recipe(name: str, **environment: str) -> Recipe:
    """A crew with torch, gloo on loopback."""
    return Recipe(name, "torch_peer.py", environment={"GLOO_SOCKET_IFNAME": "lo", **environment})


def mpi_recipes(folder: Path | None, ranks: int) -> Iterator[Recipe]:
    """The MPIs whose virtual environments are in ``folder``, with shared memory only and the best settings found.

    With more ranks than cores, spinning has to give way: Open MPI yields by itself, Intel MPI is told to.
    """
    crowded = ranks > (os.cpu_count() or 1)
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_btl": "self,sm"}
    intel = {"I_MPI_FABRICS": "shm", **({"I_MPI_THREAD_YIELD": "2"} if crowded else {})}
    flags: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
        "openmpi": (("--oversubscribe", "--bind-to", "none"), root),
        "mpich": (("-iface", "lo"), {}),
        "impi": (("-iface", "lo"), intel),
    }
    for name, (options, environment) in flags.items():
        if folder is not None and (folder / name / "bin" / "mpiexec").exists():
            home = (folder / name).resolve() / "bin"
            path = {"PATH": f"{home}:{os.environ['PATH']}"}
            yield Recipe(
                name, "mpi_peer.py", str(home / "python"), (str(home / "mpiexec"), *options), {**environment, **path}
            )


class Crew:
    """The processes of a recipe and a socket to each of its ranks; a context manager."""

    def __init__(self, recipe: Recipe, ranks: int, timeout: float = 90.0) -> None:
        """Start it.

        Raises:
            CrewLostError: it did not come within ``timeout`` seconds.
        """
        self.recipe, self.ranks, self.timeout = recipe, ranks, timeout
        self._folder = Path(tempfile.mkdtemp(prefix="commlib-bench-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._streams: list[Any] = []
        self._connections: list[socket.socket] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        address = str(self._folder / "socket")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            ADDRESS: address,
            "STORE": str(self._folder / "store"),
            "WORLD_SIZE": str(self.ranks),
            **self.recipe.environment,
        }
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(self.ranks)
            self._process = self._spawn(self.recipe.command(self.ranks), environment)
            hellos = [self._accept(listener) for _ in range(self.ranks)]
        order = sorted(range(self.ranks), key=lambda index: hellos[index]["rank"])
        self._streams = [self._streams[index] for index in order]
        self.subjects: list[str] = hellos[0]["subjects"]
        self.versions: dict[str, str] = hellos[0]["versions"]

    def _spawn(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )

    def _accept(self, listener: socket.socket) -> Any:
        connection = self._connection(listener)
        connection.settimeout(self.timeout)
        self._streams.append(connection.makefile("rw"))
        self._connections.append(connection)
        return json.loads(self._line(self._streams[-1]))

    def _connection(self, listener: socket.socket) -> socket.socket:
        """The next rank's; looks now and then whether the process is still there."""
        listener.settimeout(LOOK)
        limit = time.monotonic() + self.timeout
        while time.monotonic() < limit and self._process is not None and self._process.poll() is None:
            with contextlib.suppress(TimeoutError):
                return listener.accept()[0]
        raise self._lost("did not start")

    def _line(self, stream: Any) -> str:
        try:
            line: str = stream.readline()
        except OSError:
            raise self._lost("did not answer in time") from None
        if not line:
            raise self._lost("died")
        return line

    def _lost(self, what: str) -> CrewLostError:
        with contextlib.suppress(OSError):
            log = (self._folder / "log").read_text(errors="replace").strip().splitlines()
            what += ": " + " | ".join(log[-3:]) if log else ""
        return CrewLostError(f"{self.recipe.name} on {self.ranks} ranks {what}")

    def ask(self, do: str, within: float | None = None, **request: Any) -> list[Any]:
        """Ask all ranks; their answers by rank. ``within``: seconds, if not those that the crew had to start.

        Raises:
            CrewLostError: a rank died or did not answer; the crew cannot be used any more.
        """
        seconds = within or self.timeout
        text = json.dumps({"do": do, "timeout": seconds, **request}) + "\n"
        for connection in self._connections:
            connection.settimeout(seconds)
        try:
            for stream in self._streams:
                stream.write(text)
                stream.flush()
        except OSError:
            raise self._lost("died") from None
        return [json.loads(self._line(stream)) for stream in self._streams]

    def close(self) -> None:
        """End all processes."""
        for stream, connection in zip(self._streams, self._connections, strict=True):
            with contextlib.suppress(OSError):
                stream.close()
            connection.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(CLOSING)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
