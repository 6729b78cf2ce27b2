"""``commlib run``: a saved or library algorithm on real processes, checked exactly."""

from __future__ import annotations

from typing import Annotated

import typer

from commlib.cli.console import counted, out_json
from commlib.cli.feasible import check_launch
from commlib.cli.measuring import Launch, measure_all, runnable, title
from commlib.cli.options import (
    Conditions,
    Dtype,
    FileOrName,
    JsonFlag,
    Operation,
    Parameters,
    PlacementChoice,
    Root,
    Timeout,
    Unsafe,
    parse_parameters,
)
from commlib.cli.sizes import parse_sizes
from commlib.cli.sources import parse_placement, resolve

_Ranks = Annotated[
    int | None, typer.Option("--ranks", "-n", min=1, help="Number of processes; by default what the file is for.")
]
_Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", "-s", metavar="SIZE", help="Bytes, such as 1M or 1K,64K (1K = 1024); repeatable."),
]
_Iterations = Annotated[int, typer.Option("--iterations", min=1, help="Calls per size.")]


def run_command(
    name: FileOrName,
    ranks: _Ranks = None,
    size: _Sizes = None,
    dtype: Dtype = "float32",
    op: Operation = "sum",
    placement: PlacementChoice = None,
    collective: Conditions = None,
    root: Root = None,
    param: Parameters = None,
    iterations: _Iterations = 5,
    timeout: Timeout = 30.0,
    unsafe: Unsafe = False,
    as_json: JsonFlag = False,
) -> None:
    """Run an algorithm on processes, and check it.

    The processes are on this machine, over shared memory. Of each row of the table, every element of the first and of
    the last result is checked. Runs the placements that are proved, or with --placement that one. What is not proved is
    refused; with --unsafe it runs, and the table says how many elements came out wrong. Exit status 1 if any did.
    """
    sizes = parse_sizes(size or ["1M"])
    asked = parse_placement(placement)
    algorithm = resolve(name, ranks, root, collective, parse_parameters(param or []))
    launch = Launch(dtype, op, iterations, min(1, iterations - 1), timeout)
    check_launch(algorithm.collective, launch, sizes)
    placements = runnable(algorithm, asked, unsafe)
    processes = counted(algorithm.ranks, "process", "processes")
    title([f"commlib run {algorithm.name}: {algorithm.collective}, {processes}"], as_json)
    table = measure_all([(algorithm, placements, sizes)], launch, quiet=as_json)
    if as_json:
        out_json({"ok": table.wrong == 0, "rows": [row.as_json() for row in table.rows]})
    if table.wrong:
        raise typer.Exit(1)
