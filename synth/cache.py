"""Cache: what was synthesized before, on disk, by everything that it depends on.

The key of a result is a hash of its question, the engine, the limits of the search and the versions of this package
and of the solvers. A result that ended by proof or by its work limit is what the same search would find again, and is
returned. Any other is only where the next search for the same question starts from, whatever its engine and limits;
searches with a work limit start from nothing, so that they do not depend on what happened before.
"""

from __future__ import annotations

import json
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
    """A hash of what is asked: topology, collective, sizes, sketch."""
    value = {
        "topology": json.loads(topology_to_json(asked.topology)),
        "collective": collective_to_json(asked.collective),
        "chunk_bytes": float(asked.chunk_bytes),
        "sketch": None if asked.sketch is None else sketch_json(asked.sketch),
        "bytes_of": None if asked.bytes_of is None else [list(map(float, row)) for row in asked.bytes_of],
    }
    return digest(canonical(value))


def search_key(asked: Question, mode: str, budget: Budget) -> str:
    """A hash of what is asked, of how it is searched, and of with what."""
    value = {
        "question": question_key(asked),
        "mode": mode,
        "limits": [float(budget.seconds), budget.work, budget.threads, budget.seed],
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
    asked: Question, mode: str, budget: Budget, cache: Cache, *, instances: int = 1, name: str | None = None
) -> Result:
    """``solve`` with a cache; notes of the cache become notes of the result. Raises as ``solve`` does."""
    key, start_key = search_key(asked, mode, budget), question_key(asked)
    found = cache.get(key)
    if found is not None and found.ended in REPEATABLE and found.topology == asked.topology:
        return _again(found, budget, instances, name or found.name, cache)
    start = None if budget.work is not None else cache.get(start_key)
    result = _search(asked, mode, budget, start, instances, name)
    if result.ended in REPEATABLE:
        cache.put(key, result)
    if start is None or result.time < start.time:
        cache.put(start_key, result)
    return replace(result, notes=(*result.notes, *cache.notes))


def _search(
    asked: Question, mode: str, budget: Budget, start: Result | None, instances: int, name: str | None
) -> Result:
    if start is not None:
        with suppress(ScheduleError):  # a plan of another version of this package, which poses the problem otherwise
            return solve(asked, mode, budget, instances=instances, name=name, known=start.plans)
    return solve(asked, mode, budget, instances=instances, name=name)


def _again(found: Result, budget: Budget, instances: int, name: str, cache: Cache) -> Result:
    """A result from the cache, as of now."""
    took = time.monotonic() - budget.began
    notes = (*found.notes, f"from the cache; the search took {found.seconds:.2f} s", *cache.notes)
    return replace(found, instances=instances, name=name, notes=notes, seconds=took, stages=(Stage("cache", took),))
