"""Contents: what a slot holds, as an exact multiset of contributions, interned so that equal contents are one id.

Adding two contents is a dictionary look-up once their pair was seen. A multiset is kept as *planes* of bits: bit c of
plane k is bit k of the number of times that contribution c is counted, so that a content in which nothing is counted
twice is one plane, and a sum is a ripple-carry addition of planes. Where all contributions are of one chunk index,
the common case, c is their rank; else it is the number that the table gave to (rank, index) when it first met it.
Counts beyond ``MOST_PLANES`` bits, which only repeated doubling makes, are listed. No hashing of values is trusted:
the ids are exact.

A new content of n contributions, each counted less than 2 ** k times, takes k * n bits and as much work.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, zip_longest

from commlib.collectives import Contribution

EMPTY = -1
"""The content id of a slot that nothing was written to."""

_MIXED = -1
"""In a key: the contributions are of several chunk indices."""
_LISTED = -2
"""In a key: some count has more than ``MOST_PLANES`` bits."""
MOST_PLANES = 64
_Key = tuple[int, ...]
"""(chunk index or _MIXED, plane 0, plane 1, ...); the last plane is not 0. (_MIXED,) is the empty multiset.
Or (_LISTED, contribution number, count, contribution number, count, ...), by number."""


class ContentTable:
    """Interned contents. Ids are small non-negative integers, meaningful only within their table.

    ``inputs``: the number of input chunks of each rank; the first ids are theirs, in order, and cost nothing. Other
    chunks may be named all the same.
    """

    def __init__(self, inputs: Sequence[int] = ()) -> None:
        self._input_id = list(accumulate(inputs, initial=0))
        self._keys: list[_Key] = []
        self._ids: dict[_Key, int] = {}
        self._sums: dict[tuple[int, int], int] = {}
        self._mixed: dict[int, _Key] = {}
        self._numbers: dict[Contribution, int] = {}
        self._contributions: list[Contribution] = []

    def initial(self, rank: int, index: int) -> int:
        """The content of input chunk ``index`` of ``rank`` before anything ran."""
        if rank + 1 < len(self._input_id) and self._input_id[rank] + index < self._input_id[rank + 1]:
            return self._input_id[rank] + index
        return self._intern((index, 1 << rank))

    def initials(self, rank: int, first: int, count: int) -> Sequence[int]:
        """The contents of ``count`` input chunks of ``rank`` from ``first`` on, before anything ran."""
        if rank + 1 < len(self._input_id) and self._input_id[rank] + first + count <= self._input_id[rank + 1]:
            return range(self._input_id[rank] + first, self._input_id[rank] + first + count)
        return [self.initial(rank, index) for index in range(first, first + count)]

    def of(self, contributions: Iterable[Contribution]) -> int:
        """The content that holds each of these contributions as often as it is listed."""
        counts = Counter(contributions)
        indices = {index for _, index in counts}
        if len(indices) == 1:
            return self._find((indices.pop(), *_planes((rank, count) for (rank, _), count in counts.items())))
        return self._find((_MIXED, *_planes((self._number(c), count) for c, count in counts.items())))

    def of_ranks(self, ranks_mask: int, index: int) -> int:
        """The content that holds chunk ``index`` of every rank whose bit is set in the mask, once each."""
        return self._find((index, ranks_mask) if ranks_mask else (_MIXED,))

    def add(self, left: int, right: int) -> int:
        """The content of a reduction of two contents."""
        pair = (left, right) if left <= right else (right, left)
        known = self._sums.get(pair)
        if known is None:
            known = self._sums[pair] = self._sum(left, right)
        return known

    def counts(self, content: int) -> dict[Contribution, int]:
        """Each contribution in the content, with the number of times it was counted."""
        if content == EMPTY:
            return {}
        index, *planes = self._key(content)
        if index == _LISTED:
            return {self._contributions[c]: n for c, n in zip(planes[::2], planes[1::2], strict=True)}
        counts: Counter[int] = Counter()
        for k, plane in enumerate(planes):
            for bit in _bits(plane):
                counts[bit] += 1 << k
        return {self._contributions[bit] if index == _MIXED else (bit, index): n for bit, n in counts.items()}

    def _sum(self, left: int, right: int) -> int:
        one, other = self._key(left), self._key(right)
        if len(one) == 1 or len(other) == 1:
            return left if len(other) == 1 else right
        if _LISTED in (one[0], other[0]):
            return self._listed_sum(left, right)
        if one[0] != other[0]:
            one, other = self._as_mixed(left, one), self._as_mixed(right, other)
        if len(one) == len(other) == 2 and not one[1] & other[1]:
            return self._intern((one[0], one[1] | other[1]))
        planes = tuple(_added(one[1:], other[1:]))
        return self._listed_sum(left, right) if len(planes) > MOST_PLANES else self._intern((one[0], *planes))

    def _listed_sum(self, left: int, right: int) -> int:
        counts = Counter(self.counts(left)) + Counter(self.counts(right))
        listed = sorted((self._number(c), n) for c, n in counts.items())
        return self._intern((_LISTED, *chain.from_iterable(listed)))

    def _as_mixed(self, content: int, key: _Key) -> _Key:
        """The key's planes over contribution numbers."""
        index = key[0]
        if index == _MIXED:
            return key
        known = self._mixed.get(content)
        if known is None:
            planes = (sum(1 << self._number((rank, index)) for rank in _bits(plane)) for plane in key[1:])
            known = self._mixed[content] = (_MIXED, *planes)
        return known

    def _number(self, contribution: Contribution) -> int:
        number = self._numbers.setdefault(contribution, len(self._contributions))
        if number == len(self._contributions):
            self._contributions.append(contribution)
        return number

    def _key(self, content: int) -> _Key:
        if content >= self._input_id[-1]:
            return self._keys[content - self._input_id[-1]]
        rank = bisect_right(self._input_id, content) - 1
        return content - self._input_id[rank], 1 << rank

    def _find(self, key: _Key) -> int:
        """The id of any key: a single contribution may have one of the first ids."""
        if len(key) == 2 and key[0] != _MIXED and not key[1] & (key[1] - 1):
            return self.initial(key[1].bit_length() - 1, key[0])
        return self._intern(key)

    def _intern(self, key: _Key) -> int:
        known = self._ids.get(key)
        if known is None:
            known = self._ids[key] = self._input_id[-1] + len(self._keys)
            self._keys.append(key)
        return known


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _planes(counts: Iterable[tuple[int, int]]) -> list[int]:
    """The planes in which each bit is counted as often as given."""
    planes: list[int] = []
    for bit, count in counts:
        planes += [0] * (count.bit_length() - len(planes))
        for k in _bits(count):
            planes[k] |= 1 << bit
    return planes


def _added(one: _Key, other: _Key) -> Iterator[int]:
    """The planes of a sum."""
    carry = 0
    for x, y in zip_longest(one, other, fillvalue=0):
        either = x ^ y
        yield either ^ carry
        carry = x & y | either & carry
    if carry:
        yield carry
