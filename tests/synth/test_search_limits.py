"""Limits of a search: the clock, the work limit, and what is too large to be asked at all."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

import synth.pipeline
from synth.cli.app import build_app
from synth.cli.progress import describe
from synth.engine import Progress


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
