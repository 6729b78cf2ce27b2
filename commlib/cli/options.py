"""The options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def parse_parameters(texts: list[str]) -> dict[str, int]:
    """The parameters of repeated ``--param key=number`` options.

    Raises:
        typer.BadParameter: not of that form, or a key given twice.
    """
    found: dict[str, int] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            number = int(value)
        except ValueError:
            equals = ""
        if not equals or not key.isidentifier():
            raise typer.BadParameter(f"{text!r} is not of the form key=number")
        if key in found:
            raise typer.BadParameter(f"parameter {key!r} is given twice")
        found[key] = number
    return found


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs to read.")]
AlgorithmFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A compiled algorithm: MSCCL XML, or commlib's .json or .txt.")
]
FileOrName = Annotated[
    str,
    typer.Argument(
        metavar="FILE|NAME",
        help="A compiled algorithm (.xml, .json, .txt), or a library algorithm's name such as ring_allreduce.",
    ),
]
Conditions = Annotated[
    str | None,
    typer.Option(
        "--collective",
        metavar="NAME|FILE",
        help="What the algorithm is to do, where its file does not say (coll=custom): a collective's name, or a .json "
        "file with pre- and postcondition.",
    ),
]
Root = Annotated[
    int | None, typer.Option("--root", "-r", help="Root of a rooted collective (MSCCL XML files do not have it).")
]
PlacementChoice = Annotated[
    str | None, typer.Option("--placement", metavar="in|out", help="Only this placement; by default both.")
]
FifoDepth = Annotated[
    int | None, typer.Option("--fifo-depth", min=1, help="Messages that a connection holds (8 as in NCCL).")
]
Unsafe = Annotated[bool, typer.Option("--unsafe", help="Go on without a proof.")]
Parameters = Annotated[
    list[str] | None, typer.Option("--param", metavar="KEY=NUMBER", help="A parameter of the algorithm; repeatable.")
]
Dtype = Annotated[str, typer.Option("--dtype", "-d", help="Element type, as torch names it.")]
Operation = Annotated[
    str, typer.Option("--op", "-o", help="Reduction: sum, prod, min, max, avg, premul_sum, band, bor, bxor.")
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that one call may take.")]
