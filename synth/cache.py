"""Cache: what was synthesized before, on disk, by everything that it depends on.

The key of a result is a hash of its question, the engine, the limits of the search and the versions of this package
and of the solvers. A result that ended by proof or by its work limit is what the same search would find again, and is
returned. Any other is only where the next search for the same question starts from, whatever its engine and limits,
and what is returned again if that search finds nothing shorter. Searches with a work limit start from nothing and
return what they find, so that they do not depend on what happened before.
"""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from commlib.errors import CommlibError, LimitError
from commlib.files.disk import write_atomic
from commlib.formats import collective_to_json
from commlib.topology import topology_to_json
from synth.engine import Budget, Ended, Stage
from synth.errors import ScheduleError
from synth.pipeline import Question, solve
from synth.result import Result
from synth.sketch import sketch_json
from synth.stored import canonical, digest, load_result, result_to_json

SOLVERS = ("highspy", "ortools", "pulp")
MAX_ENTRY = 64 << 20
"""Bytes of the largest result that is kept."""
MAX_TOTAL = 512 << 20
"""Bytes of all results together; the oldest go first."""
REPEATABLE = (Ended.PROOF, Ended.WORK)
"""The ends of searches that would end the same way again."""

EARLIER = "from an earlier search"
"""The note of a result that the last search for it did not find itself."""


