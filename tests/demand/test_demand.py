"""Demands: the items of every collective, and what has none."""

import pytest

from commlib.collectives import COLLECTIVES, allreduce, alltoallv, collective, custom
from commlib.demand import demand
from commlib.errors import SpecError


def items(wanted):
    return [(item.origin, item.index, dict(item.slots)) for item in wanted.items]


def test_items_go_to_those_who_want_them():
    assert items(demand(collective("broadcast", 3, 2, root=1), 1)) == [
        (1, 0, {0: (0,), 1: (0,), 2: (0,)}),
        (1, 1, {0: (1,), 1: (1,), 2: (1,)}),
    ]
    assert items(demand(collective("scatter", 2), 1)) == [(0, 0, {0: (0,)}), (0, 1, {1: (0,)})]
    assert items(demand(collective("alltonext", 3), 1)) == [(0, 0, {1: (0,)}), (1, 0, {2: (0,)})]


def test_sums_are_read_backwards():
    wanted = demand(collective("reduce", 3, root=2), 1)
    assert wanted.reduces
    assert items(wanted) == [(2, 0, {0: (0,), 1: (0,), 2: (0,)})]
    assert wanted.items[0].destinations == (0, 1)


@pytest.mark.parametrize("name", sorted(set(COLLECTIVES) - {"allreduce"}))
@pytest.mark.parametrize(("ranks", "chunks"), [(1, 1), (2, 3), (5, 2)])
def test_every_output_is_delivered_once(name, ranks, chunks):
    wanted = collective(name, ranks, chunks)
    found = demand(wanted, 8.0)
    delivered = {}
    for item in found.items:
        ends = {(item.origin, item.index)} if found.reduces else {(r, k) for r, ks in item.slots.items() for k in ks}
        starts = {(r, k) for r, ks in item.slots.items() for k in ks} if found.reduces else {(item.origin, item.index)}
        for end in ends:
            assert end not in delivered
            delivered[end] = frozenset(starts)
    expected = {
        (rank, index): wanted.expected(rank, index)
        for rank in range(ranks)
        for index in range(wanted.output_chunks(rank))
        if wanted.expected(rank, index) is not None
    }
    assert delivered == expected


def test_an_allreduce_has_no_demand_of_its_own():
    with pytest.raises(SpecError, match="allreduce wants the same sum on ranks 0 and 1: compose it"):
        demand(allreduce(3), 1)


def test_custom_sums_have_one_too():
    wanted = custom("pairs", [1, 1, 1], [1, 0, 0], {(0, 0): [(1, 0), (2, 0)]})
    assert items(demand(wanted, 1)) == [(0, 0, {1: (0,), 2: (0,)})]


def test_alltoallv_has_a_size_class_for_each_pair():
    found = demand(alltoallv(2, 2), 1, [[0, 6], [4, 0]])
    assert found.sizes == (0.0, 2.0, 3.0)
    assert [(item.origin, item.destinations, found.sizes[item.size]) for item in found.items if item.destinations] == [
        (0, (1,), 3.0),
        (0, (1,), 3.0),
        (1, (0,), 2.0),
        (1, (0,), 2.0),
    ]


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("alltoall", [[0, 1], [1, 0]], "only alltoallv has a size for each pair"),
        ("alltoallv", [[0, 1]], "takes 2 rows of 2 sizes"),
        ("alltoallv", [[0, -1], [1, 0]], "0 bytes or more"),
        ("alltoallv", [[0, float("nan")], [1, 0]], "0 bytes or more"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, sizes, message):
    with pytest.raises(SpecError, match=message):
        demand(collective(name, 2), 1, sizes)
