"""What becomes of a result: it is proved, written, and told to a person or a program."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commlib.cli.console import counted, out, out_json, table, verdict
from commlib.cli.sizes import format_size
from synth.cli.amounts import amount, amount_json, pairs_moved
from synth.cli.progress import duration

if TYPE_CHECKING:
    from commlib.ir.algorithm import Algorithm
    from synth.auto import SizeRange
    from synth.result import Result


def deliver(result: Result, output: Path | None, save: Path | None, as_json: bool) -> None:
    """Compile and prove a result, write it where it is wanted, and print it.

    Raises:
        VerificationError: the verifier found something wrong; nothing is written.
        FormatError: a file cannot be written.
    """
    _write(result, output, save)
    if as_json:
        out_json(_json(result, output))
        return
    for line in lines(result):
        out(line)
    out("  nothing written: no --output" if output is None else f"  written     {output}")


def deliver_range(ranges: Sequence[SizeRange], output: Path | None, save: Path | None, as_json: bool) -> None:
    """As ``deliver``, for each part of a range of sizes; files get the sizes of their part in their names.

    All are proved before the first is written; together they cover the whole range, without a gap.
    """
    for part in ranges:
        _proved(part.result)
    documents, rows = [], []
    for part in ranges:
        low, high = math.floor(part.low), math.floor(part.high)
        sizes = f"{format_size(low)}-{format_size(high)}"
        target, kept = _named(output, sizes), _named(save, sizes)
        _write(part.result, target, kept, (low, high))
        documents.append({"low": low, "high": high, "times": list(part.times), **_json(part.result, target)})
        result, ends = part.result, map(duration, part.times)
        rows.append((sizes, *ends, result.engine, result.collective.chunks, _gap(result), target or "(not written)"))
    if as_json:
        out_json({"ranges": documents})
        return
    collective, topology = ranges[0].result.collective, ranges[0].result.topology
    out(f"{collective.name} on {topology.name}: {counted(collective.ranks, 'rank')}, each algorithm proved")
    headers = ("bytes", "from", "to", "engine", "chunks", "gap where synthesized", "file")
    table(headers, rows, frozenset({1, 2, 4}))


def _named(path: Path | None, sizes: str) -> Path | None:
    return None if path is None else path.with_name(f"{path.stem}_{sizes}{path.suffix}")


def _gap(result: Result) -> str:
    return "none: proven optimal" if result.proven else f"{result.gap:.2%}"


def _proved(result: Result) -> Algorithm:
    """Its algorithm, which is proved when it is first asked for, or an error."""
    return result.algorithm


def _write(result: Result, output: Path | None, save: Path | None, sizes: tuple[int, int] | None = None) -> None:
    from commlib.formats import save as save_algorithm
    from synth.stored import save_result

    algorithm = _proved(result)  # even if nothing is to be written
    if output is not None and sizes is not None and output.suffix.lower() == ".xml":
        save_algorithm(algorithm, output, min_bytes=sizes[0], max_bytes=sizes[1])
    elif output is not None:
        save_algorithm(algorithm, output)
    if save is not None:
        save_result(result, save)


def _json(result: Result, output: Path | None) -> dict[str, object]:
    moved = amount_json(result.chunk_bytes, pairs_moved(result.collective, result.moves))
    return {**result.as_json(), **moved, "xml": None if output is None else str(output)}


def lines(result: Result) -> Iterator[str]:
    """A result for a person."""
    collective, unit = result.collective, result.topology.unit
    moved = amount(collective, result.chunk_bytes, pairs_moved(collective, result.moves))
    yield f"{collective.name} on {result.topology.name}: {counted(collective.ranks, 'rank')}, {moved}"
    yield f"  engine      {result.engine}, ended by {result.ended.value}"
    yield f"  time        {duration(result.time)}  ({result.time_profile:.6g} {unit.name} in the profile's unit)"
    yield f"  bound       {duration(result.bound)}  ({result.bound_kind})"
    if result.certificate is not None:
        yield from (f"              {line}" for line in result.certificate.certificate.text().splitlines())
    if result.topology_bound != result.bound:
        kind = f"({result.topology_bound_kind}; without the sketch)"
        yield f"  at best     {duration(result.topology_bound)}  {kind}"
    yield f"  gap         {verdict(result.proven, _gap(result))}"
    algorithm = result.algorithm
    yield f"  schedule    {counted(len(result.moves), 'move')}, at most {result.moves.steps} in sequence for one chunk"
    yield f"  algorithm   {counted(algorithm.step_count, 'step')}, proved for every placement that it declares"
    stages = ", ".join(f"{stage.name} {stage.seconds:.2f}" for stage in result.stages if stage.seconds >= 0.005)
    yield f"  search      {result.seconds:.2f} s{f' ({stages})' if stages else ''}"
    for note in result.notes:
        yield f"  note        {note}"
