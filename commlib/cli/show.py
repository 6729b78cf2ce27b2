"""``commlib show``: a saved algorithm, readable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commlib.cli.console import out, out_json
from commlib.cli.options import AlgorithmFile, Conditions, JsonFlag, Root
from commlib.cli.picture import rank_lines, traffic_lines
from commlib.cli.sources import load_algorithm
from commlib.cli.summary import print_summary, summary_json

if TYPE_CHECKING:
    from commlib.ir.algorithm import Algorithm, Span, Threadblock

_Rank = Annotated[int | None, typer.Option("--rank", min=0, help="Only the steps of this rank.")]
_Steps = Annotated[bool, typer.Option("--steps/--no-steps", help="With the steps, or the summary only.")]


def show_command(
    file: AlgorithmFile,
    rank: _Rank = None,
    steps: _Steps = True,
    collective: Conditions = None,
    root: Root = None,
    as_json: JsonFlag = False,
) -> None:
    """Print an algorithm: summary, traffic and steps.

    A step reads "3 rrc i[2] -> o[2] after 1.0": the step's number, its operation, its spans of the input, output or
    scratch buffer, and the threadblock.step of the same rank that it waits for. Slots of other ranks, in one-sided
    steps, have the rank before them: "put i[0] -> 1.s[3]". The file is only read.
    """
    algorithm = load_algorithm(file, collective, root)
    if rank is not None and rank >= algorithm.ranks:
        raise typer.BadParameter(f"--rank {rank}: {file} has ranks 0 to {algorithm.ranks - 1}")
    shown = [] if not steps else range(algorithm.ranks) if rank is None else [rank]
    if as_json:
        ranks = [_rank_json(algorithm, shown_rank) for shown_rank in shown]
        out_json({"file": str(file), **summary_json(algorithm), **_xml_json(file), "programs": ranks})
        return
    print_summary(algorithm)
    for line in _xml_lines(file):
        out(line)
    for line in traffic_lines(algorithm):
        out(line)
    for shown_rank in shown:
        out("\n".join(rank_lines(algorithm, shown_rank)))


def _xml_json(file: Path) -> dict[str, object]:
    """What an XML file says beside the algorithm; nothing for the other forms."""
    from dataclasses import asdict

    from commlib.formats import xml_info

    return {"xml": asdict(xml_info(file))} if file.suffix.lower() == ".xml" else {}


def _xml_lines(file: Path) -> list[str]:
    from commlib.formats import xml_info

    if file.suffix.lower() != ".xml":
        return []
    info = xml_info(file)
    limit = f"to {info.max_bytes}" if info.max_bytes else "on"
    lines = [f"  XML            dialect {info.dialect}, coll={info.coll}, from {info.min_bytes} bytes {limit}"]
    return lines + [f"  note           {remark}" for remark in info.notes]


def _rank_json(algorithm: Algorithm, rank: int) -> dict[str, object]:
    blocks = [_block_json(algorithm, block) for block in algorithm.threadblocks(rank)]
    return {"rank": rank, "scratch_chunks": algorithm.scratch_chunks[rank], "threadblocks": blocks}


def _block_json(algorithm: Algorithm, block: Threadblock) -> dict[str, object]:
    plain = {"index": block.index, "channel": block.channel, "send": block.send, "recv": block.recv}
    return {**plain, "steps": [_step_json(algorithm, number) for number in block.steps]}


def _step_json(algorithm: Algorithm, number: int) -> dict[str, object]:
    step, origin = algorithm.step(number), algorithm.origin(number)
    shown: dict[str, object] = {
        "step": step.index,
        "op": step.op.short,
        "source": None if step.source is None else _span_json(step.source),
        "destination": None if step.destination is None else _span_json(step.destination),
        "count": step.count,
        "depends": [list(place) for place in step.depends],
    }
    if step.op.one_sided:
        ends = {"sources": step.sources, "destinations": step.destinations}
        shown |= {word: [{"rank": s.rank, **_span_json(s.span)} for s in spans] for word, spans in ends.items()}
        shown["peer"] = step.peer
    return shown if origin is None else {**shown, "file": origin[0], "line": origin[1]}


def _span_json(span: Span) -> dict[str, object]:
    return {"buffer": span.buffer.name.lower(), "index": span.index}
