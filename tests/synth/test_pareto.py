"""SCCL's frontier: the published points, their proofs, and their schedules."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commlib.errors import SpecError, TopologyError
from synth.compose import allreduce_moves
from synth.engine import Budget
from synth.errors import SynthesisError
from synth.pareto import Frontier, lane_topology, pareto
from synth.schedule import check

TWO_LANES = {(0, 1), (0, 4), (1, 3), (2, 3), (2, 6), (4, 5), (5, 7), (6, 7)}
ONE_LANE = {(0, 2), (0, 3), (1, 2), (1, 5), (3, 7), (4, 6), (4, 7), (5, 6)}
DGX1 = {end: lanes for pairs, lanes in ((TWO_LANES, 2), (ONE_LANE, 1)) for a, b in pairs for end in ((a, b), (b, a))}


def ring(ranks: int) -> dict[tuple[int, int], int]:
    return {(a, (a + way) % ranks): 1 for a in range(ranks) for way in (1, -1)}


def points(frontier: Frontier) -> list[tuple[int, int, int]]:
    return [(point.steps, point.rounds, point.chunks) for point in frontier.points]


@pytest.mark.parametrize(
    ("lanes", "ranks", "name", "expected"),
    [
        (DGX1, 8, "allgather", [(2, 3, 2), (3, 7, 6)]),
        (DGX1, 8, "reducescatter", [(2, 3, 2), (3, 7, 6)]),
        (DGX1, 8, "allreduce", [(4, 6, 16), (6, 14, 48)]),
        (DGX1, 8, "alltoall", [(2, 8, 3)]),
        (ring(8), 8, "allgather", [(4, 7, 2)]),
        (ring(8), 8, "alltoall", [(4, 8, 1)]),
        (ring(3), 3, "allgather", [(1, 1, 1)]),
    ],
)
def test_the_whole_frontier_is_found_and_proven(lanes, ranks, name, expected):
    frontier = pareto(lanes, ranks, name, budget=Budget(seconds=60))
    assert points(frontier) == expected
    assert frontier.complete
    assert all(point.proven and "linear program" in point.proof for point in frontier.points)
    assert frontier.points[-1].rate == frontier.limit


def test_schedules_keep_steps_and_rounds():
    """As long as the rounds say, valid without regard to steps, and nothing is sent in the step in which it arrives."""
    for point in pareto(DGX1, 8, "allgather").points:
        (schedule,), (transfers,) = point.phases, point.to_transfers()
        check(schedule)
        problem = schedule.problem
        assert len(point.rounds_of) == point.steps
        assert sum(point.rounds_of) <= point.rounds
        round_ticks = 2 * int(problem.costs.latency.min())
        assert schedule.ticks <= point.rounds * round_ticks
        starts = [sum(point.rounds_of[:step]) * round_ticks for step in range(point.steps + 1)]
        came = {(i, r): -1 for i, item in enumerate(problem.demand.items) for r in [item.origin]}
        steps = [max(step for step in range(point.steps) if starts[step] <= t.start) for t in transfers]
        for transfer, step in zip(transfers, steps, strict=True):
            came[transfer.item, problem.ends[transfer.link][1]] = step
        for transfer, step in zip(transfers, steps, strict=True):
            assert came[transfer.item, problem.ends[transfer.link][0]] < step


def test_allreduce_is_made_of_its_phases():
    point = pareto(ring(4), 4, "allreduce").points[0]
    assert (point.steps, point.rounds, point.chunks) == (4, 6, 8)
    scatter, gather = point.phases
    check(scatter)
    check(gather)
    assert allreduce_moves(scatter, gather).ticks <= point.rounds * int(gather.problem.costs.latency.max())


def test_a_broadcast_has_no_last_point_and_says_so():
    frontier = pareto(ring(8), 8, "broadcast", root=3, max_steps=6)
    assert points(frontier) == [(4, 4, 2), (5, 5, 4), (6, 6, 6)]
    assert all(point.proven for point in frontier.points)
    assert frontier.limit == Fraction(1, 2)
    assert not frontier.complete
    assert "more steps" in frontier.note


def test_a_limit_of_chunks_leaves_points_unproven():
    frontier = pareto(DGX1, 8, "allgather", max_chunks=1)
    assert points(frontier)[0] == (2, 2, 1)
    assert not frontier.points[0].proven
    assert "at least 3/2" in frontier.points[0].proof
    assert not frontier.complete


def brute_force(lanes: dict[tuple[int, int], int], ranks: int, steps: int) -> int:
    """The fewest rounds of an allgather of one chunk in so many steps: over all sets that may be sent in each."""
    links = sorted(lanes)

    def rounds_from(held: frozenset[tuple[int, int]], left: int) -> int:
        if len(held) == ranks * ranks:
            return left
        if not left:
            return 10**6
        best = 10**6
        offers = [[None, *((e, i) for i in range(ranks) if (i, e[0]) in held and (i, e[1]) not in held)] for e in links]
        for choice in product(*[_subsets(offer) for offer in offers]):
            sent = [(link, item) for link, group in zip(links, choice, strict=True) for item in group]
            if not sent:
                continue
            need = max(-(-sum(1 for l2, _ in sent if l2 == link) // lanes[link]) for link in links)
            now = held | {(item, link[1]) for link, item in sent}
            best = min(best, max(1, need) + rounds_from(frozenset(now), left - 1))
        return best

    return rounds_from(frozenset((r, r) for r in range(ranks)), steps)


def _subsets(offer: list[tuple[tuple[int, int], int] | None]) -> list[list[int]]:
    items = [each[1] for each in offer if each is not None]
    return [[item for k, item in enumerate(items) if mask >> k & 1] for mask in range(1 << len(items))]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.booleans())
def test_brute_force_agrees_on_three_ranks(first, second, third, both):
    lanes = {(0, 1): first, (1, 2): second, (2, 0): third}
    if both:
        lanes[1, 0] = 1
    frontier = pareto(lanes, 3, "allgather", max_chunks=1, max_steps=2)
    assert frontier.points[0].steps == 2
    assert frontier.points[0].rounds == brute_force(lanes, 3, 2)


def test_a_round_takes_the_same_time_on_every_link():
    topology = lane_topology({(0, 1): 2, (1, 0): 3}, 2)
    assert {pair: link.latency(1) for pair, link in topology.links.items()} == {(0, 1): 3.0, (1, 0): 2.0}


def test_what_cannot_be_is_refused():
    with pytest.raises(TopologyError, match="at least one lane"):
        pareto({(0, 1): 0, (1, 0): 1}, 2, "allgather")
    with pytest.raises(SpecError, match="alltoallv"):
        pareto(ring(3), 3, "alltoallv")
    with pytest.raises(SynthesisError, match="rank 1 cannot be reached"):
        pareto({(1, 0): 1}, 2, "allgather")


def test_out_of_time_gives_what_there_is():
    frontier = pareto(DGX1, 8, "allgather", budget=Budget(seconds=0))
    assert not frontier.complete
    assert "time ran out" in frontier.note
