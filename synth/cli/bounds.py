"""``synth bounds``: how fast a collective can be at best, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from commlib.cli.console import counted, out, out_json
from commlib.cli.options import JsonFlag
from synth.cli.amounts import amount, amount_json, pairs_asked
from synth.cli.asking import (
    CostChoice,
    InternodeChoice,
    MatrixFile,
    Nodes,
    ProfileFile,
    Root,
    SizeText,
    SketchFile,
    Wanted,
    Where,
    ask,
    size_range,
    topology_at,
)
from synth.cli.progress import duration

if TYPE_CHECKING:
    from commlib.bounds import Bound
    from commlib.topology import Unit
    from synth.pipeline import Question

_Topology = Annotated[str, typer.Argument(metavar="TOPOLOGY", help="A machine's or shape's name, or a file.")]
_Collective = Annotated[str, typer.Argument(metavar="COLLECTIVE", help="allgather, alltoall, allreduce, ...")]
_Chunks = Annotated[int, typer.Option("--chunks", "-c", min=1, help="Chunks that each shard is cut into.")]


def bounds_command(
    topology: _Topology,
    collective: _Collective,
    size: SizeText = None,
    chunks: _Chunks = 1,
    root: Root = None,
    nodes: Nodes = 1,
    profile: ProfileFile = None,
    cost: CostChoice = "exact",
    internode: InternodeChoice = "rail",
    sketch: SketchFile = None,
    matrix: MatrixFile = None,
    as_json: JsonFlag = False,
) -> None:
    """Print lower bounds on the time of a collective, the best first, each with its certificate.

    With a sketch, for what it leaves of the topology and for the whole topology.
    """
    found = topology_at(Where(topology, nodes, profile, cost, internode))
    limits = size_range(size, matrix)
    if limits is not None and limits[0] != limits[1]:
        raise typer.BadParameter("--size is one size here, not a range")
    asked = ask(found, Wanted(collective, chunks, root, sketch, matrix), None if limits is None else limits[0])
    bounds, whole = _bounds(asked)
    if as_json:
        _print_json(asked, bounds, whole)
        return
    moved = amount(asked.collective, asked.chunk_bytes, pairs_asked(asked))
    out(f"{asked.collective.name} on {found.name}: {counted(asked.collective.ranks, 'rank')}, {moved}")
    _print(bounds, found.unit)
    if whole is not bounds:
        out("the whole topology, without the sketch")
        _print(whole, found.unit)


def _bounds(asked: Question) -> tuple[Sequence[Bound], Sequence[Bound]]:
    """The bounds of the sketch's problem and of the whole topology's; the same object without a sketch."""
    from synth.pipeline import question_bounds

    return question_bounds(asked)


def _print(bounds: Sequence[Bound], unit: Unit) -> None:
    for bound in bounds:
        profile = f"{bound.seconds / unit.seconds:.6g} {unit.name}"
        out(f"  {bound.kind:<10} {duration(bound.seconds):>12}  ({profile} in the profile's unit)")
        for line in bound.certificate.text().splitlines():
            out(f"      {line}")


def _print_json(asked: Question, bounds: Sequence[Bound], whole: Sequence[Bound]) -> None:
    unit = asked.topology.unit
    out_json(
        {
            "topology": asked.topology.name,
            "collective": asked.collective.name,
            "ranks": asked.collective.ranks,
            "chunks": asked.collective.chunks,
            **amount_json(asked.chunk_bytes, pairs_asked(asked)),
            "bound": bounds[0].seconds,
            "bound_kind": bounds[0].kind,
            "bound_profile": bounds[0].seconds / unit.seconds,
            "bounds": [bound.as_json() for bound in bounds],
            "topology_bounds": [bound.as_json() for bound in whole],
        }
    )
