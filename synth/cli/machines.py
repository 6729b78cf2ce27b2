"""``synth machines``: the topologies that have a name, and pictures of them."""

from __future__ import annotations

from typing import Annotated

import typer

from commlib.cli.console import out, out_json, table
from commlib.cli.options import JsonFlag
from synth.cli.asking import CostChoice, InternodeChoice, Nodes, ProfileFile, Where, topology_at

_Name = Annotated[
    str | None,
    typer.Argument(metavar="[NAME|FILE]", help="Draw this one: a name such as ndv2 or torus:4x4, or a file."),
]


def machines_command(
    name: _Name = None,
    nodes: Nodes = 1,
    profile: ProfileFile = None,
    cost: CostChoice = "exact",
    internode: InternodeChoice = "rail",
    as_json: JsonFlag = False,
) -> None:
    """List the machines and shapes that have a name, or draw one.

    A matrix shows which rank (row) is linked to which (column), a letter for each kind of link; --json prints the
    topology in commlib's own form, which --topology reads.
    """
    if name is None and (nodes != 1 or profile is not None):
        raise typer.BadParameter("--nodes and --profile are for one machine: name it, as synth machines ndv2 -k 2")
    if name is None:
        _list(as_json)
        return
    from commlib.topology import draw, topology_to_json

    topology = topology_at(Where(name, nodes, profile, cost, internode))
    out((topology_to_json(topology) if as_json else draw(topology)).rstrip("\n"))


def _list(as_json: bool) -> None:
    from commlib.topology import MACHINES, SHAPES

    machines = [(name, str(made.ranks), made.title) for name, made in MACHINES.items()]
    shapes = [(made.example, made.parameters, made.title) for made in SHAPES.values()]
    shapes.append(("nodes:128x8", "COUNTxRANKS", "nodes whose ranks are fully connected, each with a NIC"))
    if as_json:
        out_json(
            {
                "machines": [{"name": n, "ranks": int(ranks), "title": title} for n, ranks, title in machines],
                "shapes": [{"example": n, "parameters": numbers, "title": title} for n, numbers, title in shapes],
            }
        )
        return
    table(("machine", "ranks", "what it is"), machines, frozenset({1}))
    out()
    table(("shape", "numbers", "what it is"), shapes)
