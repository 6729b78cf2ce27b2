"""The growth bound: broadcasts behind ports take the optimum of the postal model, and no schedule beats it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import problem, random_topologies

from commlib.bounds import Work, growth_bound
from commlib.bounds.growth import Ways
from commlib.collectives import collective
from commlib.demand import demand
from commlib.topology import cost_table, named
from synth.engine import Budget
from synth.schedule import makespan
from synth.spread import first_plan


def bound_of(topology, wanted):
    needed = demand(wanted, (1 << 20) / wanted.chunks)
    posed = topology.reversed() if needed.reduces else topology
    return growth_bound(Work(cost_table(posed, needed.sizes), needed))


@pytest.mark.parametrize(
    ("ways", "number", "time"),
    [
        (Ways(1, 1, 1), 15, 4),  # binomial: 1, 2, 4, 8
        (Ways(1, 1, 1), 16, 5),
        (Ways(1, 1, 3), 1, 3),
        (Ways(1, 1, 3), 5, 7),  # postal: arrivals at 3, 4, 5, then 6 twice, ...
        (Ways(2, 1, 1), 8, 2),
        (Ways(3, 10, 10), 3, 10),
    ],
)
def test_the_nth_arrival(ways, number, time):
    assert ways.nth(number) == brute(ways, number) == (time if number != 5 else 6)


def brute(ways, number):
    """Every holder's arrivals listed, tick by tick."""
    holders, arrived, now = [0], [], 0
    while len(arrived) < number:
        now += 1
        new = [
            now
            for since in holders
            for _ in range(ways.ways)
            if now - since >= ways.latency and (now - since - ways.latency) % ways.ticks == 0
        ]
        arrived += new
        holders += new
    return arrived[number - 1]


@pytest.mark.parametrize(
    ("topology", "wanted", "time"),
    [
        ("dgx2", collective("broadcast", 16), 32),
        ("dgx2", collective("reduce", 16), 32),
        ("dgx2", collective("broadcast", 16, 8), 11),
        ("fully_connected:8", collective("broadcast", 8), 10),
    ],
)
def test_known_optima(topology, wanted, time):
    found = bound_of(named(topology, cost="taccl"), wanted)
    assert round(found.seconds * 1e6, 6) == time
    assert "must come to" in found.certificate.text()
    assert found.certificate.as_json()["ticks"] == found.ticks


@settings(max_examples=80, deadline=None)
@given(
    random_topologies(2, 7),
    st.sampled_from(["broadcast", "allgather", "scatter", "alltoall", "sendrecv"]),
    st.integers(1, 4),
)
def test_no_schedule_beats_it(topology, name, chunks):
    posed = problem(topology, collective(name, topology.ranks, chunks), symmetric=False)
    found = growth_bound(Work(posed.costs, posed.demand))
    assert found is None or found.ticks <= makespan(posed, first_plan(posed, Budget()))
