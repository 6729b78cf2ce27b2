"""What run, bench and demo share: which placements may run, and a live table of exact results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from commlib.cli.console import Progress, note, out
from commlib.cli.nccl_table import TORCH_TYPES, NcclTable
from commlib.cli.summary import placement_words
from commlib.errors import SpecError, VerificationError

if TYPE_CHECKING:
    from commlib.collectives import Placement
    from commlib.ir.algorithm import Algorithm
    from commlib.runtime import Job


@dataclass(frozen=True)
class Launch:
    """How to measure: element type, reduction, calls per size, and the limits of one call."""

    dtype: str = "float32"
    op: str = "sum"
    iterations: int = 20
    warmup: int = 5
    timeout: float = 30.0
    peers: tuple[str, ...] = ()


def torch_type(name: str) -> str:
    """torch's name of an element type that may be given by nccl-tests' name ("half")."""
    return TORCH_TYPES.get(name, name)


def runnable(algorithm: Algorithm, asked: Sequence[Placement] | None, unsafe: bool) -> tuple[Placement, ...]:
    """The placements to run, out of place first: those asked for (all must be proved), else all that are proved.

    With ``unsafe`` those asked for, else all that have a meaning; what is not proved is told on stderr.

    Raises:
        VerificationError: not proved; the message is the report.
        SpecError: only in place was asked for, which has no meaning for a user's own collective without offsets.
    """
    from commlib.collectives import Placement
    from commlib.verify import verify

    wanted = _out_of_place_first(tuple(Placement) if asked is None else tuple(asked))
    report = verify(algorithm, wanted, whole_messages=True)  # the runtime never cuts the message of a step
    proved = tuple(placement for placement in wanted if placement in report.proved)
    if proved and (asked is None or proved == wanted) and not unsafe:
        return proved
    if not unsafe:
        message = f"not proved, so not run (--unsafe runs it all the same)\n{report.text()}"
        raise VerificationError(message, findings=report.findings)
    return _unproved(algorithm, wanted, proved)


def _unproved(
    algorithm: Algorithm, wanted: tuple[Placement, ...], proved: tuple[Placement, ...]
) -> tuple[Placement, ...]:
    """Those of the wanted placements that have a meaning; says on stderr which are not proved."""
    from commlib.collectives import Placement

    meant = tuple(p for p in wanted if p is Placement.OUT or algorithm.collective.can_be_in_place)
    if not meant:
        raise SpecError(f"{algorithm.collective.name} has no in-place form", collective=algorithm.collective.name)
    for placement in meant:
        if placement not in proved:
            where = placement_words([placement.value])
            note(f"commlib: {algorithm.name} is not proved {where}; it runs as --unsafe says")
    return meant


def _out_of_place_first(placements: tuple[Placement, ...]) -> tuple[Placement, ...]:
    return tuple(sorted(placements, key=lambda placement: placement.value, reverse=True))


def measure_all(
    plan: Sequence[tuple[Algorithm, Sequence[Placement], Sequence[int]]], launch: Launch, quiet: bool = False
) -> NcclTable:
    """Measure each algorithm at its sizes, printing nccl-tests' table as the rows come (unless quiet).

    The placements are those that ``runnable`` gave, or proved otherwise: they are not judged again.

    Raises:
        ExecutionError: a run failed or passed its deadline.
        SpecError: the reduction is not defined on the element type.
    """
    from commlib.collectives import Placement
    from commlib.runtime import measure

    every = {placement for _, placements, _ in plan for placement in placements}
    in_place = [p is Placement.IN for p in _out_of_place_first(tuple(every))]
    op = launch.op if any(algorithm.collective.reduces for algorithm, _, _ in plan) else "none"
    table = NcclTable(in_place, launch.peers, quiet, launch.dtype, op)
    for algorithm in dict.fromkeys(algorithm for algorithm, _, _ in plan if not algorithm.collective.specified):
        note(f"commlib: {algorithm.name} has no postcondition (see --collective): its results are not checked")
    table.begin()
    total = sum(len(placements) * len(sizes) for _, placements, sizes in plan)
    bar = Progress(total, "running", quiet)
    try:
        for algorithm, placements, sizes in plan:
            for size in sizes:
                bar.show()
                rows = measure(algorithm, _job(launch, algorithm, placements, size))
                bar.hide()
                for row in rows:
                    table.add(row)
                bar.show(len(rows))
    finally:
        bar.hide()
    table.end()
    return table


def _job(launch: Launch, algorithm: Algorithm, placements: Sequence[Placement], size: int) -> Job:
    """The job of one size: it has processes and a deadline of its own, and its row is shown as soon as it is done.

    Where nobody said what the result is to be, none is checked.
    """
    from commlib.runtime import Job

    return Job(
        (size,),
        torch_type(launch.dtype),
        launch.op,
        tuple(placements),
        launch.iterations,
        launch.warmup,
        check=algorithm.collective.specified,
        vs=launch.peers,
        unsafe=True,  # its placements were judged before (see runnable): not once more in every process
        timeout=launch.timeout,
    )


def title(lines: Sequence[str], quiet: bool = False) -> None:
    """Comment lines above a table, as nccl-tests prints its parameters."""
    for line in () if quiet else lines:
        out(f"# {line}")
