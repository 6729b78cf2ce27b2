"""Moves on addresses as lists of calls without arguments: resolved once, replayed with no work in Python but the calls.

A move combines its sources from left to right and writes the result to all destinations. What has more than two
sources or several destinations goes piece by piece, so that the pieces stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from commlib.runtime.kernels import NUMPY_COMBINES
from commlib.runtime.shm.memory import array_at, bytes_at, read_process
from commlib.runtime.tensors import DTYPES

Call = Callable[[], Any]
PIECE = 128 << 10
"""Bytes of a piece: with a few buffers it fits a core's cache (measured: 64 KB to 512 KB are alike)."""

_HALVES = ("float16", "bfloat16")
"""Combined by torch: numpy has no bfloat16 and is slow on float16."""
_TORCH: dict[str, Callable[..., Any]] = {
    "sum": torch.add,
    "prod": torch.mul,
    "min": torch.minimum,
    "max": torch.maximum,
}


class Remote(NamedTuple):
    """An operand in memory of another process that is not mapped here."""

    pid: int
    address: int


class Movers:
    """Makes the calls of moves of one element type and combination. ``Movers`` of one table share staging memory."""

    def __init__(self, dtype: str, itemsize: int, combine: str | None) -> None:
        self._itemsize, self._pieces = itemsize, max(1, PIECE // itemsize)
        self._staging: list[Any] = []
        self._copies = "|u1"
        self._torch = DTYPES[dtype] if dtype in _HALVES else None
        if combine is None:
            self._function: Callable[..., Any] | None = None
        elif self._torch is not None:
            self._function = _TORCH[combine]
        else:
            self._function = NUMPY_COMBINES[combine]  # type: ignore[index]
        self._kind = "|u1" if self._torch is not None else np.dtype(dtype).str
        self.floats = combine is not None and self._torch is None and np.dtype(dtype).kind in "fc"

    def calls(self, sources: Sequence[int | Remote], destinations: Sequence[int], elements: int) -> Iterator[Call]:
        """The calls of one move of ``elements`` elements, in order."""
        pieces = elements
        if len(sources) > 2 or len(destinations) > 1 or any(isinstance(source, Remote) for source in sources[1:]):
            pieces = self._pieces
        for low in range(0, elements, pieces):
            count, skip = min(pieces, elements - low), low * self._itemsize
            begin = [_beyond(source, skip) for source in sources]
            yield from self._piece(begin, [address + skip for address in destinations], count)

    def _piece(self, sources: list[int | Remote], destinations: list[int], count: int) -> Iterator[Call]:
        if len(sources) == 1 and isinstance(sources[0], Remote):
            yield partial(read_process, *sources[0], destinations[0], count * self._itemsize)
            yield from self._copy(destinations[0], destinations[1:], count)
            return
        local = list[int]()
        for place, source in enumerate(sources):
            if isinstance(source, Remote):
                yield partial(read_process, *source, self._stage(place), count * self._itemsize)
                source = self._stage(place)
            local.append(source)
        if len(local) == 1:
            yield from self._copy(local[0], destinations, count)
        else:
            yield from self._combine(local, destinations, count)

    def _copy(self, source: int, destinations: Sequence[int], count: int) -> Iterator[Call]:
        size = count * self._itemsize
        for destination in destinations:
            if destination != source:
                yield partial(np.copyto, bytes_at(destination, size), bytes_at(source, size))

    def _combine(self, sources: list[int], destinations: list[int], count: int) -> Iterator[Call]:
        """Into a destination that no later source is read from, or, where there is none, into staging memory."""
        late = set(sources[2:])
        sums = next((address for address in destinations if address not in late), None)
        if sums is None:
            sums = self._stage(len(sources))
        function = self._function
        if function is None:
            raise ValueError("a table that combines nothing has a move of several sources")
        target = self._view(sums, count)
        left = self._view(sources[0], count)
        for source in sources[1:]:
            if self._torch is None:
                yield partial(function, left, self._view(source, count), target)
            else:
                yield partial(function, left, self._view(source, count), out=target)
            left = target
        yield from self._copy(sums, destinations, count)

    def _view(self, address: int, count: int) -> Any:
        if self._torch is None:
            return array_at(address, count, self._kind)
        return torch.from_numpy(bytes_at(address, count * self._itemsize)).view(self._torch)

    def _stage(self, place: int) -> int:
        """The address of a piece of private memory."""
        while len(self._staging) <= place:
            self._staging.append(np.empty(self._pieces * self._itemsize, dtype=np.uint8))
        return int(self._staging[place].ctypes.data)


def _beyond(operand: int | Remote, skip: int) -> int | Remote:
    return Remote(operand.pid, operand.address + skip) if isinstance(operand, Remote) else operand + skip
