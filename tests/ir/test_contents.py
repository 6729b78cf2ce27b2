"""Contents are exact: equal ids exactly when the multisets are equal, whichever way they were made."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commlib.ir.contents import EMPTY, ContentTable

SIZES = ((), (2, 0, 3), (4, 4, 4, 4))
CONTRIBUTIONS = st.tuples(st.integers(0, 3), st.integers(0, 3))
MULTISETS = st.lists(CONTRIBUTIONS, max_size=5)


@given(st.sampled_from(SIZES), st.lists(MULTISETS, min_size=1, max_size=4), st.data())
def test_ids_are_equal_exactly_when_multisets_are(sizes, start, data):
    table = ContentTable(sizes)
    known = {(rank, index): table.initial(rank, index) for rank in range(4) for index in range(4)}
    made = [(table.of(one), Counter(one)) for one in start] + [(known[c], Counter([c])) for c in known]
    for _ in range(12):
        (left, one), (right, other) = data.draw(st.tuples(st.sampled_from(made), st.sampled_from(made)))
        made.append((table.add(left, right), one + other))
    for content, counts in made:
        assert table.counts(content) == counts
        assert table.of(counts.elements()) == content
        for other_content, other in made:
            assert (content == other_content) == (counts == other)


@given(st.integers(0, 15), st.integers(0, 3))
def test_of_ranks(mask, index):
    table = ContentTable([2, 2, 4])
    ranks = [rank for rank in range(4) if mask >> rank & 1]
    content = table.of_ranks(mask, index)
    assert table.counts(content) == {(rank, index): 1 for rank in ranks}
    assert content == table.of((rank, index) for rank in ranks)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_first_ids_are_the_inputs(sizes):
    table = ContentTable(sizes)
    ids = [content for rank, chunks in enumerate(sizes) for content in table.initials(rank, 0, chunks)]
    assert ids == list(range(sum(sizes)))
    inside = [(rank, index) for rank, chunks in enumerate(sizes) for index in range(chunks)]
    assert [table.initial(*c) for c in inside] == ids
    assert [table.counts(i) for i in ids] == [{c: 1} for c in inside]
    assert table.initials(2, 2, 3) == [table.initial(2, index) for index in (2, 3, 4)]


def test_nothing():
    table = ContentTable()
    empty, one = table.of([]), table.initial(0, 3)
    assert table.counts(EMPTY) == table.counts(empty) == {}
    assert table.add(empty, one) == table.add(one, empty) == one
    assert table.add(empty, empty) == empty == table.of_ranks(0, 7)


def test_counts_far_beyond_a_machine_word():
    table = ContentTable()
    content = table.add(table.initial(0, 0), table.initial(1, 1))
    for _ in range(200):
        content = table.add(content, content)
    content = table.add(content, table.initial(1, 1))
    assert table.counts(content) == {(0, 0): 2**200, (1, 1): 2**200 + 1}


@pytest.mark.parametrize("one", [(0, 0), (1, 2)])
@pytest.mark.parametrize("bits", [62, 63, 64, 65, 100])
def test_large_counts_are_one_id_whichever_way_they_were_made(bits, one):
    table = ContentTable([1])
    content = start = table.add(table.initial(0, 0), table.initial(*one))
    powers = [content]
    for _ in range(bits):
        content = table.add(content, content)
        powers.append(content)
    below = table.add(powers[-1], powers[-1])
    other = start
    for power in powers:
        other = table.add(power, other)
    assert other == below
    assert table.counts(other) == Counter({c: n << (bits + 1) for c, n in Counter([(0, 0), one]).items()})
    assert len({*powers, below}) == bits + 2


@pytest.mark.parametrize("rounds", [1, 2])
def test_sums_of_many_indices_are_small(rounds):
    """2000 chunk indices of one rank, once or twice each: explicit multisets would take 250 MB."""
    tracemalloc.start()
    table = ContentTable([2000])
    content = table.of([])
    for index in [*range(2000)] * rounds:
        content = table.add(content, table.initial(0, index))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert table.counts(content) == {(0, index): rounds for index in range(2000)}
    assert peak < 4e6 * rounds
