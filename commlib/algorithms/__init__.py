"""The library of collective algorithms, written in the public DSL only.

    from commlib.algorithms import algorithms, build, find, trace

    build("allreduce", "ring", 8)                       # an Algorithm, compiled
    build("allreduce", "staged", 8)                     # a one-sided one, for ranks that share memory
    trace("allreduce", "ring", 8)                       # a Trace, ready for the compiler
    trace("allreduce", "hierarchical", 8, nodes=2)      # with a parameter
    find("ring_allreduce").summary                      # what it is
    [entry.name for entry in algorithms("alltoall")]    # what there is
    [entry.name for entry in direct("alltoall")]        # and for ranks that share memory

Two kinds: the classics, which send messages (``ALGORITHMS``), and direct programs, whose one-sided steps work on the
memory of other ranks (``DIRECT``). Each family has a file, and beside its functions a table of entries.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, TypeVar

from commlib.algorithms import allreduce, alltoall, direct, gathering, neighbours, rooted, trees
from commlib.algorithms.entry import Entry, Parameter
from commlib.algorithms.onesided import DirectEntry
from commlib.collectives import COLLECTIVES
from commlib.compiler import compile_trace
from commlib.errors import SpecError
from commlib.ir.algorithm import Algorithm
from commlib.ir.trace import Trace

__all__ = [
    "ALGORITHMS",
    "DIRECT",
    "DirectEntry",
    "Entry",
    "Parameter",
    "algorithms",
    "build",
    "direct_algorithms",
    "entry_of",
    "find",
    "lookup",
    "trace",
]

_Kind = TypeVar("_Kind", Entry, DirectEntry, Entry | DirectEntry)

ALGORITHMS: tuple[Entry, ...] = tuple(
    sorted(
        (
            *allreduce.ENTRIES,
            *gathering.ENTRIES,
            *alltoall.ENTRIES,
            *trees.ENTRIES,
            *rooted.ENTRIES,
            *neighbours.ENTRIES,
        ),
        key=lambda entry: COLLECTIVES.index(entry.collective),
    )
)
"""Every algorithm of the library that sends messages, by collective."""
DIRECT: tuple[DirectEntry, ...] = tuple(sorted(direct.ENTRIES, key=lambda e: COLLECTIVES.index(e.collective)))
"""Every one-sided program of the library, by collective."""


def algorithms(collective: str | None = None) -> tuple[Entry, ...]:
    """The algorithms of one collective, or of all, that send messages.

    Raises:
        SpecError: no such collective.
    """
    return _of(ALGORITHMS, collective)


def direct_algorithms(collective: str | None = None) -> tuple[DirectEntry, ...]:
    """The one-sided programs of one collective, or of all.

    Raises:
        SpecError: no such collective.
    """
    return _of(DIRECT, collective)


def find(name: str) -> Entry:
    """The algorithm of this full name, such as "ring_allreduce".

    Raises:
        SpecError: there is none; the message lists those there are, the closest first.
    """
    return _among({entry.full_name: entry for entry in ALGORITHMS}, name, "algorithm")


def lookup(collective: str, name: str) -> Entry:
    """The algorithm of this collective and name ("allreduce", "ring"); the full name serves too.

    Raises:
        SpecError: no such collective or algorithm; the message lists those there are, the closest first.
    """
    named = {entry.name: entry for entry in algorithms(collective)}
    return _among(named, name.removesuffix(f"_{collective}"), f"{collective} algorithm")


def entry_of(name: str, collective: str | None = None) -> Entry | DirectEntry:
    """The entry of either kind: by its full name, or by its own among those of a collective.

    Raises:
        SpecError: no such collective or algorithm; the message lists those there are, the closest first.
    """
    entries: list[Entry | DirectEntry] = [*algorithms(collective), *direct_algorithms(collective)]
    if collective is None:
        return _among({entry.full_name: entry for entry in entries}, name, "algorithm")
    short = name.removesuffix(f"_{collective}")
    return _among({entry.name: entry for entry in entries}, short, f"{collective} algorithm")


def build(collective: str, name: str, ranks: int, root: int | None = None, **parameters: int) -> Algorithm:
    """The Algorithm of an entry of either kind on so many ranks; ``root`` is by default 0 where there is one.

    Raises:
        SpecError: no such algorithm, or it cannot run so; the message says why.
    """
    entry = entry_of(name, collective)
    if isinstance(entry, Entry):
        values: dict[str, Any] = dict(parameters)
        return compile_trace(entry.trace(ranks, root=root, **values))
    if parameters:
        raise SpecError(f"{entry.full_name} has no parameter {min(parameters)!r}; there are: none")
    return entry.algorithm(ranks, root)


def trace(
    collective: str,
    algorithm: str,
    ranks: int,
    *,
    root: int | None = None,
    instances: int = 1,
    blocked: bool = False,
    protocol: str = "Simple",
    **parameters: int,
) -> Trace:
    """The trace of a library algorithm; ``parameters`` are the algorithm's own, such as ``nodes``.

    Raises:
        SpecError: no such algorithm, or it cannot run so; the message says why.
    """
    return lookup(collective, algorithm).trace(
        ranks, root=root, instances=instances, blocked=blocked, protocol=protocol, **parameters
    )


def _of(entries: tuple[_Kind, ...], collective: str | None) -> tuple[_Kind, ...]:
    if collective is not None and collective not in COLLECTIVES:
        raise SpecError(_unknown("collective", collective, COLLECTIVES), collective=collective)
    return tuple(entry for entry in entries if collective in (None, entry.collective))


def _among(named: dict[str, _Kind], name: str, what: str) -> _Kind:
    if name not in named:
        raise SpecError(_unknown(what, name, tuple(named)), algorithm=name)
    return named[name]


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(name, known, 1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return f"no {what} is called {name!r};{hint} there are {', '.join(known)}"
