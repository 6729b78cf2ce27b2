"""User algorithms: what a user adds to the library, from files, folders and Python, proved before it is chosen.

Files come from ``MSCCL_XML_FILES`` (names with ``:`` between them), and from the folders ``MSCCL_ALGO_DIR`` and
``COMMLIB_ALGO_DIR`` (every .xml, .json and .txt in it, by name). ``refresh`` looks which are new, changed or gone: a
``stat`` for each file. Files are read then, and proved before the first call that they are for. What cannot be read,
or is proved in no placement, is refused: a warning says why, and it is not looked at again until the file changes.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from commlib.collectives import ROOTED, Placement
from commlib.errors import CommlibError, FormatError, SpecError, VerificationError
from commlib.formats import load, xml_info
from commlib.ir.algorithm import STEP_COLUMNS, TB_COLUMNS, Algorithm
from commlib.runtime.debug import Say, logger, one_line
from commlib.runtime.registry import Query, Range
from commlib.verify import FIFO_DEPTH, require

FILES = "MSCCL_XML_FILES"
FOLDERS = ("MSCCL_ALGO_DIR", "COMMLIB_ALGO_DIR")
ENDINGS = (".xml", ".json", ".txt")
MAX_FILES = 4096
"""Files of a folder that are looked at."""
EVERY = Range()
_Stamp = tuple[int, int, int]


@dataclass(eq=False)
class UserAlgorithm:
    """An algorithm for calls of ``sizes`` bytes (of a rank's larger buffer); ``source``: the file, or "Python".

    ``placement`` and ``registered`` narrow it down where a user said so.
    """

    algorithm: Algorithm
    source: str
    sizes: Range = EVERY
    placement: Placement | None = None
    registered: bool | None = None
    digest: str = ""
    _verdicts: dict[Placement, VerificationError | SpecError | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.digest = _digest(self)

    def fits(self, query: Query, root: int | None) -> bool:
        """Whether it is for such calls; says nothing of a proof."""
        collective = self.algorithm.collective
        return (
            (collective.name, collective.ranks, collective.root) == (query.collective, query.ranks, root)
            and query.bytes in self.sizes
            and self.placement in (None, query.placement)
            and self.registered in (None, query.registered)
        )

    def require(self, placement: Placement) -> None:
        """Prove it in this placement; once.

        Raises:
            VerificationError: it is not proved. SpecError: in place has no meaning for its collective.
        """
        if placement not in self._verdicts:
            self._verdicts[placement] = self._judge(placement)
        verdict = self._verdicts[placement]
        if verdict is not None:
            raise verdict

    def _judge(self, placement: Placement) -> VerificationError | SpecError | None:
        try:
            require(self.algorithm, placement, FIFO_DEPTH, whole_messages=True)
        except (VerificationError, SpecError) as error:
            return error
        return None


def _digest(user: UserAlgorithm) -> str:
    """Equal for what is the same program for the same calls."""
    a = user.algorithm
    where = None if user.placement is None else user.placement.value
    facts = (a.name, a.collective, a.scratch_chunks, user.sizes, where, user.registered)
    digest = hashlib.sha256(repr(facts).encode())
    for column in TB_COLUMNS + STEP_COLUMNS:
        digest.update(getattr(a, column).tobytes())
    return digest.hexdigest()


@dataclass
class _File:
    """What was made of a file when it had this stamp: algorithms (one, or none), or why it was refused."""

    stamp: _Stamp | None
    found: tuple[UserAlgorithm, ...] = ()
    refused: CommlibError | None = None


class UserAlgorithms:
    """Those of one process. Not for several threads at once.

    Attributes:
        refused: for each file that was refused, why.
    """

    def __init__(self, say: Say = logger.log) -> None:
        """``say`` gets the warnings."""
        self._say = say
        self._python: list[UserAlgorithm] = []
        self._files: dict[str, _File] = {}
        self._told: set[str] = set()

    @property
    def active(self) -> bool:
        """Whether there are any, or there may be."""
        return bool(self._python) or any(os.environ.get(name) for name in (FILES, *FOLDERS))

    @property
    def refused(self) -> dict[str, CommlibError]:
        """By file, why it is not used."""
        return {name: file.refused for name, file in self._files.items() if file.refused is not None}

    def __iter__(self) -> Iterator[UserAlgorithm]:
        """In the order in which they are tried: those of Python, the latest first, then those of files."""
        yield from reversed(self._python)
        for file in self._files.values():
            yield from file.found

    def candidates(self, query: Query, root: int | None) -> Iterator[UserAlgorithm]:
        """Those for such a call that are proved in some placement, though maybe not in its own."""
        return (user for user in self if user.fits(query, root) and self._usable(user))

    def _usable(self, user: UserAlgorithm) -> bool:
        try:
            require_any(user)
        except CommlibError as error:
            file = self._files.get(user.source)
            if file is not None:
                file.found, file.refused = (), error
            self._warn(user.source, error)
            return False
        return True

    @property
    def digest(self) -> str:
        """Equal where the same algorithms are tried in the same order."""
        return " ".join(user.digest for user in self)

    def add(self, user: UserAlgorithm) -> None:
        """Add one from Python, in front of all others.

        Raises:
            VerificationError: it is not proved in any placement that it is for.
            FormatError: it has no collective, so that nothing can be said of its result.
        """
        _specified(user)
        require_any(user)
        self._python.append(user)

    def remove(self, name: str) -> bool:
        """Take away those that were added from Python under this name; whether there was one."""
        before = len(self._python)
        self._python = [user for user in self._python if user.algorithm.name != name]
        return len(self._python) < before

    def refresh(self) -> bool:
        """Look at files and folders again; whether anything changed. O(files), and what is new is read and proved."""
        before, files = self._files, {}
        for name in self._names():
            stamp, known = _stamp(name), before.get(name)
            files[name] = known if known is not None and known.stamp == stamp else self._read(name, stamp)
        changed = list(files.items()) != list(before.items())
        self._files = files
        return changed

    def _read(self, name: str, stamp: _Stamp | None) -> _File:
        try:
            return _File(stamp, load_user_algorithm(name))
        except CommlibError as error:
            self._warn(name, error)
            return _File(stamp, refused=error)

    def _warn(self, source: str, error: CommlibError) -> None:
        self._say(logging.WARNING, one_line(source, f"{source} is refused: {type(error).__name__}: {error.message}"))

    def _names(self) -> list[str]:
        """All files that the environment names, each once."""
        named = [name for name in os.environ.get(FILES, "").split(os.pathsep) if name]
        for variable in FOLDERS:
            if os.environ.get(variable):
                named += self._in_folder(os.environ[variable], variable)
        return list(dict.fromkeys(named))

    def _in_folder(self, folder: str, variable: str) -> list[str]:
        try:
            with os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries if _is_candidate(entry.name))
        except (OSError, ValueError) as error:
            if folder not in self._told:
                self._told.add(folder)
                self._say(logging.WARNING, one_line(folder, f"{variable}={folder} cannot be read: {error}"))
            return []
        return [os.path.join(folder, name) for name in names[:MAX_FILES]]


def _is_candidate(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def load_user_algorithm(
    path: str | os.PathLike[str],
    bounds: Range | None = None,
    placement: Placement | None = None,
    registered: bool | None = None,
) -> tuple[UserAlgorithm, ...]:
    """What a file holds; ``bounds`` in place of those that an XML file says.

    A file of a rooted collective without a root (MSCCL XML has none) gives the roots for which it is proved: one.

    Raises:
        FormatError: it cannot be read, or says nothing of what it is to do; LimitError: it is too large.
        VerificationError: for no root it is proved.
    """
    name = os.fspath(path)
    where = _bounds(name) if bounds is None else bounds
    if Path(name).suffix.lower() != ".xml" or xml_info(name).coll not in ROOTED:
        return (_specified(UserAlgorithm(load(name), name, where, placement, registered)),)
    found, errors = [], []
    for root in range(xml_info(name).ngpus):
        try:
            user = UserAlgorithm(load(name, root=root), name, where, placement, registered)
            require_any(user)
            found.append(user)
        except CommlibError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return tuple(found)


def _specified(user: UserAlgorithm) -> UserAlgorithm:
    if not user.algorithm.collective.specified:
        message = f"{user.source}: {user.algorithm.name} does not say what its result is to be (coll is custom)"
        raise FormatError(message, file=user.source)
    return user


def _bounds(name: str) -> Range:
    """The sizes that an XML file is for; 0 is the executor's word for no upper bound."""
    if Path(name).suffix.lower() != ".xml":
        return Range()
    info = xml_info(name)
    return Range(info.min_bytes, info.max_bytes or None)


def require_any(user: UserAlgorithm) -> None:
    """Prove an algorithm in one of the placements that it is for.

    Raises:
        VerificationError: it is proved in none. SpecError: only in place, which has no meaning for its collective.
    """
    errors = []
    for placement in Placement if user.placement is None else (user.placement,):
        try:
            user.require(placement)
        except (VerificationError, SpecError) as error:
            errors.append(error)
        else:
            return
    raise errors[-1]  # out of place, where both were tried: the plainer form


def _stamp(name: str) -> _Stamp | None:
    """What changes when the file does; None where there is none."""
    try:
        status = os.stat(name)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
