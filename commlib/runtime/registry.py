"""Registry: which algorithm a call runs, as rows of a table. Pure data: it names algorithms and builds none.

The JSON form is what ``commlib tune`` writes and ``COMMLIB_TUNING`` names:

    {"format": "commlib-tuning", "version": 1,
     "machine": {"cpu": "...", "cores": 2, "native": true},
     "rows": [{"collective": "allreduce", "algorithm": "one_shot", "ranks": [4, 4], "hosts": [1, 1],
               "bytes": [0, 65536], "placement": "in", "reach": "any", "note": "3.2 us; staged 6.6 us"}]}

Of a row only ``collective`` and ``algorithm`` must be there; what is left out does not matter to it. The first row
that fits is taken, the next ones are what follows if that cannot run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from commlib.collectives import COLLECTIVES, Placement
from commlib.errors import FormatError, LimitError, SpecError
from commlib.files.disk import read_text, write_atomic
from commlib.files.json_fields import Fields, parse_json

Reach = Literal["any", "registered", "readv"]
REACHES: tuple[Reach, ...] = ("any", "registered", "readv")
FORMAT = "commlib-tuning"
VERSION = 1
MAX_BYTES = 4 << 20
"""Bytes of the largest table that is read."""
MAX_ROWS = 10_000
MAX_SIZE = 1 << 62


@dataclass(frozen=True)
class Range:
    """The whole numbers from ``low`` to ``high``, both included; None: no upper bound."""

    low: int = 0
    high: int | None = None

    def __post_init__(self) -> None:
        if self.low < 0 or (self.high is not None and self.high < self.low):
            raise SpecError(f"a range goes from a number that is not negative to a larger one, not {self}")

    def __contains__(self, number: int) -> bool:
        return self.low <= number and (self.high is None or number <= self.high)

    def __str__(self) -> str:
        return f"{self.low} to {'any' if self.high is None else self.high}"


@dataclass(frozen=True)
class Query:
    """A call: what a row is compared with.

    ``bytes`` are those of a rank's larger buffer, as in nccl-tests and in MSCCL's files; ``hosts``: how many hosts
    the group is on; ``registered``: its tensors are in registered memory on all ranks; ``readv``: the ranks may read
    each other's memory by process_vm_readv.
    """

    collective: str
    ranks: int
    bytes: int
    placement: Placement
    hosts: int = 1
    registered: bool = False
    readv: bool = False


@dataclass(frozen=True)
class Row:
    """One row: ``algorithm`` (its name in the library, or a user algorithm's) for calls that fit the rest.

    ``reach``: "registered" or "readv" for a program that works on other ranks' tensors, only where these can be
    reached in that way; "any" for all others. ``note`` is for people.

    Raises:
        SpecError: no such collective or reach.
    """

    collective: str
    algorithm: str
    ranks: Range = Range(1)
    hosts: Range = Range(1)
    bytes: Range = Range()
    placement: Placement | None = None
    reach: Reach = "any"
    note: str = ""

    def __post_init__(self) -> None:
        if self.collective not in COLLECTIVES:
            raise SpecError(f"no collective is called {self.collective!r}; there are {', '.join(COLLECTIVES)}")
        if self.reach not in REACHES:
            raise SpecError(f"reach is one of {', '.join(REACHES)}, not {self.reach!r}")

    def fits(self, query: Query) -> bool:
        """Whether the row is for this call."""
        return (
            self.collective == query.collective
            and query.ranks in self.ranks
            and query.hosts in self.hosts
            and query.bytes in self.bytes
            and self.placement in (None, query.placement)
            and (self.reach != "registered" or query.registered)
            and (self.reach != "readv" or query.readv)
        )


@dataclass(frozen=True)
class Machine:
    """What a table was measured on; it says little about others."""

    cpu: str
    cores: int
    native: bool

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, {'native core' if self.native else 'Python only'}"


@dataclass(frozen=True)
class Registry:
    """Rows in the order in which they are tried; ``source`` says where they come from."""

    rows: tuple[Row, ...]
    source: str = "rows"
    machine: Machine | None = None

    def matches(self, query: Query) -> Iterator[tuple[int, Row]]:
        """The rows that fit a call, with their numbers (from 1). O(rows of its collective)."""
        return (numbered for numbered in self._of.get(query.collective, ()) if numbered[1].fits(query))

    @cached_property
    def _of(self) -> dict[str, list[tuple[int, Row]]]:
        """The rows of each collective."""
        found: dict[str, list[tuple[int, Row]]] = {}
        for number, row in enumerate(self.rows, 1):
            found.setdefault(row.collective, []).append((number, row))
        return found

    @property
    def digest(self) -> bytes:
        """Equal for two registries of equal rows."""
        plain = replace(self, source="", machine=None)
        return hashlib.sha256(registry_to_json(plain).encode()).digest()


def this_machine(native: bool) -> Machine:
    """The machine that this process is on."""
    return Machine(_cpu(), os.cpu_count() or 1, native)


def _cpu() -> str:
    """The processor's name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            named = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    except OSError:
        named = []
    return named[0][:100] if named else os.uname().machine


def registry_to_json(registry: Registry) -> str:
    """The JSON form, a row on each line."""
    machine = registry.machine
    described = None if machine is None else {"cpu": machine.cpu, "cores": machine.cores, "native": machine.native}
    rows = ",\n  ".join(json.dumps(_row_to_json(row)) for row in registry.rows)
    head = f'{{"format": "{FORMAT}", "version": {VERSION},\n "machine": {json.dumps(described)},\n "rows": ['
    return f"{head}\n  {rows}]}}\n" if rows else f"{head}]}}\n"


def _row_to_json(row: Row) -> dict[str, Any]:
    where = None if row.placement is None else row.placement.value
    found: dict[str, Any] = {"collective": row.collective, "algorithm": row.algorithm}
    for key, limits in (("ranks", row.ranks), ("hosts", row.hosts), ("bytes", row.bytes)):
        found[key] = [limits.low, limits.high]
    return {**found, "placement": where, "reach": row.reach, "note": row.note}


def write_registry(registry: Registry, path: str | os.PathLike[str]) -> None:
    """Write the JSON form; a reader sees the old file or the new one.

    Raises:
        FormatError: it cannot be written.
    """
    write_atomic(path, registry_to_json(registry))


def read_registry(path: str | os.PathLike[str]) -> Registry:
    """A registry of a JSON file.

    Raises:
        FormatError: it cannot be read, or a row is wrong; with file and row. LimitError: it is too large.
    """
    name = os.fspath(path)
    return registry_from_json(read_text(name, MAX_BYTES), name)


def registry_from_json(text: str, file: str) -> Registry:
    """A registry of its JSON form; raises as ``read_registry``."""
    top = Fields.of(parse_json(text, file), file, "table")
    top.check_keys({"format", "version", "rows"}, ("machine",))
    if top.string("format") != FORMAT or top.integer("version") != VERSION:
        top.fail(f"not a table of the form {FORMAT!r}, version {VERSION}", key="format")
    given = top.array("rows")
    if len(given) > MAX_ROWS:
        raise LimitError(f"{file}: {len(given)} rows are more than {MAX_ROWS}", file=file, limit="MAX_ROWS")
    rows = tuple(_row(Fields.of(value, file, f"row {number}"), number) for number, value in enumerate(given, 1))
    machine = top.values.get("machine")
    return Registry(rows, file, None if machine is None else _machine(Fields.of(machine, file, "machine")))


def _machine(fields: Fields) -> Machine:
    fields.check_keys({"cpu", "cores", "native"})
    return Machine(fields.string("cpu"), fields.integer("cores", 1), fields.boolean("native"))


def _row(fields: Fields, number: int) -> Row:
    fields.check_keys({"collective", "algorithm"}, ("ranks", "hosts", "bytes", "placement", "reach", "note"))
    text = {key: fields.string(key) for key in ("collective", "algorithm", "note", "reach") if key in fields.values}
    ranges = {key: _range(fields, key) for key in ("ranks", "hosts", "bytes") if key in fields.values}
    try:
        return Row(**text, **ranges, placement=_placement(fields))  # type: ignore[arg-type]
    except SpecError as error:
        raise FormatError(f"{fields.file}: row {number}: {error.message}", file=fields.file, row=number) from error


def _placement(fields: Fields) -> Placement | None:
    if fields.values.get("placement") is None:
        return None
    where = fields.string("placement")
    if where not in ("in", "out"):
        fields.fail(f"is in, out or null, not {where[:40]!r}", key="placement")
    return Placement(where)


def _range(fields: Fields, key: str) -> Range:
    """A list of two numbers; null for no upper bound."""
    given = fields.array(key)
    numbers = [value for value in given if type(value) is int and 0 <= value <= MAX_SIZE]
    whole = len(given) == 2 and (len(numbers) == 2 or (len(numbers) == 1 and given[1] is None))
    if not whole or numbers != sorted(numbers):
        fields.fail("must be [smallest, largest], two whole numbers, the second null for no bound", key=key)
    return Range(numbers[0], numbers[1] if len(numbers) == 2 else None)


def merged(measured: Registry, before: Registry | None) -> Registry:
    """The rows of a new measurement, and those of an earlier one on the same machine for other ranks or collectives."""
    if before is None or before.machine != measured.machine:
        return measured
    done = {(row.collective, row.ranks) for row in measured.rows}
    kept: Sequence[Row] = [row for row in before.rows if (row.collective, row.ranks) not in done]
    return replace(measured, rows=(*measured.rows, *kept))
