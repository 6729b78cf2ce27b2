"""What takes a resource for no time neither waits there nor keeps others: in engines, retiming and proofs alike."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commlib.collectives import Collective, allgather, alltoallv, broadcast, collective
from commlib.demand import Demand, demand
from commlib.topology import Link, Resource, Topology, cost_table, ring
from synth.engine import Budget
from synth.listing import list_schedule
from synth.moves import Move, Parcel, check_moves
from synth.own_first import keeps_own_first, with_own_first
from synth.pipeline import Question, solve
from synth.problem import Problem, Rules
from synth.retiming import in_sequence, listed
from synth.schedule import Transfer, earliest
from synth.symmetry import Symmetry
from synth.trees import tree_allreduce

ENGINES = ("exact", "taccl", "bandwidth", "greedy", "auto")
NEARLY_EMPTY = [[0, 5, 1], [0, 5, 1], [2, 0, 1]]


def one_way_ring() -> Topology:
    """Three ranks, pipelined links of 1 s and 3 s a byte."""
    return Topology("one way", 3, {(r, (r + 1) % 3): Link(1, 3, (), True) for r in range(3)})


def posed(topology: Topology, asked: Demand, rules: Rules | None = None) -> Problem:
    costs = cost_table(topology, asked.sizes)
    return Problem(topology, asked, costs, Symmetry.trivial(topology.ranks), rules or Rules())


def optimum(topology: Topology, asked: Demand, horizon: int) -> int:
    """The least time in seconds, from what links and resources mean; times must be whole seconds."""
    cp_model = pytest.importorskip("ortools.sat.python.cp_model")
    model, taken = cp_model.CpModel(), {}
    end = model.new_int_var(0, horizon, "")
    for item in asked.items:
        size, into = asked.sizes[item.size], {}
        there = [model.new_int_var(0, horizon, "") for _ in range(topology.ranks)]
        hops = [model.new_int_var(0, topology.ranks, "") for _ in range(topology.ranks)]
        crosses = {pair: model.new_bool_var("") for pair in topology.links if pair[1] != item.origin}
        model.add(there[item.origin] == 0)
        for (a, b), flag in crosses.items():
            link, start = topology.links[a, b], model.new_int_var(0, horizon, "")
            into.setdefault(b, []).append(flag)
            model.add(start >= there[a]).only_enforce_if(flag)
            model.add(there[b] >= start + round(link.latency(size))).only_enforce_if(flag)
            model.add(hops[b] > hops[a]).only_enforce_if(flag)
            busy = {(a, b): link.busy(size)}
            busy |= {name: topology.resources[name].busy(link, size) for name in link.resources}
            for used, ticks in busy.items():
                interval = model.new_optional_fixed_size_interval_var(start, round(ticks), flag, "")
                taken.setdefault(used, []).extend([interval] * (ticks > 0))
        for (a, _), flag in crosses.items():
            if a != item.origin:
                model.add_bool_or([*into.get(a, []), ~flag])
        for rank in item.destinations:
            model.add_bool_or(into.get(rank, []))
            model.add(end >= there[rank])
    for intervals in taken.values():
        model.add_no_overlap(intervals)
    model.minimize(end)
    solver = cp_model.CpSolver()
    solver.parameters.catch_sigint_signal = False  # it would leave the signal without a handler
    solver.parameters.num_workers = 1
    assert solver.solve(model) == cp_model.OPTIMAL
    return round(solver.objective_value)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Tiny ones, where alphas, betas, sizes and what resources take are often nothing."""
    chance = random.Random(draw(st.integers(0, 10**6)))
    ranks, pairs = draw(st.integers(2, 3)), set()
    pairs |= {(r, (r + 1) % ranks) for r in range(ranks)}
    pairs |= {(a, b) for a, b in product(range(ranks), repeat=2) if a != b and chance.random() < 0.4}
    ports = {name: Resource(chance.choice([None, 0, 0, 2])) for name in ("left", "right")}
    links = {}
    for pair in sorted(pairs):
        shared = tuple(name for name in ports if chance.random() < 0.4)
        links[pair] = Link(chance.choice([0, 1, 2, 7]), chance.choice([0, 1, 3]), shared, chance.random() < 0.7)
    topology = Topology("tiny", ranks, links, ports)
    name = draw(st.sampled_from(["allgather", "broadcast", "alltoall", "alltoallv", "alltoallv"]))
    sizes = [[chance.choice([0, 0, 1, 2, 5]) for _ in range(ranks)] for _ in range(ranks)]
    return Question(topology, collective(name, ranks), 1.0, None, sizes if name == "alltoallv" else None)


