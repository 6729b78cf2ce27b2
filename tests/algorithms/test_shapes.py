"""The trees and foldings that the library's algorithms share."""

from __future__ import annotations

from collections import Counter

import pytest

from commlib.algorithms.shapes import Edges, binomial_spans, binomial_tree, double_binary_tree, fold

ALL = pytest.mark.parametrize("ranks", [*range(1, 34), 63, 64, 65, 100])


def _depths(tree: Edges) -> dict[int, int]:
    """The depth of each rank; a KeyError if a child comes before its parent."""
    depth = {0: 0}
    for parent, child in tree:
        assert child not in depth
        depth[child] = depth[parent] + 1
    return depth


@ALL
def test_binomial_tree_reaches_everyone_in_log_steps(ranks: int) -> None:
    depth = _depths(binomial_tree(ranks))
    assert sorted(depth) == list(range(ranks))
    assert max(depth.values()) <= (ranks - 1).bit_length()


@ALL
def test_binomial_subtrees_are_runs_of_ranks(ranks: int) -> None:
    below: dict[int, set[int]] = {v: {v} for v in range(ranks)}
    for parent, child, size in reversed(binomial_spans(ranks)):
        assert below[child] == set(range(child, child + size))
        below[parent] |= below[child]


@ALL
def test_double_tree_has_no_rank_inside_both(ranks: int) -> None:
    trees = double_binary_tree(ranks)
    inside = []
    for tree in trees:
        assert sorted(_depths(tree)) == list(range(ranks))
        assert max(_depths(tree).values()) <= (ranks - 1).bit_length() + 1
        children = Counter(parent for parent, _ in tree)
        assert children[0] <= 1
        assert max(children.values(), default=0) <= 2
        inside.append(set(children) - {0})
    assert not inside[0] & inside[1]


@ALL
def test_fold_leaves_a_power_of_two(ranks: int) -> None:
    shape = fold(ranks)
    assert len(shape.core).bit_count() == 1
    assert len(shape.core) * 2 > ranks
    assert sorted([*shape.core, *(other for _, other in shape.pairs)]) == list(range(ranks))
    assert all(core in shape.core for core, _ in shape.pairs)


def test_binomial_spans_of_six() -> None:
    assert binomial_spans(6) == [(0, 4, 2), (0, 2, 2), (0, 1, 1), (2, 3, 1), (4, 5, 1)]
