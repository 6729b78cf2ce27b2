"""How much a collective moves, in words and as JSON: the size of a chunk, or what a matrix of sizes comes to."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from commlib.cli.console import counted
from commlib.cli.sizes import format_size

if TYPE_CHECKING:
    from commlib.collectives import Collective
    from synth.moves import Moves
    from synth.pipeline import Question

Pairs = list[float]
"""An alltoallv's bytes from each rank to each other one, all chunks of the pair together."""


def pairs_asked(asked: Question) -> Pairs | None:
    """The bytes between ranks that a question's matrix has; None: there is none, all chunks are alike."""
    if asked.bytes_of is None:
        return None
    rows = enumerate(asked.bytes_of)
    return [float(size) for source, row in rows for target, size in enumerate(row) if source != target]


def pairs_moved(collective: Collective, moves: Moves) -> Pairs | None:
    """The bytes between ranks of a schedule for an alltoallv; None: another collective. O(parcels)."""
    if collective.name != "alltoallv":
        return None
    pairs: dict[tuple[int, int], float] = {}
    for parcel in moves.parcels:
        for pair in product(parcel.sources, parcel.slots):
            if pair[0] != pair[1]:
                pairs[pair] = pairs.get(pair, 0.0) + moves.costs.sizes[parcel.size]
    return list(pairs.values())


def amount(collective: Collective, chunk_bytes: float, pairs: Pairs | None) -> str:
    """How much is moved, for a person; bytes have their unit, K, M and G are powers of 1024.

    An allreduce's chunks are counted for its buffer, since that has no shards.
    """
    if pairs is not None:
        return f"{size_text(sum(pairs))} in all, at most {size_text(max(pairs, default=0.0))} from one rank to another"
    whole = "buffer" if collective.name == "allreduce" else "shard"
    return f"{counted(collective.chunks, 'chunk')} of {size_text(chunk_bytes)} per {whole}"


def amount_json(chunk_bytes: float, pairs: Pairs | None) -> dict[str, object]:
    """The same in bytes, for a program: chunks of different sizes have no ``chunk_bytes``."""
    if pairs is None:
        return {"chunk_bytes": chunk_bytes}
    return {"chunk_bytes": None, "total_bytes": sum(pairs), "largest_bytes": max(pairs, default=0.0)}


def size_text(size: float) -> str:
    """A number of bytes with its unit: "256 B", "64K"."""
    short = format_size(int(size)) if size == int(size) else f"{size:.6g}"
    return f"{short} B" if short[-1].isdigit() else short
