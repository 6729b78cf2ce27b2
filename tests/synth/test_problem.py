"""Problems: distances, slots and representatives, against slow definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commlib.collectives import allgather, alltoall, gather
from commlib.demand import demand
from commlib.topology import Link, Resource, Topology, cost_table, ring, torus
from synth.problem import NEVER, Problem, Rules
from synth.symmetry import Actions, Symmetry, rotation


def problem_of(topology: Topology, wanted, rules: Rules = Rules(), *generators) -> Problem:  # noqa: B008
    costs = cost_table(topology, wanted.sizes)
    symmetry, _ = Actions(costs, wanted).group(generators)
    return Problem(topology, wanted, costs, symmetry, rules)


def test_links_by_rank():
    problem = problem_of(ring(4), demand(allgather(4), 1024))
    assert problem.ends[:4] == ((0, 1), (0, 3), (1, 0), (1, 2))
    assert problem.outgoing[0] == (0, 1)
    assert [problem.ends[e][0] for e in problem.incoming[0]] == [1, 3]


def test_representatives_leave_out_items_that_go_nowhere():
    problem = problem_of(ring(4), demand(alltoall(4), 1024))
    assert len(problem.demand.items) == 16
    assert len(problem.representatives) == 12
    assert len(problem_of(ring(4), demand(gather(4), 1024)).representatives) == 3


def test_a_transfer_takes_slots_that_stand_for_orbits():
    links = {(a, b): Link(0, 1e-9, (f"out {a}",)) for a in range(3) for b in range(3) if a != b}
    shared = Topology("ports", 3, links, {f"out {a}": Resource() for a in range(3)})
    problem = problem_of(shared, demand(allgather(3), 1000), Rules(), rotation(3, 1, 3))
    assert problem.symmetry.order == 3
    slots = [[slot for slot, _ in problem.uses[0][e]] for e in range(6)]
    assert len({row[0] for row in slots}) == 2  # a link clockwise, a link the other way
    assert len({row[1] for row in slots}) == 1  # one out-port for all
    assert all(ticks == problem.latencies[0][0] for _, ticks in problem.uses[0][0])


def test_a_proof_about_symmetric_schedules_is_one_about_all_only_where_the_sketch_says_so():
    wanted = demand(allgather(4), 1024)
    assert problem_of(ring(4), wanted).quotient_is_exact
    assert not problem_of(ring(4), wanted, Rules(), rotation(4, 1, 4)).quotient_is_exact
    assert problem_of(ring(4), wanted, Rules(symmetric=True), rotation(4, 1, 4)).quotient_is_exact


@pytest.mark.parametrize("generators", [(), (rotation(16, 1, 4), rotation(16, 4, 16))])
def test_distances_on_a_torus(generators):
    problem = problem_of(torus((4, 4), Link(0, 1e-9)), demand(allgather(16), 1000), Rules(), *generators)
    one = problem.latencies[0][0]
    hops = [min(r // 4, 4 - r // 4) + min(r % 4, 4 - r % 4) for r in range(16)]
    assert problem.distances(0) == [one * count for count in hops]
    assert problem.distances_to(0, 0) == problem.distances(0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_distances_against_floyd_and_warshall(data):
    ranks = data.draw(st.integers(2, 6))
    pairs = [(a, b) for a in range(ranks) for b in range(ranks) if a != b]
    links = {pair: Link(data.draw(st.integers(1, 9)) * 1e-6) for pair in data.draw(st.lists(st.sampled_from(pairs)))}
    topology = Topology("random", ranks, links)
    wanted = demand(allgather(ranks), 1024)
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=ranks * len(links), max_size=ranks * len(links))))
    allowed = allowed.reshape(ranks, len(links)).astype(bool)
    costs = cost_table(topology, wanted.sizes)
    problem = Problem(topology, wanted, costs, Symmetry.trivial(ranks), Rules(allowed))
    for item in range(ranks):
        best = [[0 if a == b else int(NEVER) for b in range(ranks)] for a in range(ranks)]
        for link, (a, b) in enumerate(problem.ends):
            if allowed[item, link]:
                best[a][b] = problem.latencies[0][link]
        for middle in range(ranks):
            for a in range(ranks):
                for b in range(ranks):
                    best[a][b] = min(best[a][b], best[a][middle] + best[middle][b])
        assert problem.distances(item) == best[item]
        assert problem.distances_to(item, 0) == [row[0] for row in best]
