"""Direct programs for ranks that share memory, written in one-sided steps. In two forms, *staged* and *shared*.

A *staged* program touches of other ranks only their scratch: it runs on any tensors, which each rank copies to or
from its own scratch. A *shared* program reads, and for allreduce also writes, the tensors of other ranks where they
lie: those must be registered or, for programs that only read them, readable by ``process_vm_readv``.

N is the number of ranks, S the bytes of a rank's larger buffer. All combine in the order of the ranks, so that every
rank gets the same bits. Bytes are those that a rank reads and writes, in all memories.

Source of the forms: MSCCL++'s one-phase and two-phase all-pairs algorithms (Cowan et al., 2025, arXiv 2504.09014), on
the memory of one host instead of on NVLink.
"""

from __future__ import annotations

from collections.abc import Iterable

from commlib.algorithms.entry import chunk_per_rank
from commlib.algorithms.onesided import LARGE, DirectEntry
from commlib.dsl import OneSidedProgram
from commlib.dsl.onesided import ThreadblockWriter


def _others(ranks: int, rank: int) -> list[int]:
    """The other ranks, beginning with the next, so that not all turn to the same one first."""
    return [(rank + distance) % ranks for distance in range(1, ranks)]


def _tell(block: ThreadblockWriter, peers: Iterable[int]) -> None:
    for peer in peers:
        block.signal(peer)


def _hear(block: ThreadblockWriter, peers: Iterable[int]) -> None:
    for peer in peers:
        block.wait(peer)


def one_shot_allreduce(k: OneSidedProgram) -> None:
    """One shot: everyone shows its whole input, and combines all of them.

    Chunks: 1. One synchronisation. Bytes: (N + 3) S, for small messages. Scratch: S.
    """
    n = k.ranks
    for r in range(n):
        block, others = k.threadblock(r), _others(n, r)
        block.copy(k.input(r)[0], k.scratch(r)[0])
        _tell(block, others)
        _hear(block, others)
        block.read_reduce([k.input(r)[0] if p == r else k.scratch(p)[0] for p in range(n)], k.output(r)[0])


def staged_allreduce(k: OneSidedProgram) -> None:
    """Two phases: rank r combines shard r of all ranks, and everyone fetches all results.

    Chunks: N. Two synchronisations. Bytes: at most 7 S, whatever N. Scratch: S.
    """
    n = k.ranks
    for r in range(n):
        block, others = k.threadblock(r), _others(n, r)
        for p in others:
            block.copy(k.input(r)[p], k.scratch(r)[p])
            block.signal(p)
        _hear(block, others)
        shares = [k.input(r)[r] if p == r else k.scratch(p)[r] for p in range(n)]
        block.read_reduce_store(shares, [k.output(r)[r], k.scratch(r)[r]])
        _tell(block, others)
        for p in others:
            block.wait(p)
            block.get(k.scratch(p)[p], k.output(r)[p])


def shared_allreduce(k: OneSidedProgram) -> None:
    """In the tensors themselves: rank r combines shard r of all inputs and stores it to all outputs.

    Chunks: N. Two synchronisations. Bytes: 2 S, the least that there can be. No scratch.
    """
    n = k.ranks
    for r in range(n):
        block, others = k.threadblock(r), _others(n, r)
        _tell(block, others)
        _hear(block, others)
        block.read_reduce_store([k.input(p)[r] for p in range(n)], [k.output(p)[r] for p in range(n)])
        _tell(block, others)
        _hear(block, others)


def staged_allgather(k: OneSidedProgram) -> None:
    """Everyone shows its shard, and fetches all others.

    Chunks: 1. One synchronisation. Scratch: S / N.
    """
    n = k.ranks
    for r in range(n):
        block, others = k.threadblock(r), _others(n, r)
        block.copy(k.input(r)[0], k.scratch(r)[0])
        _tell(block, others)
        block.copy(k.input(r)[0], k.output(r)[r])
        for p in others:
            block.wait(p)
            block.get(k.scratch(p)[0], k.output(r)[p])


def shared_allgather(k: OneSidedProgram) -> None:
    """Everyone fetches all shards out of the inputs themselves.

    Chunks: 1. Two synchronisations. Each byte is copied once. No scratch.
    """
    n = k.ranks
    for r in range(n):
        block, others = k.threadblock(r), _others(n, r)
        _tell(block, others)
        block.copy(k.input(r)[0], k.output(r)[r])
        for p in others:
            block.wait(p)
            block.get(k.input(p)[0], k.output(r)[p])
            block.signal(p)
        _hear(block, others)


