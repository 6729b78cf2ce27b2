"""What is checked before processes are started or anything is printed: element type, reduction, sizes, memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commlib.cli.console import counted
from commlib.cli.measuring import Launch, torch_type
from commlib.cli.sizes import format_size
from commlib.errors import ExecutionError, SpecError

if TYPE_CHECKING:
    from commlib.collectives import Collective
    from commlib.ir.algorithm import Algorithm

MEMORY = Path("/proc/meminfo")
_EXPECTED_BYTES = 8
"""Bytes of an element in the expectations of a run, which are int64 (those of bool have 1, complex ones 16)."""


def check_launch(collective: Collective, launch: Launch, sizes: Iterable[int]) -> None:
    """Refuse what cannot be run, before anything of it is.

    Raises:
        SpecError: no such element type or reduction, or the reduction is not defined on the type.
        ExecutionError: the largest size takes more memory than is available (where the system says how much is).
    """
    from commlib.reductions import reduction
    from commlib.runtime.tensors import DTYPES, kernels_for

    name, rule = torch_type(launch.dtype), reduction(launch.op)
    if name not in DTYPES:
        raise SpecError(f"no element type is called {name!r}; there are {', '.join(DTYPES)}", dtype=name)
    kernels_for(DTYPES[name], rule if collective.reduces else None)
    size, available = max(sizes), available_memory()
    needed = memory_needed(collective, size, DTYPES[name].itemsize)
    if available is not None and needed > available:
        raise ExecutionError(
            f"size {format_size(size)} on {counted(collective.ranks, 'rank')} takes at least "
            f"{needed / 2**30:.1f} GiB of memory, of which {available / 2**30:.1f} GiB are available; "
            "give a smaller size",
            size=size,
            needed=needed,
            available=available,
        )


def memory_needed(collective: Collective, size: int, itemsize: int) -> int:
    """A lower bound of the bytes that all ranks together hold at a time for a message of ``size`` bytes.

    Each rank has its input twice (what it had is compared in the end) and its output; a rank whose result is checked
    has also all ranks' inputs and its own result as they are to be. O(ranks) and the chunks of one rank each.
    """
    ends = [(collective.input_chunks(rank), collective.output_chunks(rank)) for rank in range(collective.ranks)]
    most = max(1, *(max(end) for end in ends))
    inputs = sum(given for given, _ in ends)
    held = sum((2 * given + result) * itemsize for given, result in ends)
    expected = _EXPECTED_BYTES if itemsize > 1 else 1
    for rank, (_, result) in enumerate(ends):
        if any(collective.expected(rank, index) is not None for index in range(result)):
            held += (inputs + result) * expected
    return held * (size // itemsize) // most


def available_memory() -> int | None:
    """The bytes that the system can give without swapping; None where it does not say."""
    try:
        lines = MEMORY.read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) << 10 if found else None


def distinct_sizes(choice: Sequence[tuple[Algorithm, Sequence[int]]], dtype: str) -> list[tuple[Algorithm, list[int]]]:
    """Without the sizes that are, in whole elements, what a smaller one was already; an algorithm may lose them all."""
    from commlib.runtime.measurement import shard_size
    from commlib.runtime.tensors import DTYPES

    itemsize = DTYPES[torch_type(dtype)].itemsize
    kept: list[tuple[Algorithm, list[int]]] = []
    seen: set[int] = set()
    for algorithm, sizes in choice:
        by_count = {shard_size(algorithm.collective, size, itemsize): size for size in reversed(sizes)}
        new = sorted(size for count, size in by_count.items() if count not in seen)
        seen |= by_count.keys()
        kept += [(algorithm, new)] if new else []
    return kept