def test_a_ring_with_messages_of_no_bytes():
    asked = Question(one_way_ring(), alltoallv(3), 1.0, None, NEARLY_EMPTY)
    assert optimum(asked.topology, demand(alltoallv(3), 1.0, NEARLY_EMPTY), 60) == 19
    for engine in ("exact", "taccl", "auto"):
        found = solve(asked, engine, Budget(seconds=20))
        check_moves(found.moves)
        assert (found.time, found.bound, found.proven) == (19, 19, True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(questions(), st.sampled_from(ENGINES))
def test_an_independent_optimum_agrees(asked, engine):
    wanted = demand(asked.collective, 1.0, asked.bytes_of)
    least = optimum(asked.topology, wanted, 40 * len(wanted.items))
    found = solve(asked, engine, Budget(seconds=20))
    check_moves(found.moves)
    assert found.bound <= least <= found.time
    assert found.topology_bound <= least
    assert found.proven == (found.time == found.bound)
    assert found.proven or engine in ("greedy", "bandwidth", "taccl")


def over_a_pipe(sizes: list[list[float]], rules: Rules | None = None) -> Problem:
    """0 -> 1 -> 2 and back, pipelined, 1 s and 1 s a byte; links are (0, 1), (1, 0), (1, 2), (2, 1)."""
    pairs = [(0, 1), (1, 0), (1, 2), (2, 1)]
    topology = Topology("pipe", 3, dict.fromkeys(pairs, Link(1, 1, (), True)))
    return posed(topology, demand(alltoallv(3), 1.0, sizes), rules)


def test_a_plan_is_moved_past_what_takes_no_time():
    """Rank 1 sends 5 bytes and nothing to rank 2: nothing does not wait for the 5 that go first."""
    problem = over_a_pipe([[0, 0, 0], [0, 0, 5], [0, 0, 0]])
    number = {(item.origin, *item.slots): n for n, item in enumerate(problem.demand.items)}
    five, empty = number[1, 2], number[0, 2]
    plan = [Transfer(0, five, 2), Transfer(0, empty, 0), Transfer(5, empty, 2)]
    moved = earliest(problem, plan)
    assert problem.costs.tick == 1
    assert [t.start for t in moved if t.item == empty] == [0, 1]
    routes = {five: (2,), empty: (0, 2)}
    assert [t.start for t in list_schedule(problem, routes) if t.item == empty] == [0, 1]


def test_own_items_still_go_first_when_they_take_no_time():
    sizes = [[0, 0, 5], [0, 0, 0], [0, 0, 0]]
    problem = over_a_pipe(sizes, Rules(own_first=frozenset({2})))
    number = {(item.origin, *item.slots): n for n, item in enumerate(problem.demand.items)}
    own, passed = number[1, 2], number[0, 2]
    plan = (Transfer(0, passed, 0), Transfer(6, passed, 2), Transfer(9, own, 2))
    kept = with_own_first(problem, plan)
    assert keeps_own_first(problem, kept)
    assert {t.item: t.start for t in kept if t.link == 2} == {own: 0, passed: 6}
    sizes = [[0, 0, 0], [0, 0, 5], [0, 0, 0]]
    problem = over_a_pipe(sizes, Rules(own_first=frozenset({2})))
    plan = (Transfer(0, passed, 0), Transfer(40, own, 2), Transfer(40, passed, 2))
    moved = tuple(earliest(problem, plan))
    assert keeps_own_first(problem, moved)
    assert {t.item: t.start for t in moved if t.link == 2} == {own: 0, passed: 1}


def test_an_own_item_that_waits_holds_back_what_is_passed_on():
    """The own item waits for the bus; what is passed on takes nothing, and still does not start before it."""
    bus = {"bus": Resource()}
    links = {(0, 1): Link(1, 1, (), True), (1, 0): Link(1, 9, ("bus",)), (1, 2): Link(1, 1, ("bus",), True)}
    topology = Topology("bus", 3, {**links, (2, 1): Link(1, 1)}, bus)
    asked = demand(alltoallv(3), 1.0, [[0, 0, 0], [1, 0, 4], [0, 0, 0]])
    problem = posed(topology, asked, Rules(own_first=frozenset({2})))
    number = {(item.origin, *item.slots): n for n, item in enumerate(asked.items)}
    back, own, passed = number[1, 0], number[1, 2], number[0, 2]
    plan = [Transfer(0, back, 1), Transfer(10, own, 2), Transfer(0, passed, 0), Transfer(11, passed, 2)]
    moved = tuple(earliest(problem, plan))
    assert keeps_own_first(problem, moved)
    assert {t.item: t.start for t in moved if t.link == 2} == {own: 10, passed: 10}


@pytest.mark.parametrize("wanted", [allgather(4, 2), broadcast(4, 3)])
def test_links_that_take_any_number_at_once(wanted: Collective):
    """Pipelined and without cost per byte: only hops count."""
    topology = ring(4, Link(2, 0, (), True))
    for engine in ENGINES:
        found = solve(Question(topology, wanted, 1.0), engine, Budget(seconds=10))
        assert (engine, found.time, found.proven) == (engine, 4, True)
    trees = tree_allreduce(cost_table(topology, [1.0]), 4)
    check_moves(trees)
    assert trees.seconds == 8


@pytest.mark.parametrize("retime", [in_sequence, listed])
def test_retimed_moves_do_not_wait_either(retime):
    problem = over_a_pipe([[0, 0, 0], [0, 0, 5], [0, 0, 0]])
    items = problem.demand.items
    parcels = tuple(Parcel({item.origin: (item.index,)}, item.slots, item.size) for item in items)
    number = {(item.origin, *item.slots): n for n, item in enumerate(items)}
    five, empty = number[1, 2], number[0, 2]
    rows = [Move(five, 1, 2, False), Move(empty, 0, 1, False), Move(empty, 1, 2, False)]
    moves = retime(problem.demand.collective, problem.costs, parcels, rows)
    starts = {(move.parcel, move.source): start for move, start in zip(moves.rows(), moves.start.tolist(), strict=True)}
    assert starts == {(five, 1): 0, (empty, 0): 0, (empty, 1): 1}
