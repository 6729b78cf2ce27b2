"""Shapes that several algorithms share: who talks to whom, and nothing of what they say.

Trees are lists of edges in *virtual* ranks, where 0 is the root; ``from_root`` gives the ranks they stand for.
"""

from __future__ import annotations

from dataclasses import dataclass

from commlib.dsl import Program

Edges = list[tuple[int, int]]
"""(parent, child) pairs of a tree, every parent reached before its children."""


@dataclass(frozen=True)
class Folded:
    """A power of two of ``core`` ranks, and the ``pairs`` (core rank, other rank) that fold the others into them."""

    core: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]


def power_below(ranks: int) -> int:
    """The largest power of two that is not above ``ranks``."""
    return 1 << (ranks.bit_length() - 1)


def fold(ranks: int) -> Folded:
    """Fold as few ranks as a power of two needs: neighbours 2k and 2k + 1 at the beginning, kept in order."""
    extra = ranks - power_below(ranks)
    pairs = tuple((2 * k, 2 * k + 1) for k in range(extra))
    return Folded(tuple(even for even, _ in pairs) + tuple(range(2 * extra, ranks)), pairs)


def root_of(p: Program) -> int:
    """The root of a rooted collective, 0 for the others."""
    return p.collective.root or 0


def from_root(p: Program) -> list[int]:
    """The ranks in ring order from the root: element v is the rank that virtual rank v stands for."""
    return [(root_of(p) + v) % p.ranks for v in range(p.ranks)]


def peers(ranks: int, rank: int) -> list[int]:
    """All other ranks, from the next one on, so that not everyone begins with the same peer."""
    return [(rank + hop) % ranks for hop in range(1, ranks)]


def binomial_spans(ranks: int) -> list[tuple[int, int, int]]:
    """A binomial tree as (parent, child, size): the child's subtree is the virtual ranks child to child + size - 1.

    The order is that of a broadcast, one round after the other: in each, every rank that has the data sends once.
    """
    spans, distance = [], power_below(max(ranks - 1, 1))
    while distance:
        for parent in range(0, ranks - distance, 2 * distance):
            child = parent + distance
            spans.append((parent, child, min(distance, ranks - child)))
        distance //= 2
    return spans


def binomial_tree(ranks: int) -> Edges:
    """The edges of ``binomial_spans``: depth ceil(log2 ranks)."""
    return [(parent, child) for parent, child, _ in binomial_spans(ranks)]


def double_binary_tree(ranks: int) -> tuple[Edges, Edges]:
    """Two binary trees over virtual ranks 1 ... ranks - 1, each fed by rank 0, with no rank inside both.

    A rank that passes data on in one tree is a leaf of the other, so that two halves of a message, one on each
    tree, keep every link busy in both directions. Depth at most log2(ranks) + 1.
    Source: Sanders, Speck, Traeff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan" (2009).
    """

    def twin(v: int) -> int:
        if v == 0:
            return 0
        return ranks - v if ranks % 2 else v % (ranks - 1) + 1

    first = _in_order_tree(ranks)
    return first, [(twin(parent), twin(child)) for parent, child in first]


def _in_order_tree(ranks: int) -> Edges:
    """The binary search tree over 1 ... ranks - 1 below rank 0: odd ranks are leaves."""
    children: list[list[int]] = [[] for _ in range(ranks)]
    for v in range(1, ranks):
        children[_in_order_parent(v, ranks)].append(v)
    edges, level = [], [0]
    while level:
        below = [(parent, v) for parent in level for v in children[parent]]
        edges += below
        level = [v for _, v in below]
    return edges


def _in_order_parent(v: int, ranks: int) -> int:
    bit = v & -v
    above = (v ^ bit) | (bit << 1)
    return above if above < ranks else v ^ bit
