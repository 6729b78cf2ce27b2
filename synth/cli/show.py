"""``synth show``: routes and timeline of a synthesized result, or of any algorithm on a topology."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from commlib.cli.console import out, out_json
from commlib.cli.options import Conditions, JsonFlag, Root
from commlib.cli.sources import load_algorithm
from commlib.errors import TopologyError
from synth.cli.asking import CostChoice, InternodeChoice, Nodes, ProfileFile, SizeText, Where, size_range, topology_at
from synth.cli.delivering import lines
from synth.cli.progress import duration

if TYPE_CHECKING:
    from commlib.ir.algorithm import Algorithm
    from commlib.topology import Topology
    from synth.flights import Flight

_File = Annotated[
    Path, typer.Argument(metavar="FILE", help="A result (synth solve --save), or an algorithm (.xml, .json, .txt).")
]
_Topology = Annotated[
    str | None, typer.Option("--topology", "-t", metavar="NAME|FILE", help="For an algorithm: where it is to run.")
]
_Svg = Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="Write the timeline as a picture.")]
_Width = Annotated[int, typer.Option("--width", min=20, max=500, help="Characters of the timeline.")]


class _Shown(NamedTuple):
    """What is drawn: lines above it, and its flights."""

    title: str
    head: list[str]
    flights: list[Flight]


def show_command(
    file: _File,
    topology: _Topology = None,
    nodes: Nodes = 1,
    profile: ProfileFile = None,
    cost: CostChoice = "exact",
    internode: InternodeChoice = "rail",
    size: SizeText = None,
    collective: Conditions = None,
    root: Root = None,
    svg: _Svg = None,
    width: _Width = 72,
    as_json: JsonFlag = False,
) -> None:
    """Draw the route of each chunk, and what each link carries when.

    An algorithm is run by the cost model on the topology that is given, each step as early as possible.
    """
    from commlib.files.disk import write_atomic
    from synth.picture import route_lines, timeline_lines, timeline_svg

    if _is_result(file):
        shown = _of_result(file)
    else:
        algorithm = load_algorithm(file, collective, root)
        if topology is None:
            raise typer.BadParameter(f"{file} is an algorithm: say with --topology where it is to run")
        where = topology_at(Where(topology, nodes, profile, cost, internode))
        shown = _of_algorithm(algorithm, where, size)
    if svg is not None:
        write_atomic(svg, timeline_svg(shown.flights, shown.title))
    if as_json:
        rows = [flight._asdict() for flight in shown.flights]
        out_json({"title": shown.title, "time": max((f.arrival for f in shown.flights), default=0.0), "flights": rows})
        return
    for line in (*shown.head, "", *route_lines(shown.flights), "", *timeline_lines(shown.flights, width)):
        out(line)


def _is_result(file: Path) -> bool:
    """Whether a file says of itself, near its beginning, that it is a stored result."""
    from commlib.errors import FormatError
    from synth.stored import FORMAT

    if file.suffix.lower() != ".json":
        return False
    try:
        with file.open("rb") as stream:
            head = stream.read(400)
    except OSError as error:
        raise FormatError(f"{file}: cannot be read: {error.strerror}", file=str(file)) from error
    return f'"{FORMAT}"'.encode() in head


def _of_result(file: Path) -> _Shown:
    from synth.flights import flights_of_moves
    from synth.stored import load_result

    result = load_result(file)
    title = f"{result.collective.name} on {result.topology.name}"
    return _Shown(title, list(lines(result)), flights_of_moves(result.moves))


def _of_algorithm(algorithm: Algorithm, topology: Topology, size: str | None) -> _Shown:
    from commlib.demand import chunk_bytes
    from synth.flights import flights_of_algorithm
    from synth.pipeline import profile_chunk

    limits, collective = size_range(size), algorithm.collective
    if topology.ranks != algorithm.ranks:
        raise TopologyError(f"{topology.name} has {topology.ranks} ranks, {algorithm.name} {algorithm.ranks}")
    each = profile_chunk(topology, collective) if limits is None else chunk_bytes(collective, limits[0])
    flights = flights_of_algorithm(algorithm, topology, each)
    time = max((flight.arrival for flight in flights), default=0.0)
    head = [f"{algorithm.name} on {topology.name}: {len(flights)} chunks sent, {duration(time)} by the cost model"]
    return _Shown(f"{algorithm.name} on {topology.name}", head, flights)
