"""Stored results and the cache: what is found again, what is not trusted, what a key depends on."""

import json
import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synth_cases import MIB, TEN, random_topologies

from commlib.errors import FormatError
from commlib.topology import Link, Topology, named, ring
from synth import cache as cache_module
from synth.cache import EARLIER, Cache, cache_folder, question_key, search_key, shorter, solve_cached, solver_versions
from synth.engine import Budget, Ended
from synth.errors import ScheduleError
from synth.pipeline import question, solve
from synth.stored import canonical, digest, load_result, result_to_json, save_result

RING = ring(4, link=TEN)
GATHER = question(RING, "allgather")
LIMITS = Budget(20.0)


def cached(asked, folder, budget=None, mode="greedy", **more):
    return solve_cached(asked, mode, Budget(20.0) if budget is None else budget, Cache(folder), **more)


@pytest.mark.parametrize("name", ["allgather", "reducescatter", "allreduce", "alltoall", "alltoallv", "broadcast"])
def test_a_stored_result_comes_back_whole(name, tmp_path):
    matrix = [[float(1 + (a + b) % 3) for b in range(4)] for a in range(4)] if name == "alltoallv" else None
    found = solve(question(RING, name, bytes_of=matrix), "greedy", Budget(20.0), instances=2)
    save_result(found, tmp_path / "result.json")
    again = load_result(tmp_path / "result.json")
    assert again.moves.text() == found.moves.text()
    assert again.as_json() | {"proof_seconds": 0} == found.as_json() | {"proof_seconds": 0}
    assert again.algorithm == found.algorithm
    assert again.plans == dict(found.plans)


def edited(text, **changes):
    """A stored result with other values, under a digest that is right."""
    value = json.loads(text)
    value["result"] |= changes
    value["digest"] = digest(canonical(value["result"]))
    return json.dumps(value)


STORED = result_to_json(solve(GATHER, "greedy", Budget(20.0)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STORED[:-100], "not JSON"),
        (STORED.replace('"engine":"greedy"', '"engine":"exact"'), "digest: is not that of the result"),
        (STORED.replace('"version":1}\n', '"version":2}\n'), "version"),
        ("[]", "must be an object"),
        (edited(STORED, time=1.0), "time: is not the"),
        (edited(STORED, ended="SOON"), "ended: is no way"),
        (edited(STORED, start=[-1]), "start: must hold integers"),
        (edited(STORED, start=[0]), "as many entries"),
        (edited(STORED, source=[9] * 12), "source: must hold numbers below 4"),
        (edited(STORED, parcel=[0] * 12), "result: "),
        (edited(STORED, sizes=[]), "sizes: must hold sizes"),
        (edited(STORED, bound="low"), "bound: must be a number"),
        (edited(STORED, stages=[1]), "stages: must hold rows"),
        (edited(STORED, plans={"allgather": [[1]]}), "allgather: must hold rows of three"),
        (edited(STORED, certificate={}), "certificate: key"),
        (edited(STORED, extra=1), "key 'extra' is unknown"),
    ],
)
def test_what_is_damaged_or_wrong_is_refused(text, message, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=message):
        load_result(path)


def test_a_proven_result_is_found_again(tmp_path, monkeypatch):
    first = cached(GATHER, tmp_path)
    assert first.ended is Ended.PROOF
    monkeypatch.setattr(cache_module, "solve", None)
    again = cached(GATHER, tmp_path, instances=2, name="other")
    assert (again.time, again.bound, again.engine, again.ended) == (first.time, first.bound, first.engine, Ended.PROOF)
    assert (again.instances, again.name, again.algorithm.name) == (2, "other", "other")
    assert again.notes[-1].startswith("from the cache; the search took ")
    assert [stage.name for stage in again.stages] == ["cache"]


def test_an_unproven_result_is_only_where_the_next_search_starts(tmp_path, monkeypatch):
    asked = question(RING, "alltoall")
    found = replace(solve(asked, "greedy", Budget(20.0)), ended=Ended.TIME)
    calls = []

    def fake(*_, known=None, **__):
        calls.append(known)
        return found

    monkeypatch.setattr(cache_module, "solve", fake)
    cached(asked, tmp_path)
    cached(asked, tmp_path, Budget(5.0), "exact")
    cached(asked, tmp_path, Budget(20.0, work=1.0))
    assert calls == [None, found.plans, None]  # a work limit asks for the same answer every time


def test_a_result_that_ended_by_its_work_limit_is_found_again(tmp_path, monkeypatch):
    found = replace(solve(GATHER, "greedy", Budget(20.0)), ended=Ended.WORK)
    monkeypatch.setattr(cache_module, "solve", lambda *_, **__: found)
    cached(GATHER, tmp_path, Budget(20.0, work=1.0))
    monkeypatch.setattr(cache_module, "solve", None)
    assert cached(GATHER, tmp_path, Budget(20.0, work=1.0)).ended is Ended.WORK


