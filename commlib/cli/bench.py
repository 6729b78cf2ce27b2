"""``commlib bench``: the speed of an algorithm, in the table that nccl-tests prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from commlib.cli.console import counted, out_json
from commlib.cli.feasible import check_launch, distinct_sizes
from commlib.cli.measuring import Launch, measure_all, runnable, title
from commlib.cli.options import (
    Dtype,
    JsonFlag,
    Operation,
    Parameters,
    PlacementChoice,
    Root,
    Timeout,
    Unsafe,
    parse_parameters,
)
from commlib.cli.sizes import format_size, parse_size, sweep
from commlib.cli.sources import parse_placement, resolve
from commlib.errors import SpecError

if TYPE_CHECKING:
    from commlib.collectives import Placement
    from commlib.ir.algorithm import Algorithm

SMALL = 64 << 10
"""Up to this size, without --algorithm, the library's choice for small messages is measured, beyond it for large."""
CHOICE = {
    ("alltoall", "small"): "pairwise_alltoall",
    ("alltoall", "large"): "pairwise_alltoall",
    ("broadcast", "large"): "binomial_broadcast",
    ("reduce", "large"): "binomial_reduce",
}
"""Where the first algorithm that the library calls good for such messages is not the one to take on processes of one
machine. Medians in ms out of place, float32, 4 ranks on 2 cores: broadcast of 512K: binomial 1.9, chain 6.9 (with 2
chunks 2.8, with 4 4.0), scatter_allgather 6.3; of 2M: binomial 4.3 to 6.7, chain 6.9 to 7.6; of 16M: all 24 to 40,
binomial 24 to 29. reduce of 512K: binomial 2.4 to 2.8, chain 5.3 to 8.3; of 1M: binomial 5.1, chain 9.9, ring 8.3; of
16M: all 21 to 27. A message costs a process switch here, and a pipeline has many. alltoall: pairwise takes 0.7 to 1.3
times what direct takes from 4K to 16M, and is proved in place too. For allgather, reducescatter and allreduce none is
clearly faster (1.5 times) than the library's first from 1M on.
"""
PEERS = ("gloo",)

_Collective = Annotated[str, typer.Argument(metavar="COLLECTIVE", help="Such as allreduce or alltoall.")]
_Ranks = Annotated[int, typer.Option("--ranks", "-n", min=1, help="Number of processes.")]
_Begin = Annotated[str, typer.Option("--min", "-b", metavar="SIZE", help="Smallest size in bytes (1K = 1024).")]
_End = Annotated[str, typer.Option("--max", "-e", metavar="SIZE", help="Largest size.")]
_Factor = Annotated[float, typer.Option("--factor", "-f", help="Each size is so many times the one before.")]
_Step = Annotated[str | None, typer.Option("--step", "-i", metavar="SIZE", help="Or so much larger.")]
_Algorithm = Annotated[
    str | None,
    typer.Option(
        "--algorithm", "-a", metavar="NAME|FILE", help="Of the library (ring or ring_allreduce) or a compiled file."
    ),
]
_Versus = Annotated[
    list[str] | None, typer.Option("--vs", metavar="PEER", help="Measure gloo's own collective in turn: gloo.")
]
_Iterations = Annotated[int, typer.Option("--iterations", min=1, help="Timed calls per size.")]
_Warmup = Annotated[int, typer.Option("--warmup", "-w", min=0, help="Calls before them.")]


