"""Which algorithm a call runs: the only place that decides it.

Every rank must come to the same answer. So this only looks at what all ranks of a call share: the request, the
situation of the group, and tables and files, of which the ranks compare what follows from them before they use it.

Tried are, in this order: algorithms added from Python, files of the environment's folders and lists (see
``commlib.runtime.user_algorithms``), the table of ``commlib tune``, the defaults. The first that is proved in the
call's placement and can run is taken; ``COMMLIB_DEBUG=INFO`` says which, and why.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from commlib.algorithms import DirectEntry, Entry, build, entry_of
from commlib.errors import CommlibError, SpecError, VerificationError
from commlib.ir.algorithm import Algorithm
from commlib.runtime.debug import logger, one_line
from commlib.runtime.defaults import DEFAULTS
from commlib.runtime.onesided import refuse_unreachable
from commlib.runtime.registry import Query, Registry, Row
from commlib.runtime.tabulate import NotTabulable
from commlib.runtime.user_algorithms import UserAlgorithm
from commlib.torch_backend.catalogue import catalogue
from commlib.torch_backend.request import Request

REGIONS, READV = 1, 2
"""How a program gets at other ranks' tensors, as ``ShmSession.prepare`` takes it."""
_WHOLE = ("allreduce", "broadcast", "reduce")
"""Collectives whose larger buffer is one shard; of the others it is a shard for each rank."""
_LOOKS = 5
"""How often ranks look again whose files differ: one may have looked while a file was being put there."""
_PAUSE = 0.02
Agree = Callable[[int, str], Sequence[int]]
"""Gives every rank's number to all; the text says what for."""
T = TypeVar("T")