def staged_reducescatter(k: OneSidedProgram) -> None:
    """Everyone shows the shards of the others, and combines its own.

    Chunks: 1. One synchronisation. Scratch: S.
    """
    n = k.ranks
    for r in range(n):
        block, others = k.threadblock(r), _others(n, r)
        for p in others:
            block.copy(k.input(r)[p], k.scratch(r)[p])
            block.signal(p)
        _hear(block, others)
        block.read_reduce([k.input(r)[r] if p == r else k.scratch(p)[r] for p in range(n)], k.output(r)[0])


def shared_reducescatter(k: OneSidedProgram) -> None:
    """Everyone combines its shard out of the inputs themselves.

    Chunks: 1. Two synchronisations. Each byte is read once. No scratch.
    """
    n = k.ranks
    for r in range(n):
        block, others = k.threadblock(r), _others(n, r)
        _tell(block, others)
        _hear(block, others)
        block.read_reduce([k.input(p)[r] for p in range(n)], k.output(r)[0])
        _tell(block, others)
        _hear(block, others)


def staged_alltoall(k: OneSidedProgram) -> None:
    """Everyone shows what is for the others, and fetches what is for itself.

    Chunks: 1. One synchronisation. Scratch: S.
    """
    n = k.ranks
    for r in range(n):
        block, others = k.threadblock(r), _others(n, r)
        for p in others:
            block.copy(k.input(r)[p], k.scratch(r)[p])
            block.signal(p)
        block.copy(k.input(r)[r], k.output(r)[r])
        for p in others:
            block.wait(p)
            block.get(k.scratch(p)[r], k.output(r)[p])


def shared_alltoall(k: OneSidedProgram) -> None:
    """Everyone fetches what is for itself out of the inputs themselves; out of place only.

    Chunks: 1. Two synchronisations. Each byte is copied once. No scratch.
    """
    n = k.ranks
    for r in range(n):
        block, others = k.threadblock(r), _others(n, r)
        _tell(block, others)
        block.copy(k.input(r)[r], k.output(r)[r])
        for p in others:
            block.wait(p)
            block.get(k.input(p)[r], k.output(r)[p])
            block.signal(p)
        _hear(block, others)


def staged_broadcast(k: OneSidedProgram) -> None:
    """The root shows its input, and all fetch it.

    Chunks: 1. One synchronisation with the root only. Scratch: S on the root.
    """
    root = k.collective.root or 0
    block, others = k.threadblock(root), _others(k.ranks, root)
    block.copy(k.input(root)[0], k.scratch(root)[0])
    _tell(block, others)
    block.copy(k.input(root)[0], k.output(root)[0])
    for r in others:
        block = k.threadblock(r)
        block.wait(root)
        block.get(k.scratch(root)[0], k.output(r)[0])


def shared_broadcast(k: OneSidedProgram) -> None:
    """All fetch the root's input where it lies.

    Chunks: 1. Two synchronisations with the root. Each byte is copied once to each rank. No scratch.
    """
    root = k.collective.root or 0
    block, others = k.threadblock(root), _others(k.ranks, root)
    _tell(block, others)
    block.copy(k.input(root)[0], k.output(root)[0])
    _hear(block, others)
    for r in others:
        block = k.threadblock(r)
        block.wait(root)
        block.get(k.input(root)[0], k.output(r)[0])
        block.signal(root)


def one_shot_reduce(k: OneSidedProgram) -> None:
    """All show their inputs to the root, which combines them.

    Chunks: 1. One synchronisation with the root. Scratch: S.
    """
    root, n = k.collective.root or 0, k.ranks
    for r in _others(n, root):
        block = k.threadblock(r)
        block.copy(k.input(r)[0], k.scratch(r)[0])
        block.signal(root)
    block = k.threadblock(root)
    _hear(block, _others(n, root))
    shares = [k.input(r)[0] if r == root else k.scratch(r)[0] for r in range(n)]
    block.read_reduce(shares, k.output(root)[0])


def staged_reduce(k: OneSidedProgram) -> None:
    """Two phases: rank r combines shard r of all ranks, and the root fetches all results.

    Chunks: N. Two synchronisations. All ranks share the work. Scratch: S.
    """
    n, root = k.ranks, k.collective.root or 0
    for r in range(n):
        block, others = k.threadblock(r), _others(n, r)
        for p in others:
            block.copy(k.input(r)[p], k.scratch(r)[p])
            block.signal(p)
        _hear(block, others)
        shares = [k.input(r)[r] if p == r else k.scratch(p)[r] for p in range(n)]
        block.read_reduce(shares, k.output(r)[r] if r == root else k.scratch(r)[r])
        if r != root:
            block.signal(root)
            continue
        for p in others:
            block.wait(p)
            block.get(k.scratch(p)[p], k.output(r)[p])


