"""The rows that are tried where no user and no measurement said anything.

On one host a second synchronisation is set against bytes: one_shot has one and (N + 3) S bytes, staged two and 7 S.
Measured by ``commlib tune`` on 2 cores (Zen 5), float32, us per call, one_shot / staged: 2 ranks 128K 17.9 / 16.9, 256K
35 / 29; 4 ranks 32K 22 / 31, 64K 36 / 34, 128K 66 / 52; 8 ranks 32K 55 / 66, 64K 99 / 86, 128K 181 / 115. A reduce in
one shot is ahead up to 1M on 2 and 8 ranks. The other collectives have one staged form, which nothing that sends
messages clearly beats. process_vm_readv (``shared``, by readv) was never ahead of the staged forms.
"""

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
        _shared("allreduce", 32 * K),
        Row("allreduce", "one_shot", Range(1, 2), _HERE, Range(0, 128 * K)),
        Row("allreduce", "one_shot", Range(3, 4), _HERE, Range(0, 64 * K)),
        Row("allreduce", "one_shot", Range(5, 8), _HERE, Range(0, 48 * K)),
        Row("allreduce", "one_shot", Range(9), _HERE, Range(0, 32 * K)),
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
