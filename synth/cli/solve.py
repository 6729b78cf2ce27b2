"""``synth solve``: from a topology and a collective to a proved algorithm with its bound."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commlib.cli.options import JsonFlag
from commlib.cli.sources import FORMS
from commlib.errors import FormatError
from synth.cli.asking import (
    CostChoice,
    InternodeChoice,
    MatrixFile,
    Nodes,
    ProfileFile,
    Root,
    SizeText,
    SketchFile,
    TopologyOption,
    Wanted,
    Where,
    ask,
    size_range,
    topology_at,
)
from synth.cli.delivering import deliver, deliver_range
from synth.cli.progress import Bar

if TYPE_CHECKING:
    from synth.auto import Ask, SizeRange
    from synth.engine import Budget
    from synth.pipeline import Question
    from synth.result import Result

_Collective = Annotated[
    str, typer.Argument(metavar="COLLECTIVE", help="allgather, alltoall, broadcast, ... or a .json file.")
]
_Mode = Annotated[str, typer.Option("--mode", "-m", metavar="MODE", help="auto, greedy, taccl, exact or bandwidth.")]
_Chunks = Annotated[
    int | None, typer.Option("--chunks", "-c", min=1, help="Chunks that each shard is cut into (with a range: tried).")
]
_SECONDS = 60.0
_TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        min=0.1,
        help=f"Seconds of search; the best so far is kept. {_SECONDS:.0f} by default, none with --work-limit.",
    ),
]
_WorkLimit = Annotated[
    float | None,
    typer.Option(
        "--work-limit",
        min=0,
        help="The same result every time: a limit in CP-SAT's deterministic time. A unit takes several seconds.",
    ),
]
_Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of HiGHS; CP-SAT runs on one.")]
_Seed = Annotated[int, typer.Option("--seed", min=0, help="Of what is random in a search.")]
_Instances = Annotated[
    int, typer.Option("--instances", "-i", min=1, help="Parallel parts of each chunk, each with channels of its own.")
]
_NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither look for nor keep the result.")]
_Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to write: .xml (MSCCL), .json or .txt (both loss-free).")
]
_Save = Annotated[
    Path | None, typer.Option("--save", metavar="FILE", help="Keep the whole result as JSON, for synth show.")
]


@dataclass(frozen=True)
class _How:
    """How to search."""

    mode: str
    budget: Budget
    bar: Bar
    instances: int
    cached: bool


def solve_command(
    collective: _Collective,
    topology: TopologyOption,
    nodes: Nodes = 1,
    profile: ProfileFile = None,
    sketch: SketchFile = None,
    size: SizeText = None,
    mode: _Mode = "auto",
    cost: CostChoice = "exact",
    internode: InternodeChoice = "rail",
    chunks: _Chunks = None,
    root: Root = None,
    matrix: MatrixFile = None,
    time_limit: _TimeLimit = None,
    work_limit: _WorkLimit = None,
    threads: _Threads = 1,
    seed: _Seed = 0,
    instances: _Instances = 1,
    no_cache: _NoCache = False,
    output: _Output = None,
    save: _Save = None,
    as_json: JsonFlag = False,
) -> None:
    """Synthesize an algorithm; print its time, its lower bound and the gap, and write it once it is proved.

    With a range of sizes (--size 1K-1G) the best algorithm for each part of it, each in a file of its own. The same
    question is answered from the cache where an earlier search ended by proof.
    """
    from synth.engine import Budget
    from synth.portfolio import MODES

    if mode not in MODES:
        raise typer.BadParameter(f"--mode is {', '.join(MODES)}, not {mode!r}")
    _check_files(output, save)
    limits = size_range(size, matrix)
    found = topology_at(Where(topology, nodes, profile, cost, internode))
    seconds = _seconds(time_limit, work_limit)
    bar = Bar(seconds, as_json)
    how = _How(mode, Budget(seconds, work_limit, threads, seed, bar), bar, instances, not no_cache)
    wanted = Wanted(collective, chunks or 1, root, sketch, matrix)
    if limits is None or limits[0] == limits[1]:
        asked = ask(found, wanted, None if limits is None else limits[0])
        deliver(_search(asked, how), output, save, as_json)
    else:
        tried = None if chunks is None else (chunks,)
        ranges = _search_range(lambda at, each: ask(found, wanted._replace(chunks=each), at), limits, tried, how)
        deliver_range(ranges, output, save, as_json)


def _seconds(time_limit: float | None, work_limit: float | None) -> float:
    """The clock of a search. A work limit promises the same result every time: no clock that nobody set may end it."""
    if time_limit is not None:
        return time_limit
    return _SECONDS if work_limit is None else math.inf


def _check_files(output: Path | None, save: Path | None) -> None:
    """Refuse files that could not be written in the end, before a search."""
    for path, forms in ((output, FORMS), (save, (".json",))):
        if path is None:
            continue
        if path.suffix.lower() not in forms:
            what = "what is written" if path is output else "what --save keeps"
            raise FormatError(f"{path}: {what} ends in {', '.join(forms)}", file=str(path))
        if path.is_dir():
            raise FormatError(f"{path}: is a folder, not a file", file=str(path))
        if not path.parent.is_dir():
            raise FormatError(f"{path}: there is no folder {path.parent}", file=str(path))
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise FormatError(f"{path}: cannot be written: no right to write in {path.parent}", file=str(path))
    if output is not None and save is not None and output.resolve() == save.resolve():
        raise FormatError(f"{output}: --output and --save are different files", file=str(output))


def _search(asked: Question, how: _How) -> Result:
    from synth.cache import Cache, solve_cached
    from synth.pipeline import solve

    with how.bar:
        if how.cached:
            return solve_cached(asked, how.mode, how.budget, Cache(), instances=how.instances)
        return solve(asked, how.mode, how.budget, instances=how.instances)


def _search_range(
    ask_at: Ask, limits: tuple[int, int], chunks: Sequence[int] | None, how: _How
) -> tuple[SizeRange, ...]:
    from synth.auto import solve_range
    from synth.cache import Cache, solve_cached
    from synth.pipeline import solve

    remembering = partial(solve_cached, cache=Cache(), limit=how.budget.seconds)
    with how.bar:
        found = solve_range(ask_at, *limits, how.mode, how.budget, chunks, search=remembering if how.cached else solve)
    return tuple(replace(each, result=replace(each.result, instances=how.instances)) for each in found)
