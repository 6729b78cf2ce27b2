"""Demand: what a collective must move, as items: one origin, many destinations.

An item of a collective that copies is an input chunk that some other rank's output wants; it spreads from its origin.
A collective that reduces each output chunk once (reducescatter, reduce) is the same read backwards: its item is an
output chunk, ``origin`` is the rank where the sum ends, ``destinations`` are the ranks that contribute, and a schedule
for it is a schedule of the spreading item on the reversed topology, reversed in time. Allreduce is the one followed
by the other, and has a demand of neither kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from commlib.collectives import Collective
from commlib.errors import SpecError


@dataclass(frozen=True)
class Item:
    """One chunk that travels: from ``origin`` (chunk ``index`` there) to every rank of ``destinations``.

    ``slots[d]`` are the chunk indices where it ends on rank d, the origin's own included where it keeps a copy; for a
    reducing demand they are where the contributions begin. ``size`` is its size class (only alltoallv has several).
    """

    origin: int
    index: int
    slots: Mapping[int, tuple[int, ...]] = field(repr=False)
    size: int = 0

    @cached_property
    def destinations(self) -> tuple[int, ...]:
        """The ranks other than the origin that want it (or contribute to it), in order."""
        return tuple(sorted(rank for rank in self.slots if rank != self.origin))


@dataclass(frozen=True, eq=False)
class Demand:
    """The items of a collective; ``sizes`` are the bytes of a chunk of each size class.

    ``reduces``: items are sums, read backwards (see the module's text).
    """

    collective: Collective
    items: tuple[Item, ...] = field(repr=False)
    sizes: tuple[float, ...]
    reduces: bool = False

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.collective.ranks


def chunk_bytes(collective: Collective, size: float) -> float:
    """Bytes of a chunk where ``size`` is what nccl-tests calls the size: the larger of a rank's input and output.

    That is the total output of an allgather, the total input of a reducescatter, one rank's buffer for allreduce,
    alltoall, broadcast, reduce, sendrecv and alltonext, and the root's whole buffer for gather and scatter.

    Raises:
        SpecError: a size that is negative or infinite, or a collective without chunks.
    """
    if not 0 <= size < float("inf"):
        raise SpecError(f"{collective.name}: a size is 0 bytes or more, not {size}", size=size)
    counts = (collective.input_chunks, collective.output_chunks)
    chunks = max(count(rank) for count in counts for rank in range(collective.ranks))
    if not chunks:
        raise SpecError(f"{collective.name} has no chunks", collective=collective.name)
    return size / chunks


def demand(collective: Collective, chunk_bytes: float, bytes_of: Sequence[Sequence[float]] | None = None) -> Demand:
    """The demand of a collective whose chunks have ``chunk_bytes`` bytes.

    ``bytes_of[s][d]`` (alltoallv only) are the bytes that rank s sends to rank d, all chunks of the pair together.
    Complexity: O(output chunks).

    Raises:
        SpecError: allreduce or another collective that replicates sums (compose it from reducescatter and allgather),
            an unspecified one, or sizes for a collective other than alltoallv, of another shape or negative.
    """
    if not collective.specified:
        raise SpecError(f"{collective.name}: nobody said what its outputs must hold", collective=collective.name)
    if collective.reduces:
        return Demand(collective, tuple(_sums(collective)), (float(chunk_bytes),), reduces=True)
    items, sizes = tuple(_copies(collective)), (float(chunk_bytes),)
    if bytes_of is None:
        return Demand(collective, items, sizes)
    return _with_sizes(collective, items, bytes_of)


def _copies(collective: Collective) -> list[Item]:
    if collective.name == "allgather":
        return _everyone_to_everyone(collective)
    wanted: dict[tuple[int, int], dict[int, tuple[int, ...]]] = {}
    for rank in range(collective.ranks):
        for index in range(collective.output_chunks(rank)):
            for source in collective.expected(rank, index) or ():
                slots = wanted.setdefault(source, {})
                slots[rank] = (*slots.get(rank, ()), index)
    return [Item(origin, index, slots) for (origin, index), slots in sorted(wanted.items())]


def _everyone_to_everyone(collective: Collective) -> list[Item]:
    """The items of allgather, and of reducescatter read backwards: the general way takes seconds on 1024 ranks."""
    ranks, chunks = range(collective.ranks), collective.chunks
    return [
        Item(rank, index, dict.fromkeys(ranks, (rank * chunks + index,))) for rank in ranks for index in range(chunks)
    ]


def _sums(collective: Collective) -> list[Item]:
    if collective.name == "reducescatter":
        return _everyone_to_everyone(collective)
    items: dict[frozenset[tuple[int, int]], int] = {}
    found = []
    for rank in range(collective.ranks):
        for index in range(collective.output_chunks(rank)):
            sources = collective.expected(rank, index)
            if sources is None:
                continue
            if items.setdefault(sources, rank) != rank:
                raise SpecError(
                    f"{collective.name} wants the same sum on ranks {items[sources]} and {rank}: compose it from a "
                    "collective that reduces and one that copies",
                    collective=collective.name,
                )
            slots: dict[int, tuple[int, ...]] = {}
            for source, slot in sorted(sources):
                slots[source] = (*slots.get(source, ()), slot)
            found.append(Item(rank, index, slots))
    return found


def _with_sizes(collective: Collective, items: tuple[Item, ...], bytes_of: Sequence[Sequence[float]]) -> Demand:
    ranks = collective.ranks
    if collective.name != "alltoallv":
        raise SpecError(f"only alltoallv has a size for each pair, not {collective.name}", collective=collective.name)
    if len(bytes_of) != ranks or any(len(row) != ranks for row in bytes_of):
        raise SpecError(f"alltoallv on {ranks} ranks takes {ranks} rows of {ranks} sizes")
    if any(not 0 <= size < float("inf") for row in bytes_of for size in row):
        raise SpecError("sizes of alltoallv are 0 bytes or more")
    each = [bytes_of[item.origin][(item.destinations or (item.origin,))[0]] / collective.chunks for item in items]
    classes = sorted(set(each))
    placed = {size: k for k, size in enumerate(classes)}
    sized = tuple(
        Item(item.origin, item.index, item.slots, placed[size]) for item, size in zip(items, each, strict=True)
    )
    return Demand(collective, sized, tuple(map(float, classes)))
