"""Contents: what a slot holds, as an exact multiset of contributions, interned so that equal contents are one id.

Adding two contents is a dictionary look-up once their pair was seen. The common case, distinct ranks' contributions
of one chunk index, is kept as a bit mask over ranks; only a content that mixes indices or counts one contribution
twice is kept as an explicit multiset. No hashing of values is trusted: the ids are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from commlib.collectives import Contribution

EMPTY = -1
"""The content id of a slot that nothing was written to."""

_Key = tuple[int, int] | frozenset[tuple[Contribution, int]]


class ContentTable:
    """Interned contents. Ids are small non-negative integers, meaningful only within their table."""

    def __init__(self) -> None:
        self._keys: list[_Key] = []
        self._ids: dict[_Key, int] = {}
        self._sums: dict[tuple[int, int], int] = {}

    def initial(self, rank: int, index: int) -> int:
        """The content of input chunk ``index`` of ``rank`` before anything ran."""
        return self._intern((index, 1 << rank))

    def of(self, contributions: Iterable[Contribution]) -> int:
        """The content that holds each of these contributions as often as it is listed."""
        return self._intern(_canonical(Counter(contributions)))

    def of_ranks(self, ranks_mask: int, index: int) -> int:
        """The content that holds chunk ``index`` of every rank whose bit is set in the mask, once each."""
        return self._intern((index, ranks_mask))

    def add(self, left: int, right: int) -> int:
        """The content of a reduction of two contents."""
        pair = (left, right) if left <= right else (right, left)
        known = self._sums.get(pair)
        if known is None:
            known = self._sums[pair] = self._intern(_union(self._keys[left], self._keys[right]))
        return known

    def counts(self, content: int) -> dict[Contribution, int]:
        """Each contribution in the content, with the number of times it was counted."""
        return dict(_counter(self._keys[content])) if content != EMPTY else {}

    def _intern(self, key: _Key) -> int:
        known = self._ids.get(key)
        if known is None:
            known = self._ids[key] = len(self._keys)
            self._keys.append(key)
        return known


def _union(left: _Key, right: _Key) -> _Key:
    if isinstance(left, tuple) and isinstance(right, tuple) and left[0] == right[0] and not left[1] & right[1]:
        return (left[0], left[1] | right[1])
    return _canonical(_counter(left) + _counter(right))


def _counter(key: _Key) -> Counter[Contribution]:
    if isinstance(key, frozenset):
        return Counter(dict(key))
    index, mask = key
    return Counter({(rank, index): 1 for rank in _bits(mask)})


def _bits(mask: int) -> Iterable[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _canonical(counts: Counter[Contribution]) -> _Key:
    indices = {index for _, index in counts}
    if len(indices) == 1 and all(count == 1 for count in counts.values()):
        return (indices.pop(), sum(1 << rank for rank, _ in counts))
    return frozenset(counts.items())
