"""Lowering: every collective is proved in both placements, every link keeps the order of the schedule."""

import numpy as np
import pytest
from hypothesis import given, settings
from synth_cases import random_topologies, random_topology
from synth_moves import moves, several, shuffle

from commlib import collectives
from commlib.collectives import Placement
from commlib.dsl import Program
from commlib.errors import ProgramError
from commlib.ir.algorithm import SENDS, Algorithm
from commlib.ir.trace import run_trace
from commlib.topology import fully_connected, ring
from commlib.verify import verify
from synth.columns import trace_rows
from synth.errors import ScheduleError
from synth.lowering import compiled, lower, recorded
from synth.moves import Move, Moves, Parcel, timed


def everything(ranks):
    return [*several(ranks), collectives.allreduce(ranks, ranks), collectives.allreduce(ranks, 2 * ranks - 1)]


@settings(max_examples=8, deadline=None)
@given(random_topologies(2, 5))
def test_every_collective_is_proved_in_both_placements(topology):
    for collective in everything(topology.ranks):
        algorithm = compiled(moves(topology, collective))
        report = verify(algorithm)
        assert report.proved == frozenset(Placement), f"{collective} on {topology.name}: {report.text()}"


def sent(algorithm: Algorithm) -> dict[tuple[int, int, int], int]:
    """How many messages each connection (source, target, channel) carries."""
    block = algorithm.step_threadblock[SENDS[algorithm.op]]
    ends = (algorithm.tb_rank[block], algorithm.tb_send[block], algorithm.tb_channel[block])
    found: dict[tuple[int, int, int], int] = {}
    for key in zip(*(end.tolist() for end in ends), strict=True):
        found[key] = found.get(key, 0) + 1
    return found


def slots_sent(algorithm: Algorithm, source: int, target: int) -> list[tuple[int, int]]:
    """(buffer, index) of what a link's connection carries, in its order."""
    block = algorithm.step_threadblock
    mine = SENDS[algorithm.op] & (algorithm.tb_rank[block] == source) & (algorithm.tb_send[block] == target)
    pairs = zip(algorithm.source_buffer[mine].tolist(), algorithm.source_index[mine].tolist(), strict=True)
    return list(pairs)


@settings(max_examples=10, deadline=None)
@given(random_topologies(3, 6))
def test_links_carry_chunks_in_the_order_of_the_schedule(topology):
    found = moves(topology, collectives.allgather(topology.ranks, 2))
    algorithm = compiled(found)
    for source, target in topology.links:
        here = (found.source == source) & (found.target == target)
        wanted = [
            (0, parcel % 2) if parcel // 2 == source else (1, parcel)
            for parcel in found.parcel[here][np.argsort(found.start[here], kind="stable")].tolist()
        ]
        assert slots_sent(algorithm, source, target) == wanted


def test_a_deep_chunk_that_goes_first_stays_first():
    """By depth alone the compiler would send rank 1's own chunk before the one that comes from rank 0."""
    costs = moves(ring(3), collectives.allgather(3)).costs
    parcels = tuple(Parcel({r: (0,)}, dict.fromkeys(range(3), (r,))) for r in range(3))
    rows = [(0, 0, 0, 1), (1, 0, 1, 2), (2, 1, 1, 2), (0, 2, 2, 0), (1, 2, 0, 1), (3, 1, 2, 0)]
    order = [Move(parcel, source, target, False) for _, parcel, source, target in rows]
    found = timed(collectives.allgather(3), costs, parcels, [row[0] for row in rows], order)
    assert slots_sent(compiled(found), 1, 2) == [(1, 0), (0, 0)]


def test_structure_of_a_ring():
    algorithm = compiled(moves(ring(4), collectives.allgather(4)))
    assert sum(sent(algorithm).values()) == 12
    assert algorithm.scratch_chunks == (0, 0, 0, 0)
    assert {channel for _, _, channel in sent(algorithm)} == {0}
    doubled = compiled(moves(ring(4), collectives.allgather(4)), instances=2)
    assert sum(sent(doubled).values()) == 24
    assert {channel for _, _, channel in sent(doubled)} == {0, 1}
    assert verify(doubled).proved == frozenset(Placement)


def test_in_place_alltoall_waits_in_scratch_only_where_it_must():
    algorithm = compiled(moves(fully_connected(4), collectives.alltoall(4)))
    assert verify(algorithm).proved == frozenset(Placement)
    assert max(algorithm.scratch_chunks) <= 3


def test_a_rotation_in_place_on_each_rank():
    trace = lower(moves(ring(3), shuffle(3)))
    for placement in Placement:
        table, memory = run_trace(trace, placement)
        first = 0 if placement is Placement.IN else 3
        wanted = [table.initial(1, k) for k in (1, 2, 0)] + [table.initial(0, 0)]
        assert memory[1][first : first + 4] == wanted


def test_contributions_of_one_rank_to_one_sum_come_together_first():
    twice = collectives.custom("twice", [2, 2], [1, 0], {(0, 0): [(0, 0), (0, 1), (1, 0), (1, 1)]}, [(0, 0), (0, 0)])
    algorithm = compiled(moves(ring(2), twice))
    assert sum(sent(algorithm).values()) == 1
    assert verify(algorithm).proved == frozenset(Placement)
    alone = collectives.custom("alone", [2, 1], [1, 1], {(0, 0): [(0, 0), (0, 1)], (1, 0): [(1, 0)]}, [(0, 1), (0, 0)])
    assert verify(compiled(moves(ring(2), alone))).proved == frozenset(Placement)


def test_what_is_not_there_and_links_that_are_missing_are_told():
    good = moves(ring(3), collectives.broadcast(3))
    bad = Moves(
        *(getattr(good, name) for name in ("collective", "costs", "parcels", "start", "parcel")),
        *(good.target, good.source, good.reduces),
    )
    with pytest.raises(ScheduleError, match="has nothing of parcel 0 to send"):
        lower(bad)
    with pytest.raises(ProgramError, match="has no link"):
        lower(good, topology=random_topology(0, 3).__class__("none", 3, {}))


def test_lowering_is_deterministic():
    topology = random_topology(7, 5)
    one, other = (compiled(moves(topology, collectives.allreduce(5, 5))) for _ in range(2))
    assert one == other


@settings(max_examples=12, deadline=None)
@given(random_topologies(2, 6))
def test_columns_are_what_the_dsl_records(topology):
    for collective in [*everything(topology.ranks), shuffle(topology.ranks)]:
        found = moves(topology, collective)
        assert lower(found, "same") == recorded(found, Program(collective, "same")), collective.name
    assert trace_rows(found) is not None
