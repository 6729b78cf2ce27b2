"""What permutations do to links, resources and items, against slow and obvious definitions; groups and orbits."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commlib.collectives import allgather, alltoall, alltoallv, broadcast, custom, gather, reducescatter
from commlib.demand import Demand, demand
from commlib.topology import Link, Resource, Topology, cost_table, fully_connected, hypercube, named, ring, torus
from synth.symmetry import Actions, Symmetry, likely, orbits, rotation

COLLECTIVES = [allgather, alltoall, reducescatter, broadcast, gather]


def actions_of(topology: Topology, wanted: Demand) -> Actions:
    return Actions(cost_table(topology, wanted.sizes), wanted)


def all_gather(topology: Topology) -> Actions:
    return actions_of(topology, demand(allgather(topology.ranks), 1024))


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Random small topologies, few kinds of links, resources that some of them share."""
    ranks = draw(st.integers(2, 5))
    pairs = [(a, b) for a in range(ranks) for b in range(ranks) if a != b]
    names = ["x", "y", "z"]
    kept = draw(st.lists(st.sampled_from(pairs), unique=True, min_size=1))
    links = {
        pair: Link(1e-6 * draw(st.integers(0, 1)), 1e-9, tuple(draw(st.lists(st.sampled_from(names), unique=True))))
        for pair in kept
    }
    return Topology("random", ranks, links, {name: Resource() for name in names})


def demands(ranks: int) -> st.SearchStrategy[Demand]:
    return st.sampled_from([demand(make(ranks), 1024) for make in COLLECTIVES])


def links_of(actions: Actions) -> dict[tuple[int, int], tuple[int, frozenset[int]]]:
    """(latency, shared resources) of each link; all links of these tests keep all their resources equally long."""
    costs = actions.costs
    return {
        (int(a), int(b)): (
            int(costs.latency[e, 0]),
            frozenset(costs.use_resource[costs.use_start[e] + 1 : costs.use_start[e + 1]].tolist()),
        )
        for e, (a, b) in enumerate(zip(costs.source, costs.target, strict=True))
    }


def keeps_slowly(actions: Actions, image: tuple[int, ...]) -> bool:
    """Whether links map to equal links, some renaming of resources fits, and items map to items; by trying all."""
    links, wanted = links_of(actions), actions.demand
    moved = {(image[a], image[b]): kind for (a, b), kind in links.items()}
    used = sorted({name for _, names in links.values() for name in names})
    if moved.keys() != links.keys() or any(moved[pair][0] != links[pair][0] for pair in links):
        return False
    fits = any(
        all(frozenset(renamed[name] for name in moved[pair][1]) == links[pair][1] for pair in links)
        for renaming in permutations(used)
        for renamed in [dict(zip(used, renaming, strict=True))]
    )
    items = sorted((item.origin, item.destinations, item.size) for item in wanted.items)
    images = sorted((image[i.origin], tuple(sorted(image[d] for d in i.destinations)), i.size) for i in wanted.items)
    return fits and items == images


def is_free_slowly(actions: Actions, image: np.ndarray) -> bool:
    links = links_of(actions)
    fixes = any(image[rank] == rank for rank in range(len(image)))
    return not fixes and not any(links[a, b][1] & links[image[a], image[b]][1] for a, b in links)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_what_keeps_a_problem(data):
    topology = data.draw(topologies())
    actions = actions_of(topology, data.draw(demands(topology.ranks)))
    for image in permutations(range(topology.ranks)):
        array = np.array(image)
        if actions.keeps(array):
            assert keeps_slowly(actions, image)
            assert actions.is_free(array) == is_free_slowly(actions, array)
        elif keeps_slowly(actions, image):  # which of several alike resources is which may not have been found
            assert any(len(names) > 1 for _, names in links_of(actions).values())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_groups_are_groups_and_free(data):
    topology = data.draw(topologies())
    actions = actions_of(topology, data.draw(demands(topology.ranks)))
    candidates = data.draw(st.lists(st.permutations(range(topology.ranks)), max_size=6))
    group, left = actions.group(np.array(image) for image in candidates)
    elements = {tuple(row) for row in group.images.tolist()}
    assert tuple(range(topology.ranks)) == tuple(group.images[0].tolist())
    assert len(elements) == group.order <= topology.ranks
    for row in group.images:
        assert all(tuple(row[other].tolist()) in elements for other in group.images)
        assert actions.keeps(row)
        assert (row == group.images[0]).all() or is_free_slowly(actions, row)
    assert all(tuple(image.tolist()) not in elements for image in left)
    assert_orbits(actions, group)


def assert_orbits(actions: Actions, group: Symmetry) -> None:
    """Orbits are what the images of a thing are; the least stands for all."""
    found, maps = orbits(actions, group), [(actions.items(row), actions.resources(row)) for row in group.images]
    for item in range(len(actions.demand.items)):
        assert found.item_of[item] == min(to[item] for to, _ in maps)
    assert found.representatives == tuple(sorted(set(found.item_of.tolist())))
    for resource in set(actions.costs.use_resource.tolist()):
        assert found.slot_of[resource] == min(to[resource] for _, to in maps)


