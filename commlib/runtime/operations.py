"""What each operation of the IR does to elements: one function per operation, over the moves of a step.

``message`` is the message that came, ``out`` the one to send, both flat arrays; the table in ``commlib.ir.algorithm``
is the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from commlib.ir.algorithm import HAS_SOURCE, RECEIVES, REDUCES, Op
from commlib.runtime.kernels import Array, Kernels
from commlib.runtime.plan import Move, OneSided


class Arrays(NamedTuple):
    """The flat arrays of a step; one that its operation does not use is None."""

    source: Array
    destination: Array
    message: Array
    out: Array


Operation = Callable[[Kernels, Sequence[Move], Arrays], None]


def perform(op: Op, overlaps: bool, kernels: Kernels, moves: Sequence[Move], arrays: Arrays) -> None:
    """Do one step; ``overlaps``: its source and destination overlap in part."""
    if overlaps:
        _overlapping(op, kernels, moves, arrays)
    else:
        _OPERATIONS[op](kernels, moves, arrays)


def _send(k: Kernels, moves: Sequence[Move], a: Arrays) -> None:
    for s, _, m, n in moves:
        k.copy(a.out[m : m + n], a.source[s : s + n])


def _recv(k: Kernels, moves: Sequence[Move], a: Arrays) -> None:
    for _, d, m, n in moves:
        k.copy(a.destination[d : d + n], a.message[m : m + n])


def _recv_copy_send(k: Kernels, moves: Sequence[Move], a: Arrays) -> None:
    for _, d, m, n in moves:
        k.copy(a.out[m : m + n], a.message[m : m + n])
        k.copy(a.destination[d : d + n], a.message[m : m + n])


def _recv_reduce_copy(k: Kernels, moves: Sequence[Move], a: Arrays) -> None:
    for s, d, m, n in moves:
        k.combine(a.source[s : s + n], a.message[m : m + n], a.destination[d : d + n])


def _recv_reduce_send(k: Kernels, moves: Sequence[Move], a: Arrays) -> None:
    for s, _, m, n in moves:
        k.combine(a.source[s : s + n], a.message[m : m + n], a.out[m : m + n])


def _recv_reduce_copy_send(k: Kernels, moves: Sequence[Move], a: Arrays) -> None:
    for s, d, m, n in moves:
        k.combine(a.source[s : s + n], a.message[m : m + n], a.out[m : m + n])
        k.copy(a.destination[d : d + n], a.out[m : m + n])


def _copy(k: Kernels, moves: Sequence[Move], a: Arrays) -> None:
    for s, d, _, n in moves:
        k.copy(a.destination[d : d + n], a.source[s : s + n])


def _reduce(k: Kernels, moves: Sequence[Move], a: Arrays) -> None:
    for s, d, _, n in moves:
        k.combine(a.destination[d : d + n], a.source[s : s + n], a.destination[d : d + n])


def _nothing(_kernels: Kernels, _moves: Sequence[Move], _arrays: Arrays) -> None:
    """nop: it has waited for its dependences, that was all."""


def transfer(kernels: Kernels, one_sided: OneSided, tile: int, overlaps: bool, arrays: Sequence[Array]) -> None:
    """Do one one-sided step that moves: ``arrays`` are those of its operands, of any rank.

    Sources are combined from left to right. ``overlaps``: all is read before anything is written.
    """
    late: list[tuple[Array, Array]] = []
    for starts, length in one_sided.tiles[tile]:
        parts = [array[start : start + length] for array, start in zip(arrays, starts, strict=True)]
        sources, targets = parts[: one_sided.sources], parts[one_sided.sources :]
        total = sources[0]
        if len(sources) > 1 or overlaps:
            total = kernels.empty(length)
            kernels.copy(total, sources[0])
        for source in sources[1:]:
            kernels.combine(total, source, total)
        late += [(target, total) for target in targets]
        if not overlaps:
            _store(kernels, late)
    _store(kernels, late)


def _store(kernels: Kernels, pairs: list[tuple[Array, Array]]) -> None:
    while pairs:
        kernels.copy(*pairs.pop())


_OPERATIONS: tuple[Operation, ...] = (
    _send,
    _recv,
    _recv_copy_send,
    _recv_reduce_copy,
    _recv_reduce_send,
    _recv_reduce_copy_send,
    _copy,
    _reduce,
    _nothing,
)


def _overlapping(op: Op, k: Kernels, moves: Sequence[Move], a: Arrays) -> None:
    """As the plain operation, through a copy: all that is read is read before anything is written."""
    result = k.empty(sum(move.length for move in moves))
    for s, d, m, n in moves:
        part = result[m : m + n]
        if RECEIVES[op] and HAS_SOURCE[op]:
            k.combine(a.source[s : s + n], a.message[m : m + n], part)
        elif REDUCES[op]:
            k.combine(a.destination[d : d + n], a.source[s : s + n], part)
        else:
            k.copy(part, a.source[s : s + n])
    if a.out is not None:
        k.copy(a.out, result)
    _recv(k, moves, a._replace(message=result))
