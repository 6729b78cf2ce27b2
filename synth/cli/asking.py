"""From what a user types to a Question: options that several commands share, and the files that they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, cast

import typer

from commlib.cli.sizes import parse_size
from commlib.errors import TopologyError

if TYPE_CHECKING:
    from commlib.topology import Topology
    from commlib.topology.node import Internode
    from commlib.topology.profile import Cost
    from synth.pipeline import Question

TopologyOption = Annotated[
    str,
    typer.Option("--topology", "-t", metavar="NAME|FILE", help="A machine (synth machines lists them) or a file."),
]
Nodes = Annotated[int, typer.Option("--nodes", "-k", min=1, help="So many nodes of it.")]
ProfileFile = Annotated[
    Path | None,
    typer.Option("--profile", metavar="FILE", help="TACCL's topology JSON: the link costs of a named machine."),
]
CostChoice = Annotated[
    str, typer.Option("--cost", metavar="exact|taccl", help="Link costs as profiled, or whole numbers as TACCL's.")
]
InternodeChoice = Annotated[
    str,
    typer.Option("--internode", metavar="rail|all|none", help="Which ranks of different nodes are linked."),
]
SketchFile = Annotated[
    Path | None, typer.Option("--sketch", metavar="FILE", help="TACCL's sketch JSON; without one, the whole graph.")
]
SizeText = Annotated[
    str | None,
    typer.Option(
        "--size",
        "-s",
        metavar="SIZE",
        help="nccl-tests' size, as 1M (an allgather's total output); by default a profile's chunk per rank.",
    ),
]
Root = Annotated[int | None, typer.Option("--root", "-r", min=0, help="Root of a rooted collective.")]
MatrixFile = Annotated[
    Path | None, typer.Option("--sizes", metavar="FILE", help="alltoallv: JSON rows of bytes from each rank to each.")
]
_MAX_MATRIX = 64 << 20


class Where(NamedTuple):
    """The topology that is meant."""

    topology: str
    nodes: int = 1
    profile: Path | None = None
    cost: str = "exact"
    internode: str = "rail"


def topology_at(where: Where) -> Topology:
    """The topology that the options name.

    Raises:
        TopologyError: no such name, or what is there does not fit; with its file and key.
        FormatError: a file that cannot be read.
        typer.BadParameter: no such cost or way to join nodes.
    """
    from commlib.topology import read_profile, topology_of

    for option, value, known in (
        ("--cost", where.cost, ("exact", "taccl")),
        ("--internode", where.internode, ("rail", "all", "none")),
    ):
        if value not in known:
            raise typer.BadParameter(f"{option} is {' or '.join(known)}, not {value!r}")
    profile = None if where.profile is None else read_profile(where.profile)
    cost, internode = cast("Cost", where.cost), cast("Internode", where.internode)
    try:
        return topology_of(where.topology, where.nodes, profile, cost, internode)
    except TopologyError as error:
        raise _naming_file(error, where) from error


def _naming_file(error: TopologyError, where: Where) -> TopologyError:
    """The error with the file that it is about, if it is about one: a profile that does not fit, or has no NICs."""
    from commlib.topology.load import is_file

    fields = dict(error.fields)
    if where.profile is not None and fields.keys() & {"key", "nodes"}:
        file, fields = str(where.profile), {"key": "nics_per_node", **fields}
    elif is_file(where.topology):
        file = where.topology
    else:
        return error
    named = error.message if error.message.startswith(file) else f"{file}: {error.message}"
    return TopologyError(named, **{"file": file, **fields})


class Wanted(NamedTuple):
    """The collective that is meant; ``chunks`` cut each shard."""

    collective: str
    chunks: int = 1
    root: int | None = None
    sketch: Path | None = None
    matrix: Path | None = None


def ask(topology: Topology, wanted: Wanted, size: float | None) -> Question:
    """The question that the options put.

    Raises:
        SketchError, FormatError: a file that cannot be read. SpecError: no such collective.
    """
    from synth.demands import named_or_read
    from synth.pipeline import question
    from synth.sketch import read_sketch

    sketch = None if wanted.sketch is None else read_sketch(wanted.sketch)
    bytes_of = None if wanted.matrix is None else read_matrix(wanted.matrix, topology.ranks)
    return question(
        topology,
        named_or_read(wanted.collective, topology.ranks),
        size=size,
        chunks=wanted.chunks,
        root=wanted.root,
        sketch=sketch,
        bytes_of=bytes_of,
    )


def read_matrix(path: Path, ranks: int) -> list[list[float]]:
    """The sizes of an alltoallv: ``ranks`` rows of as many numbers of bytes.

    Raises:
        FormatError: anything else.
    """
    from commlib.errors import FormatError
    from commlib.files.disk import read_text
    from commlib.files.json_fields import parse_json

    rows = parse_json(read_text(path, _MAX_MATRIX), str(path))
    square = isinstance(rows, list) and len(rows) == ranks
    if not square or not all(isinstance(row, list) and len(row) == ranks for row in rows):
        raise FormatError(f"{path}: sizes are {ranks} rows of {ranks} numbers, one for each rank", file=str(path))
    for source, row in enumerate(rows):
        for target, size in enumerate(row):
            if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size < 2**62:
                message = f"{path}: row {source}: the bytes from rank {source} to {target} are no number of 0 or more"
                raise FormatError(message, file=str(path), rank=source)
    return [[float(size) for size in row] for row in rows]


def size_range(text: str | None, matrix: Path | None = None) -> tuple[int, int] | None:
    """The range that --size means: "1M" is a range of one size, "1K-1G" one of many; None: not given.

    Raises:
        typer.BadParameter: neither, or an empty range; or there is a matrix, which has all sizes itself.
    """
    if text is None:
        return None
    if matrix is not None:
        raise typer.BadParameter(f"--size {text}: {matrix} (--sizes) has the bytes of all pairs; leave --size out")
    low, dash, high = text.partition("-")
    complete = bool(low.strip()) and bool(high.strip() or not dash)
    begin, end = (parse_size(low), parse_size(high if dash else low)) if complete else (0, 0)
    if not 1 <= begin <= end:
        raise typer.BadParameter(f"--size {text}: sizes are from 1 byte up, and a range goes upwards, as 1K-1G")
    return begin, end
