"""``commlib tune``: measure which algorithms are the fastest here, and write the table that the backend loads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commlib.cli.console import Progress, counted, note, out, out_json, table
from commlib.cli.options import JsonFlag
from commlib.cli.sizes import format_size, parse_size, sweep

if TYPE_CHECKING:
    from commlib.algorithms import DirectEntry, Entry
    from commlib.collectives import Placement
    from commlib.runtime.contest import Contender
    from commlib.runtime.ranking import Measured
    from commlib.runtime.registry import Registry

COLLECTIVES = (
    *("allreduce", "allgather", "reducescatter", "alltoall", "alltoallv"),
    *("broadcast", "reduce", "gather", "scatter"),
)
IN_PLACE = ("allreduce", "broadcast")
"""Collectives that torch.distributed calls in place; the others are measured out of place."""
MAX_SIZE = 1 << 30
CROWDED, MOST = 4, 32
"""Ranks for each core beyond which a warning is given, and beyond which nothing is measured."""

_Ranks = Annotated[
    list[int] | None,
    typer.Option("--ranks", "-n", min=2, help="Number of processes; repeatable. Default: the cores, at most 8."),
]
_Collective = Annotated[
    list[str] | None, typer.Option("--collective", "-c", metavar="NAME", help="Only this one; repeatable.")
]
_Begin = Annotated[str, typer.Option("--min", "-b", metavar="SIZE", help="Smallest size in bytes (1K = 1024).")]
_End = Annotated[str, typer.Option("--max", "-e", metavar="SIZE", help="Largest size.")]
_Factor = Annotated[float, typer.Option("--factor", "-f", help="Each size is so many times the one before.")]
_Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Turns of each algorithm per size.")]
_Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Default: COMMLIB_TUNING, or commlib's folder in the cache."),
]
_Timeout = Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds that one call may take.")]


def tune_command(
    ranks: _Ranks = None,
    collective: _Collective = None,
    begin: _Begin = "1K",
    end: _End = "16M",
    factor: _Factor = 4.0,
    rounds: _Rounds = 7,
    output: _Output = None,
    timeout: _Timeout = 60.0,
    as_json: JsonFlag = False,
) -> None:
    """Measure the algorithms on this machine, and keep the fastest.

    Every algorithm of the library that can run takes turns over shared memory, for each collective and size (bytes of
    a rank's larger buffer, float32). The table says from which size on which is the fastest, for ordinary tensors and
    for registered ones; the backend loads it where machine and ranks are the same. Rows of an earlier table for other
    numbers of ranks or collectives are kept.
    """
    from commlib.runtime.registry import write_registry
    from commlib.runtime.tuning import tuning_file

    sizes = sweep(_within(begin), _within(end), factor)
    chosen = _collectives(collective or [])
    target = _writable(output or tuning_file())
    counts = _counts(ranks or [min(8, max(2, os.cpu_count() or 1))])
    measured = _measure_all(counts, chosen, sizes, rounds, timeout, as_json)
    found = _registry(measured, target)
    write_registry(found, target)
    if as_json:
        out_json({"file": str(target), "machine": str(found.machine), "measured": [_as_json(m) for m in measured]})
    else:
        _print(measured)
        out(f"written to {target}")


def _within(text: str) -> int:
    size = parse_size(text)
    if not 1 <= size <= MAX_SIZE:
        raise typer.BadParameter(f"{text} is not between 1 and {format_size(MAX_SIZE)}")
    return size


def _counts(ranks: Sequence[int]) -> list[int]:
    """Each number of ranks once, if the cores can bear it."""
    cores = os.cpu_count() or 1
    for count in ranks:
        if count > MOST * cores:
            raise typer.BadParameter(f"{count} ranks on {counted(cores, 'core')}: at most {MOST * cores} are measured")
        if count > CROWDED * cores:
            note(
                f"commlib: {count} ranks on {counted(cores, 'core')} take turns: this takes long, and the times tell "
                "more of the system's scheduler than of the algorithms"
            )
    return list(dict.fromkeys(ranks))


def _writable(target: Path) -> Path:
    """Makes the folder; to know of it before minutes of measuring."""
    from commlib.errors import FormatError

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"{target}: cannot be written: {error.strerror}", file=str(target)) from error
    return target


def _collectives(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        if name not in COLLECTIVES:
            raise typer.BadParameter(f"no collective to tune is called {name!r}; there are {', '.join(COLLECTIVES)}")
    return [name for name in COLLECTIVES if name in names] or COLLECTIVES


def _measure_all(
    counts: Sequence[int], chosen: Sequence[str], sizes: Sequence[int], rounds: int, timeout: float, quiet: bool
) -> list[Measured]:
    """One launch of processes for each number of ranks and collective; the bar counts cells: these and a size."""
    from commlib.runtime.contest import Contest, run_contest
    from commlib.runtime.ranking import Measured

    bar = Progress(len(counts) * len(chosen) * len(sizes), "tuning", quiet)
    found = []
    try:
        for ranks in counts:
            for name in chosen:
                bar.show(what=f"tuning {name} on {ranks} ranks")
                placement = _placement(name)
                field = tuple(_contenders(name, ranks, placement))
                seconds = run_contest(Contest(field, tuple(sizes), placement, rounds, timeout), lambda _: bar.show(1))
                names = tuple((_short(contender), contender.reach) for contender in field)
                found.append(Measured(name, ranks, names, tuple(sizes), tuple(map(tuple, seconds))))
                bar.show(len(sizes))
    finally:
        bar.hide()
    return found


def _placement(collective: str) -> Placement:
    from commlib.collectives import Placement

    return Placement.IN if collective in IN_PLACE else Placement.OUT


def _contenders(collective: str, ranks: int, placement: Placement) -> Iterator[Contender]:
    """All that the library has for so many ranks on one host; programs on other ranks' tensors once for each reach."""
    from commlib.algorithms import algorithms, build, direct_algorithms
    from commlib.runtime.contest import Contender

    entries: list[Entry | DirectEntry] = [*direct_algorithms(collective), *algorithms(collective)]
    for entry in entries:
        by_nodes = any(parameter.name == "nodes" for parameter in entry.parameters)
        if by_nodes or placement not in entry.placements or not entry.supports(ranks):
            continue
        algorithm = build(collective, entry.name, ranks)
        reads, writes = algorithm.touches_peers_tensors
        if reads or writes:
            yield Contender(algorithm, "registered")
            if not writes:
                yield Contender(algorithm, "readv")
        else:
            yield Contender(algorithm)


def _short(contender: Contender) -> str:
    return contender.algorithm.name.removesuffix(f"_{contender.algorithm.collective.name}")


def _registry(measured: Sequence[Measured], target: Path) -> Registry:
    """The new table, with what is kept of an earlier one."""
    from commlib.errors import CommlibError
    from commlib.runtime.ranking import rows_of
    from commlib.runtime.registry import Registry, merged, read_registry, this_machine
    from commlib.runtime.shm.load import native_is_built

    rows = tuple(row for each in measured for row in rows_of(each))
    found = Registry(rows, str(target), this_machine(native_is_built()))
    if not target.exists():
        return found
    try:
        return merged(found, read_registry(target))
    except CommlibError as error:
        note(f"commlib: the earlier table is replaced: {error.message}")
        return found


def _print(measured: Sequence[Measured]) -> None:
    """The best three of each cell."""
    rows = []
    for each in measured:
        plain, registered = each.best(False), each.best(True)
        for place, size in enumerate(each.sizes):
            order = _in_order(each, place, False)
            taken = [_cell(each, place, plain[place])] if plain else [""]
            behind = [_cell(each, place, index) for index in order if not plain or index != plain[place]][:2]
            special = registered and each.names[registered[place]][1] == "registered"
            shared = _cell(each, place, registered[place]) if special else ""
            rows.append((each.collective, each.ranks, format_size(size), *taken, ", ".join(behind), shared))
    headers = ("collective", "ranks", "size", "taken, us", "next, us", "registered, us")
    table(headers, rows, frozenset({1, 2}))


def _in_order(each: Measured, place: int, registered: bool) -> list[int]:
    """The contenders that ran, the fastest first."""
    times = {
        index: time
        for index, time in enumerate(each.seconds[place])
        if time is not None and (registered or each.names[index][1] != "registered")
    }
    return sorted(times, key=lambda index: times[index])


def _cell(each: Measured, place: int, index: int) -> str:
    name, reach = each.names[index]
    how = " (readv)" if reach == "readv" else ""
    return f"{name}{how} {1e6 * (each.seconds[place][index] or 0):.1f}"


def _as_json(each: Measured) -> dict[str, object]:
    times = [
        {"bytes": size, "algorithm": name, "reach": reach, "seconds": seconds}
        for size, row in zip(each.sizes, each.seconds, strict=True)
        for (name, reach), seconds in zip(each.names, row, strict=True)
    ]
    return {"collective": each.collective, "ranks": each.ranks, "times": times}
