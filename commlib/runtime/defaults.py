"""The rows that are tried where no user and no measurement said anything."""

from __future__ import annotations

from commlib.runtime.registry import Range, Registry, Row

K = 1 << 10
_HERE = Range(1, 1)
_APART = Range(2)
_SMALL = Range(0, 64 * K)


def _shared(collective: str, least: int = 0) -> Row:
    """Tensors in registered memory are worked on where they lie."""
    return Row(collective, "shared", hosts=_HERE, bytes=Range(least), reach="registered")


def _staged(collective: str) -> Row:
    return Row(collective, "staged", hosts=_HERE)


DEFAULTS = Registry(
    (
        # One host. One synchronisation less against (N + 3) S bytes instead of 7 S: with more ranks it pays for less.
        _shared("allreduce", 16 * K),
        Row("allreduce", "one_shot", Range(1, 4), _HERE, Range(0, 64 * K)),
        Row("allreduce", "one_shot", Range(5, 8), _HERE, Range(0, 32 * K)),
        Row("allreduce", "one_shot", Range(9), _HERE, Range(0, 16 * K)),
        _staged("allreduce"),
        _shared("reduce", 64 * K),
        Row("reduce", "one_shot", hosts=_HERE, bytes=Range(0, 1024 * K)),
        _staged("reduce"),
        *(
            row
            for name in ("allgather", "reducescatter", "alltoall", "alltoallv", "broadcast", "gather", "scatter")
            for row in (_shared(name, 64 * K), _staged(name))
        ),
        # Several hosts, and what one host could not run. A message between two processes costs more than its bytes.
        Row("allreduce", "hierarchical", Range(3), _APART, Range(64 * K)),
        Row("allgather", "hierarchical", Range(3), _APART, Range(64 * K)),
        Row("reducescatter", "hierarchical", Range(3), _APART, Range(64 * K)),
        *(
            Row(name, algorithm, bytes=sizes)
            for name in ("allreduce", "allgather", "reducescatter")
            for algorithm, sizes in (("allpairs", _SMALL), ("ring", Range()))
        ),
        Row("alltoall", "direct"),
        Row("alltoall", "pairwise"),
        Row("alltoallv", "direct"),
        Row("alltoallv", "pairwise"),
        Row("broadcast", "binomial"),
        Row("reduce", "binomial"),
        Row("gather", "direct"),
        Row("scatter", "direct"),
    ),
    "the defaults",
)
