"""The classics: a library of collective algorithms, written in the public DSL only.

    from commlib.algorithms import algorithms, find, trace

    trace("allreduce", "ring", 8)                       # a Trace, ready for the compiler
    trace("allreduce", "hierarchical", 8, nodes=2)      # with a parameter
    find("ring_allreduce").summary                      # what it is
    [entry.name for entry in algorithms("alltoall")]    # what there is

Each family of programs has a file, and beside its functions a table of entries; ``ALGORITHMS`` is all of them.
"""

from __future__ import annotations

from difflib import get_close_matches

from commlib.algorithms import allreduce, alltoall, gathering, neighbours, rooted, trees
from commlib.algorithms.entry import Entry, Parameter
from commlib.collectives import COLLECTIVES
from commlib.errors import SpecError
from commlib.ir.trace import Trace

__all__ = ["ALGORITHMS", "Entry", "Parameter", "algorithms", "find", "lookup", "trace"]

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
"""Every algorithm of the library, by collective."""


def algorithms(collective: str | None = None) -> tuple[Entry, ...]:
    """The algorithms of one collective, or of all.

    Raises:
        SpecError: no such collective.
    """
    if collective is not None and collective not in COLLECTIVES:
        raise SpecError(_unknown("collective", collective, COLLECTIVES), collective=collective)
    return tuple(entry for entry in ALGORITHMS if collective in (None, entry.collective))


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


def _among(named: dict[str, Entry], name: str, what: str) -> Entry:
    if name not in named:
        raise SpecError(_unknown(what, name, tuple(named)), algorithm=name)
    return named[name]


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(name, known, 1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return f"no {what} is called {name!r};{hint} there are {', '.join(known)}"