def solver_versions() -> dict[str, str]:
    """The installed version of each solver ("" where there is none); imports none of them."""
    return {name: _version(name) for name in SOLVERS}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def cache_folder() -> Path:
    """COMMLIB_CACHE, or commlib/synth in XDG_CACHE_HOME, or that in ~/.cache."""
    own = os.environ.get("COMMLIB_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "commlib" / "synth"


def question_key(asked: Question) -> str:
    """A hash of what is asked: topology, collective, sizes, sketch; and of the version, whose bounds are trusted."""
    value = {
        "commlib": _version("commlib"),
        "topology": json.loads(topology_to_json(asked.topology)),
        "collective": collective_to_json(asked.collective),
        "chunk_bytes": float(asked.chunk_bytes),
        "sketch": None if asked.sketch is None else sketch_json(asked.sketch),
        "bytes_of": None if asked.bytes_of is None else [list(map(float, row)) for row in asked.bytes_of],
    }
    return digest(canonical(value))


def search_key(asked: Question, mode: str, budget: Budget) -> str:
    """A hash of what is asked, of how it is searched, and of with what."""
    clock = float(budget.seconds) if math.isfinite(budget.seconds) else None
    value = {
        "question": question_key(asked),
        "mode": mode,
        "limits": [clock, budget.work, budget.threads, budget.seed],
        "versions": {"commlib": _version("commlib"), **solver_versions()},
    }
    return digest(canonical(value))


@dataclass
class Cache:
    """Results in a folder; ``notes`` say what could not be read or written, which is never an error."""

    folder: Path = field(default_factory=cache_folder)
    notes: list[str] = field(default_factory=list)

    def get(self, key: str) -> Result | None:
        """The result of a key; None where there is none that can be read."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            return load_result(path)
        except CommlibError as error:
            self.notes.append(f"cache: a damaged entry is ignored: {error.message}")
            return None

    def put(self, key: str, result: Result) -> None:
        """Keep a result; one that is too large, or a folder that cannot be written, is passed over."""
        text = result_to_json(result)
        try:
            if len(text) > MAX_ENTRY:
                raise LimitError(f"{len(text)} bytes are more than an entry may have", limit="MAX_ENTRY")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path(key), text)
            self._shrink()
        except CommlibError as error:
            self.notes.append(f"cache: not kept: {error.message}")
        except OSError as error:
            self.notes.append(f"cache: not kept: {self.folder}: {error.strerror}")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _shrink(self) -> None:
        """Remove the oldest entries beyond MAX_TOTAL."""
        entries = [(path.stat().st_mtime, path, path.stat().st_size) for path in self.folder.glob("*.json")]
        total = sum(size for _, _, size in entries)
        for _, path, size in sorted(entries):
            if total <= MAX_TOTAL:
                break
            with suppress(FileNotFoundError):
                path.unlink()
            total -= size


def solve_cached(
    asked: Question,
    mode: str,
    budget: Budget,
    cache: Cache,
    *,
    instances: int = 1,
    name: str | None = None,
    limit: float | None = None,
) -> Result:
    """``solve`` with a cache; notes of the cache become notes of the result. Raises as ``solve`` does.

    ``limit`` are the seconds that the key has instead of the budget's, where these are a share that depends on the
    clock: what ended by proof or by work does not depend on them.
    """
    key = search_key(asked, mode, budget if limit is None else replace(budget, seconds=limit))
    start_key = question_key(asked)
    found = cache.get(key)
    if found is not None and found.ended in REPEATABLE and found.topology == asked.topology:
        return _again(found, budget, instances, name or found.name, cache)
    start = None if budget.work is not None else cache.get(start_key)
    result, fits = _search(asked, mode, budget, start, instances, name)
    kept = result if start is None or not fits else _continued(result, start)
    if kept.ended in REPEATABLE:
        cache.put(key, kept)
    _offer(cache, start_key, kept, fits)
    return replace(kept, notes=tuple(dict.fromkeys((*kept.notes, *cache.notes))))


def _search(
    asked: Question, mode: str, budget: Budget, start: Result | None, instances: int, name: str | None
) -> tuple[Result, bool]:
    """The result of a search, and whether its start, if there is one, solves the problem that is posed now."""
    if start is not None:
        with suppress(ScheduleError):  # a plan of code that posed the problem otherwise
            result = solve(asked, mode, budget, instances=instances, name=name, known=start.plans)
            return result, _same_problem(result, start)
    return solve(asked, mode, budget, instances=instances, name=name), start is None


def _same_problem(result: Result, start: Result) -> bool:
    """Whether two results solve one problem: on the same links, and neither below what the other proves."""
    if (result.topology, result.logical) != (start.topology, start.logical):
        return False
    return not _comparable(result, start) or (result.time >= start.bound and start.time >= result.bound)


def _comparable(one: Result, other: Result) -> bool:
    """Whether a bound for one holds for the other; an allreduce through trees may be cut into other chunks."""
    return (one.collective, one.chunk_bytes) == (other.collective, other.chunk_bytes)


def _continued(result: Result, start: Result) -> Result:
    """What is known after a search that began with an earlier result: ``shorter``, with its origin among its notes.

    An engine is named for what it found itself: a search that gives its start back gives back its engine, too.
    """
    kept = shorter(result, start)
    note = f"starts from an earlier result of {start.engine}"
    return replace(kept, notes=(*kept.notes, note)) if result.time < start.time else kept


def shorter(result: Result, start: Result) -> Result:
    """The shorter of a new and an earlier result (the earlier one where neither is), with the higher of their bounds.

    The earlier one is marked with a note and has the new one's name, instances, seconds and stages. Results whose
    chunks differ keep their own bounds.
    """
    comparable = _comparable(result, start)
    if result.time < start.time or (result.time == start.time and result.proven and not comparable):
        return _raised(result, start, result.ended) if comparable else result
    fresh = {name: getattr(result, name) for name in ("name", "instances", "seconds", "stages")}
    notes = dict.fromkeys((*start.notes, *(result.notes if comparable else ()), EARLIER))
    kept = replace(start, notes=tuple(notes), **fresh)
    return _raised(kept, result, result.ended) if comparable else kept


def _raised(kept: Result, other: Result, ended: Ended) -> Result:
    """A result with the bounds of another where these are higher; what it meets then is its proof."""
    if other.bound > kept.bound:
        kept = replace(kept, bound=other.bound, bound_kind=other.bound_kind, certificate=other.certificate)
    if other.topology_bound > kept.topology_bound:
        kept = replace(kept, topology_bound=other.topology_bound, topology_bound_kind=other.topology_bound_kind)
    proven = kept.proven or kept.time <= kept.bound or (other.proven and kept.time <= other.time)
    return replace(kept, ended=Ended.PROOF if proven else ended)


def _offer(cache: Cache, key: str, result: Result, fits: bool) -> None:
    """Keep a result for the next search, unless what is there by now is as good; ``fits``: that solves the problem."""
    stored = cache.get(key) if fits else None
    if stored is not None and _same_problem(result, stored):
        result = shorter(result, stored)
        if (result.time, -result.bound) >= (stored.time, -stored.bound):
            return
    cache.put(key, result)


def _again(found: Result, budget: Budget, instances: int, name: str, cache: Cache) -> Result:
    """A result from the cache, as of now."""
    took = time.monotonic() - budget.began
    notes = (*found.notes, f"from the cache; the search took {found.seconds:.2f} s", *cache.notes)
    return replace(found, instances=instances, name=name, notes=notes, seconds=took, stages=(Stage("cache", took),))
