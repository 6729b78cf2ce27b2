"""``commlib verify``: proofs or counterexamples for a saved algorithm."""

from __future__ import annotations

import typer

from commlib.cli.console import out, out_json, verdict
from commlib.cli.options import AlgorithmFile, Conditions, FifoDepth, JsonFlag, PlacementChoice, Root
from commlib.cli.sources import load_algorithm, parse_placement


def verify_command(
    file: AlgorithmFile,
    placement: PlacementChoice = None,
    collective: Conditions = None,
    root: Root = None,
    fifo_depth: FifoDepth = None,
    as_json: JsonFlag = False,
) -> None:
    """Prove an algorithm, or show why it is wrong.

    In place and out of place are judged apart; the exit status is 0 when at least one (with --placement, that one)
    is proved. A file with coll=custom has no postcondition of its own: without --collective everything else is
    proved. The file is only read, never executed.
    """
    from commlib.verify import FIFO_DEPTH, verify

    placements = parse_placement(placement)
    algorithm = load_algorithm(file, collective, root)
    report = verify(algorithm, placements, fifo_depth or FIFO_DEPTH)
    if as_json:
        out_json({"file": str(file), **report.as_json()})
    else:
        first, *rest = report.text().split("\n")
        out("\n".join([verdict(report.ok, first), *rest]))
    if not report.ok:
        raise typer.Exit(1)
