"""``commlib demo``: the main job end to end, on real processes.

How the algorithm comes about is a *stage*: an object of another package in the entry-point group ``commlib.demo``
(the synthesizer's: topology and sketch to algorithm), or, where there is none, one that compiles a library algorithm.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from commlib.cli.compile import compiled, write
from commlib.cli.console import out, verdict
from commlib.cli.measuring import Launch, measure_all
from commlib.cli.plugins import DemoStage, load_demo_stage
from commlib.cli.sources import load_algorithm
from commlib.cli.summary import print_summary, proof_line
from commlib.errors import CommlibError, VerificationError

if TYPE_CHECKING:
    from commlib.ir.algorithm import Algorithm
    from commlib.verify import Report

NODES, LOCAL = 2, 4
SIZES = (1 << 10, 16 << 10, 256 << 10, 1 << 20, 4 << 20)
LAUNCH = Launch(iterations=5, warmup=1, timeout=30.0)

_Keep = Annotated[Path | None, typer.Option("--keep", metavar="DIR", help="Leave the files in this folder.")]


def demo_command(keep: _Keep = None) -> None:
    """Show the main job, end to end, in a minute.

    An allreduce for a machine of 2 nodes with 4 ranks each is synthesized from a topology and a sketch (or compiled
    from the library, where there is no synthesizer), proved, saved as MSCCL XML, loaded, proved again, and run on 8
    processes of this machine; of each row of the table, every element of the first and of the last result is checked.
    Exit status 0: every step was right.
    """
    began = time.monotonic()
    stage = load_demo_stage() or LibraryStage()
    with _folder(keep) as folder:
        path = Path(folder) / f"{stage.name}.xml"
        steps = _Steps()
        _make_and_save(stage, path, steps)
        wrong = _load_and_run(path, steps)
    if keep is not None:
        out(f"\nThe algorithm is in {path}")
    out(f"\n{verdict(not wrong, 'demo: FAILED' if wrong else 'demo: all right')}, {time.monotonic() - began:.1f} s")
    if wrong:
        raise typer.Exit(1)


class LibraryStage:
    """A library algorithm, where nothing synthesizes one."""

    name = "hierarchical_allreduce"

    def make(self, folder: Path) -> tuple[list[str], Algorithm]:  # noqa: ARG002 - other stages leave files there
        """What it did, and the algorithm that it made."""
        from commlib.algorithms import find

        algorithm, _ = compiled(find(self.name).trace(NODES * LOCAL, nodes=NODES))
        return [f"Compile {self.name} for {NODES} nodes x {LOCAL} ranks"], algorithm


class _Steps:
    """Numbers the steps of the demo."""

    def __init__(self) -> None:
        self._done = 0

    def next(self, title: str) -> None:
        """Print the title of the next step."""
        self._done += 1
        out(f"{self._done}. {title}")


def _folder(keep: Path | None) -> AbstractContextManager[str]:
    if keep is None:
        return TemporaryDirectory(prefix="commlib-demo-")
    try:
        keep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommlibError(f"--keep {keep}: {error.strerror}", folder=str(keep)) from error
    return nullcontext(str(keep))


def _make_and_save(stage: DemoStage, path: Path, steps: _Steps) -> None:
    from commlib.verify import verify

    titles, algorithm = stage.make(path.parent)
    for title in titles:
        head, *details = title.splitlines()
        steps.next(head)
        for detail in details:
            out(f"  {detail}".rstrip())
    print_summary(algorithm)
    steps.next("Prove it")
    _insist(verify(algorithm), algorithm)
    steps.next("Save it as MSCCL XML")
    write(algorithm, path, "msccl")
    out(f"  {path.name}, {path.stat().st_size} bytes")


def _load_and_run(path: Path, steps: _Steps) -> int:
    """The number of wrong elements."""
    from commlib.verify import verify

    steps.next("Load the XML again and prove what was loaded")
    algorithm = load_algorithm(path)
    _insist(verify(algorithm), algorithm)
    steps.next(f"Run it on {algorithm.ranks} processes, and check the results")
    placements = sorted(algorithm.placements, key=lambda placement: placement.value, reverse=True)
    return measure_all([(algorithm, placements, SIZES)], LAUNCH).wrong


def _insist(report: Report, algorithm: Algorithm) -> None:
    if not report.proved >= algorithm.placements:
        raise VerificationError(report.text(), findings=report.findings)
    out(f"  {proof_line(report)}")
