"""Limits of a search: the clock, the work limit, and what is too large to be asked at all."""

from __future__ import annotations

import json
import math
import time
from collections import Counter

import pytest
from synth_cases import TEN
from synth_cases import problem as posed
from typer.testing import CliRunner

import synth.pipeline
from commlib.collectives import collective
from commlib.errors import LimitError
from commlib.topology import Link, Topology
from commlib.topology.shapes import ring, torus
from synth.cli.app import build_app
from synth.cli.progress import describe
from synth.compose import moves_of
from synth.engine import Budget, Progress
from synth.listing import list_schedule
from synth.lowering import compiled
from synth.pose import require_affordable
from synth.problem import Problem
from synth.schedule import check, expand, makespan
from synth.spread import first_plan, spread_routes


def call(*words: object):
    return CliRunner().invoke(build_app(), [str(word) for word in words])


@pytest.mark.parametrize(
    ("words", "seconds"),
    [((), 60.0), (("--work-limit", 1), math.inf), (("--work-limit", 1, "--time-limit", 7), 7.0)],
)
def test_no_clock_that_nobody_set_ends_a_search_with_a_work_limit(monkeypatch, words, seconds):
    heard, solve = [], synth.pipeline.solve

    def listening(asked, mode, budget, **others):
        heard.append(budget.seconds)
        return solve(asked, mode, budget, **others)

    monkeypatch.setattr(synth.pipeline, "solve", listening)
    result = call("solve", "allgather", "-t", "ring:4", "--no-cache", *words)
    assert (result.exit_code, heard) == (0, [seconds])


def test_no_work_at_all_still_gives_an_algorithm(tmp_path, monkeypatch):
    monkeypatch.setenv("COMMLIB_CACHE", str(tmp_path))
    result = call("solve", "allgather", "-t", "dgx2", "--nodes", 2, "--work-limit", 0, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["ended"], found["proven"]) == (0, "work limit", False)
    assert found["seconds"] < 10


def test_the_bar_does_not_count_down_where_there_is_no_clock():
    assert describe(Progress("minimise", 4, 2, math.inf, 1e-6)) == "minimise: 4 us, bound 2 us, gap 100.0%"


def large(name: str, topology: Topology, chunks: int) -> Problem:
    """A problem that heuristics need some time for."""
    return posed(topology, collective(name, topology.ranks, chunks), symmetric=False)


@pytest.mark.parametrize(("name", "topology"), [("allgather", ring(4, TEN)), ("alltoall", torus([4, 4], TEN))])
@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_heuristics_keep_to_the_clock_and_still_give_a_plan(name, topology, seconds):
    problem = large(name, topology, 1500 if name == "allgather" else 20)
    began = time.monotonic()
    plan = first_plan(problem, Budget(seconds))
    assert time.monotonic() - began < seconds + 3
    check(expand(problem, plan))


def test_trees_at_one_go_where_no_time_is_left():
    """Of an allgather's trees each crosses the slow pair of links between two halves once."""
    halves = {(a, b): TEN for a in range(20) for b in range(20) if a != b and a // 10 == b // 10}
    slow = Link(0.0, 10 * TEN.beta)
    topology = Topology("halves", 20, halves | {(a, (a + 10) % 20): slow for a in (0, 1, 10, 11)})
    problem = large("allgather", topology, 2)
    routes = spread_routes(problem, budget=Budget(0))
    slow_links = {link for link, (source, target) in enumerate(problem.ends) if source // 10 != target // 10}
    crossed = [[link for link in links if link in slow_links] for links in routes.values()]
    assert {len(links) for links in crossed} == {1}
    assert sorted(Counter(links[0] for links in crossed).values()) == [10, 10, 10, 10]


def test_a_list_without_time_is_hasty_and_correct():
    problem = large("allgather", ring(4, TEN), 1500)
    routes = spread_routes(problem, weight=1.0, rounds=1)
    hasty = list_schedule(problem, routes, budget=Budget(0))
    check(expand(problem, hasty))
    assert makespan(problem, hasty) >= makespan(problem, list_schedule(problem, routes, tries=1))


def test_transfers_that_wait_for_one_link_are_looked_at_once():
    """Each used to be looked at whenever another one began: 35 s for these."""
    problem = large("allgather", ring(4, TEN), 1500)
    routes = spread_routes(problem, rounds=1)
    began = time.monotonic()
    list_schedule(problem, routes, tries=1)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("allgather", "-t", "ring:4", "-c", 10**9), ("1000000000 chunks", "4 ranks")),
        (("allreduce", "-t", "ring:4", "-c", 10**7), ("40000000 chunks", "4 ranks")),
        (("reduce", "-t", "ring:4", "-c", 10**8), ("100000000 chunks",)),
        (("allgather", "-t", "ring:4", "-i", 10**7), ("10000000 instances", "1048576")),
    ],
)
def test_what_nobody_could_compute_is_refused_at_once(words, named):
    began = time.monotonic()
    result = call("solve", *words, "--no-cache", "--json")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["kind"]) == (1, "LimitError")
    assert all(word in error["message"] for word in named)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "wanted",
    [collective("allgather", 1024, 4), collective("alltoall", 256, 8), collective("allreduce", 1024, 1024)],
)
def test_large_machines_may_be_asked_for(wanted):
    require_affordable(wanted)
    with pytest.raises(LimitError, match=f"{wanted.ranks} ranks"):
        require_affordable(wanted.refine(16))


def test_too_many_instances_are_refused_before_they_are_compiled():
    problem = large("allgather", ring(4, TEN), 1)
    moves = moves_of(expand(problem, first_plan(problem, Budget())))
    with pytest.raises(LimitError, match="2000000 instances"):
        compiled(moves, instances=2_000_000)