def shared_reduce(k: OneSidedProgram) -> None:
    """In the tensors themselves: rank r combines shard r of all inputs and stores it to the root's output.

    Chunks: N. Two synchronisations. All ranks share the work. Bytes: N S read and S written, by all together. No
    scratch.
    """
    n, root = k.ranks, k.collective.root or 0
    for r in range(n):
        block, others = k.threadblock(r), _others(n, r)
        _tell(block, others)
        _hear(block, others)
        block.read_reduce_store([k.input(p)[r] for p in range(n)], [k.output(root)[r]])
        _tell(block, others)
        _hear(block, others)


def staged_gather(k: OneSidedProgram) -> None:
    """All show their shards to the root, which fetches them.

    Chunks: 1. One synchronisation with the root. Scratch: S / N.
    """
    root, n = k.collective.root or 0, k.ranks
    for r in _others(n, root):
        block = k.threadblock(r)
        block.copy(k.input(r)[0], k.scratch(r)[0])
        block.signal(root)
    block = k.threadblock(root)
    block.copy(k.input(root)[0], k.output(root)[root])
    for r in _others(n, root):
        block.wait(r)
        block.get(k.scratch(r)[0], k.output(root)[r])


def shared_gather(k: OneSidedProgram) -> None:
    """The root fetches all shards out of the inputs themselves.

    Chunks: 1. Two synchronisations with the root. Each byte is copied once. No scratch.
    """
    root, n = k.collective.root or 0, k.ranks
    for r in _others(n, root):
        block = k.threadblock(r)
        block.signal(root)
        block.wait(root)
    block = k.threadblock(root)
    block.copy(k.input(root)[0], k.output(root)[root])
    for r in _others(n, root):
        block.wait(r)
        block.get(k.input(r)[0], k.output(root)[r])
        block.signal(r)


def staged_scatter(k: OneSidedProgram) -> None:
    """The root shows each rank its shard, which that rank fetches.

    Chunks: 1. One synchronisation with the root. Scratch: S on the root.
    """
    root, n = k.collective.root or 0, k.ranks
    block = k.threadblock(root)
    for r in _others(n, root):
        block.copy(k.input(root)[r], k.scratch(root)[r])
        block.signal(r)
    block.copy(k.input(root)[root], k.output(root)[0])
    for r in _others(n, root):
        block = k.threadblock(r)
        block.wait(root)
        block.get(k.scratch(root)[r], k.output(r)[0])


def shared_scatter(k: OneSidedProgram) -> None:
    """Each rank fetches its shard out of the root's input.

    Chunks: 1. Two synchronisations with the root. Each byte is copied once. No scratch.
    """
    root, n = k.collective.root or 0, k.ranks
    block, others = k.threadblock(root), _others(n, root)
    _tell(block, others)
    block.copy(k.input(root)[root], k.output(root)[0])
    _hear(block, others)
    for r in others:
        block = k.threadblock(r)
        block.wait(root)
        block.get(k.input(root)[r], k.output(r)[0])
        block.signal(root)


ENTRIES = (
    DirectEntry("allreduce", "one_shot", one_shot_allreduce, ("small",)),
    DirectEntry("allreduce", "staged", staged_allreduce, LARGE, chunk_per_rank),
    DirectEntry("allreduce", "shared", shared_allreduce, LARGE, chunk_per_rank),
    DirectEntry("allgather", "staged", staged_allgather),
    DirectEntry("allgather", "shared", shared_allgather, LARGE),
    DirectEntry("reducescatter", "staged", staged_reducescatter),
    DirectEntry("reducescatter", "shared", shared_reducescatter, LARGE),
    DirectEntry("alltoall", "staged", staged_alltoall),
    DirectEntry("alltoall", "shared", shared_alltoall, LARGE, placement="out"),
    DirectEntry("alltoallv", "staged", staged_alltoall),
    DirectEntry("alltoallv", "shared", shared_alltoall, LARGE, placement="out"),
    DirectEntry("broadcast", "staged", staged_broadcast),
    DirectEntry("broadcast", "shared", shared_broadcast, LARGE),
    DirectEntry("reduce", "one_shot", one_shot_reduce, ("small",)),
    DirectEntry("reduce", "staged", staged_reduce, LARGE, chunk_per_rank),
    DirectEntry("reduce", "shared", shared_reduce, LARGE, chunk_per_rank),
    DirectEntry("gather", "staged", staged_gather),
    DirectEntry("gather", "shared", shared_gather, LARGE),
    DirectEntry("scatter", "staged", staged_scatter),
    DirectEntry("scatter", "shared", shared_scatter, LARGE),
)
"""Every one-sided program of the library."""