@pytest.mark.parametrize(
    ("topology", "order"),
    [(ring(6), 6), (torus((3, 4)), 12), (torus((2, 2, 3)), 12), (hypercube(4), 16), (fully_connected(7), 7)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_likely_permutations_span_the_translations(topology, order):
    actions = all_gather(topology)
    group, _ = actions.group(likely(topology.ranks))
    assert group.order == order
    assert_orbits(actions, group)
    assert orbits(actions, group).representatives == (0,)


def test_a_group_knows_its_generators_and_does_without():
    actions = all_gather(torus((4, 4)))
    group, _ = actions.group([rotation(16, 1, 4), rotation(16, 4, 16)])
    assert group.order == 16
    assert group.generators is not None
    assert len(group.generators) == 2
    bare = orbits(actions, Symmetry(group.images))
    assert np.array_equal(bare.slot_of, orbits(actions, group).slot_of)


def test_rotations_are_taccls():
    assert rotation(8, 2, 8).tolist() == [2, 3, 4, 5, 6, 7, 0, 1]
    assert rotation(8, 1, 4).tolist() == [1, 2, 3, 0, 5, 6, 7, 4]


def test_a_shared_bus_is_not_moved_by_a_rotation_of_its_own_ranks():
    links = {(a, b): Link(1e-6, 1e-9, ("bus",)) for a in range(3) for b in range(3) if a != b}
    actions = all_gather(Topology("bus", 3, links, {"bus": Resource()}))
    assert actions.keeps(rotation(3, 1, 3))
    assert not actions.is_free(rotation(3, 1, 3))
    group, left = actions.group([rotation(3, 1, 3)])
    assert group.order == 1
    assert len(left) == 1


def test_the_order_in_which_a_link_names_its_resources_does_not_matter():
    links = {
        (a, b): Link(1e-6, 1e-9, (f"in {b}", f"out {a}")[:: 1 if a < b else -1]) for a, b in permutations(range(4), 2)
    }
    names = [f"{way} {rank}" for way in ("in", "out") for rank in range(4)]
    actions = all_gather(Topology("switch", 4, links, {name: Resource() for name in names}))
    assert actions.is_free(rotation(4, 1, 4))


def test_generators_that_do_not_keep_the_collective_are_left_out():
    actions = actions_of(ring(4), demand(broadcast(4), 1024))
    assert actions.items(rotation(4, 1, 4)) is None
    group, left = actions.group([rotation(4, 1, 4)])
    assert group.order == 1
    assert len(left) == 1


def test_sizes_of_alltoallv_break_symmetry():
    sizes = [[0 if a == b else 10 for b in range(4)] for a in range(4)]
    assert actions_of(ring(4), demand(alltoallv(4), 1, sizes)).keeps(rotation(4, 1, 4))
    sizes[0][1] = 20
    assert not actions_of(ring(4), demand(alltoallv(4), 1, sizes)).keeps(rotation(4, 1, 4))


def test_items_with_several_destinations():
    wanted = {(rank, 0): [((rank + away) % 6, 0)] for rank in range(6) for away in (2,)}
    two = {**wanted, **{(rank, 1): [((rank + 4) % 6, 0)] for rank in range(6)}}
    pairs = custom("pairs", [1] * 6, [2] * 6, two)
    actions = actions_of(ring(6), demand(pairs, 1024))
    assert actions.demand.items[0].destinations == (2, 4)
    assert actions.items(rotation(6, 1, 6)).tolist() == [1, 2, 3, 4, 5, 0]
    two[0, 1] = [(3, 0)]
    assert actions_of(ring(6), demand(custom("odd", [1] * 6, [2] * 6, two), 1024)).items(rotation(6, 1, 6)) is None


def test_what_a_sketch_allows_is_kept_too():
    actions = all_gather(ring(4))
    allowed = np.ones((4, actions.costs.links), dtype=bool)
    allowed[0, 0] = False
    assert not Actions(actions.costs, actions.demand, allowed).keeps(rotation(4, 1, 4))
    for _ in range(4):
        links, items = actions.links(rotation(4, 1, 4)), actions.items(rotation(4, 1, 4))
        forbidden = [(items[i], links[e]) for i, e in np.argwhere(~allowed)]
        allowed[tuple(np.array(forbidden).T)] = False
    assert Actions(actions.costs, actions.demand, allowed).keeps(rotation(4, 1, 4))


def test_nics_hold_the_nodes_of_a_machine():
    actions = all_gather(named("ndv2", nodes=3))
    group, left = actions.group([rotation(24, 8, 24), rotation(24, 4, 8)])
    assert group.order == 3
    assert len(left) == 1
