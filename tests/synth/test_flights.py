"""Flights and pictures: an algorithm run by the cost model takes what its schedule takes, and is drawn so."""

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from synth_cases import MIB, TEN, random_topologies
from synth_moves import moves, several

from commlib import OneSidedProgram, collectives
from commlib.algorithms import find
from commlib.compiler import compile_trace
from commlib.errors import SpecError, TopologyError
from commlib.topology import Link, Topology, fully_connected, line, ring
from synth.flights import content_name, flights_of_algorithm, flights_of_moves
from synth.lowering import compiled
from synth.picture import route_lines, timeline_lines, timeline_svg

RING = moves(ring(3), collectives.allgather(3))


@settings(max_examples=6, deadline=None)
@given(random_topologies(2, 5))
def test_compiled_copies_arrive_no_later_than_scheduled(topology):
    for collective in several(topology.ranks):
        if collective.reduces or "alltoall" in collective.name or collective.name in ("shuffle", "sendrecv"):
            continue  # sums are added in order of arrival, and what waits in scratch is not what is timed here
        found = moves(topology, collective)
        flights = flights_of_algorithm(compiled(found), topology, MIB)
        assert len(flights) == len(found)
        assert sorted(f[2:4] for f in flights) == sorted(f[2:4] for f in flights_of_moves(found))


@pytest.mark.parametrize("make", [collectives.allgather, collectives.reducescatter, collectives.alltoall])
def test_the_algorithm_takes_what_the_schedule_takes(make):
    for topology in (ring(5), fully_connected(4), line(4, link=TEN)):
        found = moves(topology, make(topology.ranks))
        flights = flights_of_algorithm(compiled(found), topology, MIB)
        assert max(f.arrival for f in flights) == pytest.approx(found.seconds)


def test_a_library_algorithm_with_fused_steps_and_counts():
    ring_allreduce = compile_trace(find("ring_allreduce").trace(4))
    flights = flights_of_algorithm(ring_allreduce, ring(4, link=TEN), MIB)
    assert len(flights) == 24
    assert max(f.arrival for f in flights) == pytest.approx(60e-6)
    assert {f.what for f in flights} == {f"sum of chunk {k}" for k in range(4)}


def test_what_cannot_run_there_is_told():
    algorithm = compiled(RING)
    with pytest.raises(TopologyError, match="has 4 ranks and"):
        flights_of_algorithm(algorithm, ring(4), MIB)
    with pytest.raises(TopologyError, match="has no link"):
        flights_of_algorithm(algorithm, line(3), MIB)


def test_names():
    assert content_name(frozenset({(2, 1)})) == "chunk 1 of rank 2"
    assert content_name(frozenset({(0, 1), (1, 1)})) == "sum of chunk 1"
    assert content_name(frozenset({(0, k) for k in range(6)})) == "sum of chunk 0, 1, 2, 3, ..."
    assert content_name(frozenset()) == "unknown"


def test_routes_and_timeline():
    chain = flights_of_moves(moves(line(3, link=TEN), collectives.broadcast(3, 2)))
    assert list(route_lines(chain)) == ["chunk 0 of rank 0: 0 -> 1 -> 2", "chunk 1 of rank 0: 0 -> 1 -> 2"]
    assert list(route_lines(chain, most=1))[-1] == "... and 1 more"
    assert list(timeline_lines(chain, 12)) == [
        "link   |0      30 us|",
        "0 -> 1 |AAAABBBB....|",
        "1 -> 2 |....AAAABBBB|",
        "  A chunk 0 of rank 0   B chunk 1 of rank 0",
    ]
    assert list(timeline_lines([])) == ["nothing takes time"]
    assert "... and 5 more links" in list(timeline_lines(flights_of_moves(RING), 20, most=1))


def test_one_sided_steps_cross_no_link():
    program = OneSidedProgram("direct", collectives.allgather(3))
    program.threadblock(0).put(program.input(0)[0], program.output(1)[0])
    with pytest.raises(SpecError, match="direct has one-sided steps"):
        flights_of_algorithm(program.algorithm(), ring(3, link=TEN), MIB)


def test_the_svg_is_well_formed_and_has_a_bar_for_each_flight():
    free = Topology("free & <easy>", 3, {pair: Link(0.0, TEN.beta) for pair in ring(3).links})
    flights = flights_of_moves(moves(free, collectives.allgather(3)))
    root = ElementTree.fromstring(timeline_svg(flights, free.name))
    titles = [element.text for element in root.iter() if element.tag.endswith("title")]
    assert len(titles) == len(flights)
    assert "chunk 0 of rank 0: 0 to 10 us" in titles