def test_a_start_that_no_longer_fits_is_dropped(tmp_path, monkeypatch):
    found = replace(solve(GATHER, "greedy", Budget(20.0)), ended=Ended.TIME)
    calls = []

    def fussy(*_, known=None, **__):
        calls.append(known)
        if known:
            raise ScheduleError("an item leaves a rank before it is there")
        return found

    monkeypatch.setattr(cache_module, "solve", fussy)
    cached(GATHER, tmp_path)
    assert cached(GATHER, tmp_path) == found
    assert calls == [None, found.plans, None]


def both_ways(ranks, forward, back):
    """A ring with other links in the one direction than in the other; costs of 1 MiB in seconds."""
    pairs = {(rank, (rank + 1) % ranks): forward for rank in range(ranks)}
    return Topology("both ways", ranks, pairs | {(b, a): back for a, b in pairs})


WIDER = question(both_ways(6, Link(2.0, 1.0 / MIB), Link(0.0, 1.0 / MIB, (), True)), "alltoall")
"""Symmetric schedules end at 9 s, the best one at 8 s."""


def test_a_schedule_without_the_symmetry_is_not_lost(tmp_path):
    first = cached(WIDER, tmp_path, mode="exact")
    assert (first.time, first.proven, EARLIER in first.notes) == (8.0, True, False)
    for mode in ("greedy", "bandwidth", "auto"):
        again = cached(WIDER, tmp_path, mode=mode)
        assert (again.time, again.engine, again.proven, again.moves.text()) == (8.0, "exact", True, first.moves.text())
        assert EARLIER in again.notes
        assert again.algorithm.name == first.name


NODE = question(named("ndv2"), "allgather")


def test_a_search_with_a_work_limit_neither_sees_nor_spoils_a_better_result(tmp_path):
    best = cached(NODE, tmp_path, mode="exact").time
    alone = solve(NODE, "greedy", Budget(20.0, work=0.0))
    limited = cached(NODE, tmp_path, Budget(20.0, work=0.0))
    assert (limited.time, limited.moves.text(), limited.notes) == (alone.time, alone.moves.text(), alone.notes)
    assert limited.time > best
    again = cached(NODE, tmp_path, Budget(21.0))
    assert (again.time, again.engine, again.notes) == (best, "exact", (EARLIER,))


def test_a_better_result_is_kept_and_says_where_it_starts(tmp_path):
    first = cached(NODE, tmp_path, Budget(20.0, work=0.0))
    second = cached(NODE, tmp_path, mode="exact")
    assert second.time < first.time
    assert (second.engine, second.notes[-1]) == ("exact", "starts from an earlier result of greedy")
    assert Cache(tmp_path).get(question_key(NODE)).time == second.time


def test_the_higher_bounds_are_kept():
    found = replace(solve(NODE, "greedy", Budget(20.0)), bound=6e-5, bound_kind="own", ended=Ended.TIME)
    best = replace(solve(NODE, "exact", Budget(20.0)), bound=5e-5, topology_bound=5e-5, ended=Ended.HEURISTIC)
    kept = shorter(found, best)
    assert (kept.time, kept.engine, kept.bound, kept.bound_kind) == (best.time, "exact", 6e-5, "own")
    assert (kept.topology_bound, kept.ended, kept.notes) == (found.topology_bound, Ended.TIME, (EARLIER,))
    assert (shorter(best, found).bound, shorter(best, found).ended) == (6e-5, Ended.HEURISTIC)
    assert shorter(replace(found, bound=best.time), best).proven
    assert shorter(best, replace(found, bound=best.time)).proven


def test_an_allreduce_through_trees_keeps_its_own_bound():
    tree = replace(solve(question(RING, "allreduce", size=4.0), "greedy", Budget(20.0)), ended=Ended.TIME)
    cut = replace(tree, chunk_bytes=tree.chunk_bytes / 4, time=tree.time * 2, bound=tree.time * 2, ended=Ended.PROOF)
    assert (shorter(cut, tree).bound, shorter(cut, tree).proven) == (tree.bound, False)
    assert (shorter(tree, cut).bound, shorter(tree, cut).engine) == (tree.bound, tree.engine)