@dataclass(frozen=True)
class Situation:
    """What a group is: ``shared``: all its ranks share memory; ``readv``: they may read each other's memory directly;
    ``registered``: the tensors of this call are in registered memory on all ranks; ``hosts``: the host of each rank, as
    a number, where known; ``rank``: this one, for messages."""

    ranks: int
    shared: bool
    readv: bool = False
    registered: bool = False
    hosts: tuple[int, ...] = ()
    rank: int = 0

    @property
    def transport(self) -> str:
        """In words."""
        if self.shared:
            return "shared memory"
        return "shared memory and gloo" if 1 < len(set(self.hosts)) < self.ranks else "gloo"

    def together(self, rank: int, peer: int) -> bool:
        """Whether two ranks are known to share memory."""
        return self.shared or (bool(self.hosts) and self.hosts[rank] == self.hosts[peer])

    @property
    def nodes(self) -> int:
        """How many hosts, if the ranks are dealt to them evenly, in order, several to each; else 1."""
        count = len(set(self.hosts))
        local = self.ranks // count if count else 0
        even = 1 < count < self.ranks and all(
            self.hosts[rank] == self.hosts[rank // local * local] for rank in range(self.ranks)
        )
        return count if even and local * count == self.ranks else 1


@dataclass(frozen=True)
class Choice:
    """An algorithm and why it was chosen; ``reach``: how it gets at other ranks' tensors (see ``ShmSession``)."""

    algorithm: Algorithm
    reach: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Candidate:
    """A choice that may not be built yet; ``key``: equal on two ranks for the same program."""

    key: str
    why: str
    reach: int | None
    make: Callable[[], Algorithm]


def query_of(request: Request, situation: Situation) -> Query:
    """A request as the registry sees it. Ranks that share no memory count as on several hosts."""
    size = request.bytes * (1 if request.collective in _WHOLE else situation.ranks)
    hosts = 1 if situation.shared else max(2, len(set(situation.hosts)))
    reach = (situation.registered, situation.readv and situation.shared)
    return Query(request.collective, situation.ranks, size, request.placement, hosts, *reach)


def candidates(request: Request, situation: Situation, passed: list[str], plain: bool = False) -> Iterator[Candidate]:
    """What may be run, the best first; ``passed`` gets what is passed over, and why; ``plain``: the defaults only."""
    query = query_of(request, situation)
    for user in () if plain or request.either else catalogue().users.candidates(query, request.root):
        found = _of_user(user, query, situation, passed, f"user algorithm of {user.source}")
        if found is not None:
            yield found
    for table in (DEFAULTS,) if plain else catalogue().tables:
        for number, row in table.matches(query):
            found = _of_row(table, number, row, request, situation, passed)
            if found is not None:
                yield found


def _of_user(user: UserAlgorithm, query: Query, situation: Situation, passed: list[str], why: str) -> Candidate | None:
    algorithm = user.algorithm
    try:
        user.require(query.placement)
    except CommlibError:
        passed.append(f"{algorithm.name} of {user.source}: not proved {query.placement.value} place")
        return None
    reads, writes = algorithm.touches_peers_tensors
    if not situation.shared:
        return _apart(user, situation, passed, why)
    if not reads and not writes:
        return Candidate(user.digest, why, None, lambda: algorithm)
    if situation.registered:
        return Candidate(user.digest, why, REGIONS, lambda: algorithm)
    if query.readv and not writes:
        return Candidate(user.digest, why, READV, lambda: algorithm)
    passed.append(f"{algorithm.name} of {user.source}: the tensors are not in registered memory")
    return None


def _apart(user: UserAlgorithm, situation: Situation, passed: list[str], why: str) -> Candidate | None:
    """On several hosts: one-sided steps stay inside them."""
    try:
        refuse_unreachable(user.algorithm, situation.together, situation.transport)
    except SpecError as error:
        passed.append(f"{user.algorithm.name} of {user.source}: {error.message}")
        return None
    return Candidate(user.digest, why, None, lambda: user.algorithm)


def _of_row(
    table: Registry, number: int, row: Row, request: Request, situation: Situation, passed: list[str]
) -> Candidate | None:
    """What a row names: of the library, or a user's by its name."""
    why = f"row {number} of {one_line(table.source, table.source)}" + (f": {row.note}" if row.note else "")
    entry = _entry(row.algorithm, row.collective)
    if entry is None:
        return _named(row, why, request, situation, passed)
    if request.placement not in entry.placements or not _supports(entry, situation):
        return None
    parameters = (("nodes", situation.nodes),) if _by_nodes(entry) else ()
    reach = {"any": None, "registered": REGIONS, "readv": READV}[row.reach]
    given = (entry.collective, entry.name, situation.ranks, request.root, parameters)
    return Candidate(repr((given, reach)), why, reach, lambda: _built(*given))


def _named(row: Row, why: str, request: Request, situation: Situation, passed: list[str]) -> Candidate | None:
    query = query_of(request, situation)
    named = [user for user in catalogue().users if user.algorithm.name == row.algorithm]
    for user in named:
        if user.fits(query, request.root) and not request.either:
            return _of_user(user, query, situation, passed, why)
    if named:
        passed.append(f"{why} names {row.algorithm}, which is for other calls")
    else:
        _wrong(passed, f"{why} names {row.algorithm!r}, which is no algorithm of {row.collective}, nor a user's")
    return None


def _wrong(passed: list[str], text: str) -> None:
    """What is passed over because a table is wrong, of which its owner is warned."""
    passed.append(text)
    catalogue().complaints.add(logging.WARNING, f"{text}; the next choice is taken")


def _unreachable(choice: Choice) -> str | None:
    """What is wrong with the way in which a program is to get at other ranks' tensors."""
    reads, writes = choice.algorithm.touches_peers_tensors
    if choice.reach is None and (reads or writes):
        return 'works on other ranks\' tensors, for which the row must say "reach": "registered"'
    if choice.reach == READV and writes:
        return 'writes to other ranks\' tensors, which "reach": "readv" cannot'
    return None


def _by_nodes(entry: Entry | DirectEntry) -> bool:
    return any(parameter.name == "nodes" for parameter in entry.parameters)


def _supports(entry: Entry | DirectEntry, situation: Situation) -> bool:
    if isinstance(entry, DirectEntry):
        return situation.shared
    if _by_nodes(entry):
        return situation.nodes > 1 and entry.supports(situation.ranks, nodes=situation.nodes)
    return entry.supports(situation.ranks)


@lru_cache(maxsize=512)
def _entry(name: str, collective: str) -> Entry | DirectEntry | None:
    try:
        return entry_of(name, collective)
    except SpecError:
        return None


@lru_cache(maxsize=512)
def _built(
    collective: str, name: str, ranks: int, root: int | None, parameters: tuple[tuple[str, int], ...]
) -> Algorithm:
    return build(collective, name, ranks, root, **dict(parameters))


def choose(request: Request, situation: Situation, attempt: Callable[[Choice], T], agree: Agree | None = None) -> T:
    """What ``attempt`` makes of the first choice that it does not refuse (by NotTabulable or VerificationError).

    The folders of user algorithms are looked at here, for each new request. With user algorithms or a table of this
    machine, the ranks compare what they came to, over ``agree``; all of them must call this. Without ``agree`` the
    choice is among the defaults.

    Raises:
        SpecError: nothing can run it; or, on all ranks, the ranks see different files or tables.
    """
    passed: list[str] = []
    found = _agreed(request, situation, passed, agree)
    refused: CommlibError | None = None
    for candidate in found:
        choice = Choice(candidate.make(), candidate.reach, candidate.why)
        trouble = _unreachable(choice)
        if trouble is not None:
            _wrong(passed, f"{choice.why} names {choice.algorithm.name}, which {trouble}")
            continue
        try:
            made = attempt(choice)
        except (NotTabulable, VerificationError) as error:
            refused = error
            passed.append(f"{choice.algorithm.name} ({choice.why}): {error.message.splitlines()[0]}")
            continue
        if agree is not None:
            catalogue().complaints.tell(situation.rank)
            _tell(request, situation, choice, passed)
        return made
    catalogue().complaints.tell(situation.rank)
    raise SpecError(f"no algorithm can run {request.text('-')}: {'; '.join(passed)}") from refused


def _agreed(request: Request, situation: Situation, passed: list[str], agree: Agree | None) -> Iterable[Candidate]:
    """The candidates, the same on all ranks. Without ``agree`` only those that need none are there."""
    if agree is None or not catalogue().active:
        return candidates(request, situation, passed, plain=True)
    for _ in range(_LOOKS):
        with catalogue().lock:
            catalogue().refresh()
            passed.clear()
            found = list(candidates(request, situation, passed))
        mine = _number([candidate.key for candidate in found])
        theirs = agree(mine, f"{request.collective} choice")
        if len(set(theirs)) == 1:
            return found
        time.sleep(_PAUSE)
    catalogue().complaints.tell(situation.rank, alike=False)
    raise _differ(theirs, found)


def _number(keys: Sequence[str]) -> int:
    digest = hashlib.sha256("\n".join(keys).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _differ(theirs: Sequence[int], found: Sequence[Candidate]) -> SpecError:
    groups: dict[int, list[int]] = {}
    for rank, number in enumerate(theirs):
        groups.setdefault(number, []).append(rank)
    parts = " and ".join(f"ranks {', '.join(map(str, ranks))}" for ranks in groups.values())
    first = found[0].why if found else "nothing"
    return SpecError(
        f"{parts} would choose from different algorithms (this one begins with {first}): COMMLIB_TUNING, "
        "MSCCL_XML_FILES, MSCCL_ALGO_DIR and COMMLIB_ALGO_DIR must name the same content on all ranks, and "
        "register_algorithm and reload_algorithms be called by all at the same point"
    )


def _tell(request: Request, situation: Situation, choice: Choice, passed: Sequence[str]) -> None:
    if situation.rank or not logger.isEnabledFor(logging.INFO):
        return
    over = f"; passed over: {'; '.join(passed)}" if passed else ""
    how = {None: "", REGIONS: ", in registered memory", READV: ", by process_vm_readv"}[choice.reach]
    logger.info(
        "%s, %d bytes on %d ranks over %s%s -> %s (%s)%s",
        request.text("").replace("  ", " "), query_of(request, situation).bytes, situation.ranks,
        situation.transport, how, choice.algorithm.name, choice.why, over,
    )  # fmt: skip