def bench_command(
    collective: _Collective,
    ranks: _Ranks = 4,
    begin: _Begin = "1K",
    end: _End = "16M",
    factor: _Factor = 2.0,
    step: _Step = None,
    algorithm: _Algorithm = None,
    dtype: Dtype = "float32",
    op: Operation = "sum",
    root: Root = None,
    placement: PlacementChoice = None,
    param: Parameters = None,
    iterations: _Iterations = 20,
    warmup: _Warmup = 5,
    versus: _Versus = None,
    timeout: Timeout = 30.0,
    unsafe: Unsafe = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure a collective in nccl-tests' table.

    The processes are on this machine, over shared memory. Columns: size, count, type, redop, root, and for out of place
    and in place the time per call, algbw = size / time, busbw = algbw times the collective's factor, and the number of
    wrong elements in the first and in the last result, which are checked whole. A placement that is not proved is left
    empty. Without --algorithm the choice is the library's, for small and for large messages. Sizes that are the same
    in whole elements are measured once. Exit status 1 if any element is wrong.
    """
    sizes = sweep(parse_size(begin), parse_size(end), factor, None if step is None else parse_size(step))
    peers = _peers(versus or [])
    asked = parse_placement(placement)
    choice = _choose(collective, algorithm, ranks, root, parse_parameters(param or []), sizes)
    launch = Launch(dtype, op, iterations, warmup, timeout, peers)
    check_launch(choice[0][0].collective, launch, sizes)
    plan = [(each, runnable(each, asked, unsafe), its) for each, its in distinct_sizes(choice, dtype)]
    title(_title(collective, ranks, sizes, factor, step, launch, plan), as_json)
    table = measure_all(plan, launch, quiet=as_json)
    if as_json:
        rows = [row.as_json() for row in table.rows]
        out_json({"ok": table.wrong == 0, "rows": rows, "avg_busbw": table.mean_busbw})
    if table.wrong:
        raise typer.Exit(1)


def _peers(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in PEERS:
            raise typer.BadParameter(f"--vs {name}: there is no such peer; there is {', '.join(PEERS)}")
    return tuple(dict.fromkeys(names))


def _choose(
    collective: str,
    algorithm: str | None,
    ranks: int,
    root: int | None,
    parameters: dict[str, int],
    sizes: Sequence[int],
) -> list[tuple[Algorithm, list[int]]]:
    """The algorithm or, when none is named, the library's for small and its for large messages, each with its sizes."""
    if algorithm is not None:
        return [(_named(collective, algorithm, ranks, root, parameters), list(sizes))]
    if parameters:
        raise SpecError("--param is for a named --algorithm")
    parts: dict[str, list[int]] = {}
    for size in sizes:
        parts.setdefault(_best(collective, ranks, "small" if size <= SMALL else "large"), []).append(size)
    return [(resolve(name, ranks, root), part) for name, part in parts.items()]


def _named(collective: str, name: str, ranks: int, root: int | None, parameters: dict[str, int]) -> Algorithm:
    from commlib.collectives import ROOTED

    root = 0 if root is None and collective in ROOTED else root
    found = resolve(name, ranks, root, collective, parameters)
    if found.collective.name != collective:
        raise SpecError(f"{name} is for {found.collective.name}, not {collective}", file=name)
    return found


def _best(collective: str, ranks: int, good_for: str) -> str:
    """The name of the algorithm in CHOICE, or of the library's first for these ranks that is good for such messages."""
    from commlib.algorithms import algorithms

    fitting = {entry.full_name: entry.good_for for entry in algorithms(collective) if entry.supports(ranks)}
    if not fitting:
        raise SpecError(
            f"the library has no {collective} for {counted(ranks, 'rank')}", collective=collective, ranks=ranks
        )
    chosen = CHOICE.get((collective, good_for))
    return min(fitting, key=lambda name: (name != chosen, good_for not in fitting[name]))


def _title(
    collective: str,
    ranks: int,
    sizes: Sequence[int],
    factor: float,
    step: str | None,
    launch: Launch,
    plan: Sequence[tuple[Algorithm, Sequence[Placement], Sequence[int]]],
) -> list[str]:
    grows = f"{factor:g}(factor)" if step is None else f"{parse_size(step)}(bytes)"
    lines = [
        f"Collective test starting: {collective}",
        f"ranks {ranks} minBytes {sizes[0]} maxBytes {sizes[-1]} step: {grows} "
        f"warmup iters: {launch.warmup} iters: {launch.iterations} validation: 1",
    ]
    for chosen, _, its in plan:
        lines.append(f"{format_size(its[0])} to {format_size(its[-1])}: {chosen.name} on processes")
    return lines