@pytest.mark.parametrize("change", [{"time": 1e-9}, {"bound": 1.0}, {"logical": ring(5, link=TEN)}])
def test_what_contradicts_a_search_is_replaced(change, tmp_path, monkeypatch):
    found = replace(solve(GATHER, "greedy", Budget(20.0)), ended=Ended.TIME)
    monkeypatch.setattr(cache_module, "solve", lambda *_, **__: found)
    monkeypatch.setattr(Cache, "get", lambda _, key: replace(found, **change) if key == question_key(GATHER) else None)
    kept = []
    monkeypatch.setattr(Cache, "put", lambda _, key, result: kept.append((key, result)))
    assert cached(GATHER, tmp_path) == found
    assert kept == [(question_key(GATHER), found)]


@given(
    topology=random_topologies(3, 5),
    name=st.sampled_from(["allgather", "alltoall", "reducescatter", "allreduce"]),
    modes=st.lists(st.sampled_from(["greedy", "exact", "taccl", "bandwidth"]), min_size=2, max_size=3),
)
@settings(max_examples=12, deadline=None)
def test_calls_never_get_worse(topology, name, modes, tmp_path_factory):
    asked, folder = question(topology, name), tmp_path_factory.mktemp("cache")
    limited = solve(asked, "greedy", Budget(20.0, work=0.0))
    last = None
    for mode in modes:
        found = cached(asked, folder, Budget(0.5), mode)
        assert last is None or found.time <= last.time
        comparable = last is not None and (found.collective, found.chunk_bytes) == (last.collective, last.chunk_bytes)
        assert not comparable or (found.bound >= last.bound and found.proven >= last.proven)
        assert found.bound <= found.time * (1 + 1e-9)
        last = found
        between = cached(asked, folder, Budget(20.0, work=0.0))
        assert (between.time, between.engine) == (limited.time, limited.engine)


def test_a_damaged_entry_is_ignored_with_a_note_and_written_anew(tmp_path):
    cached(GATHER, tmp_path)
    entry = tmp_path / f"{search_key(GATHER, 'greedy', LIMITS)}.json"
    whole = entry.read_text()
    entry.write_text(whole[:-50])
    again = cached(GATHER, tmp_path)
    assert any("a damaged entry is ignored" in note for note in again.notes)
    assert load_result(entry).time == again.time
    assert any("from the cache" in note for note in cached(GATHER, tmp_path).notes)


def test_a_folder_that_cannot_be_written_is_a_note(tmp_path):
    (tmp_path / "file").write_text("")
    found = cached(GATHER, tmp_path / "file" / "folder")
    assert any(note.startswith("cache: not kept: ") for note in found.notes)


def test_the_oldest_entries_go_first(tmp_path, monkeypatch):
    cache, found = Cache(tmp_path), solve(GATHER, "greedy", Budget(20.0))
    monkeypatch.setattr(cache_module, "MAX_TOTAL", 3 * len(result_to_json(found)))
    for age, key in enumerate("abcde"):
        cache.put(key, found)
        os.utime(tmp_path / f"{key}.json", (1000 + age, 1000 + age))
    cache.put("f", found)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == ["d", "e", "f"]
    monkeypatch.setattr(cache_module, "MAX_ENTRY", 10)
    cache.put("g", found)
    assert (cache.get("g"), cache.notes[-1].startswith("cache: not kept: ")) == (None, True)


def test_what_keys_depend_on(monkeypatch):
    same = question(ring(4, link=TEN), "allgather")
    assert search_key(same, "auto", LIMITS) == search_key(GATHER, "auto", LIMITS)
    others = [
        question(ring(5, link=TEN), "allgather"),
        question(ring(4, link=Link(1e-6, TEN.beta)), "allgather"),
        question(RING, "alltoall"),
        question(RING, "allgather", size=1000.0),
        question(RING, "allgather", chunks=2),
        question(RING, "broadcast", root=1),
        question(RING, "broadcast"),
    ]
    assert len({question_key(asked) for asked in (GATHER, *others)}) == 8
    searches = [("auto", LIMITS), ("exact", LIMITS), ("auto", Budget(21.0)), ("auto", Budget(20.0, work=1.0))]
    searches += [("auto", Budget(20.0, threads=2)), ("auto", Budget(20.0, seed=1))]
    keys = {search_key(GATHER, mode, budget) for mode, budget in searches}
    monkeypatch.setattr(cache_module, "solver_versions", lambda: {"pulp": "0"})
    assert len(keys | {search_key(GATHER, "auto", LIMITS)}) == 7


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("COMMLIB_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("COMMLIB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "commlib" / "synth"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "commlib" / "synth"


def test_versions_of_solvers_that_are_missing_are_empty(monkeypatch):
    assert set(solver_versions()) == {"highspy", "ortools", "pulp"}
    monkeypatch.setattr(cache_module, "SOLVERS", ("no-such-solver",))
    assert solver_versions() == {"no-such-solver": ""}
