"""The catalogue: the algorithms that this process chooses from, and how a user adds to them."""

from __future__ import annotations

import os
import threading
import weakref
from functools import cache
from typing import Protocol

from commlib.collectives import Placement
from commlib.errors import SpecError
from commlib.ir.algorithm import Algorithm
from commlib.runtime.debug import Complaints, obey_environment
from commlib.runtime.defaults import DEFAULTS
from commlib.runtime.registry import Range, Registry
from commlib.runtime.shm.load import native_is_built
from commlib.runtime.tuning import load_tuning
from commlib.runtime.user_algorithms import UserAlgorithm, UserAlgorithms, load_user_algorithm


class Forgetful(Protocol):
    """Something that remembers which algorithms it chose."""

    def forget(self) -> None:
        """Choose anew from now on."""


class Catalogue:
    """User algorithms and tables. ``lock`` is held while they are looked at or changed.

    ``complaints``: what is wrong with them, told at the next choice.
    """

    def __init__(self) -> None:
        obey_environment()
        self.lock = threading.RLock()
        self.complaints = Complaints()
        self.users = UserAlgorithms(self.complaints.add)
        self._read_table()
        self._groups: weakref.WeakSet[Forgetful] = weakref.WeakSet()

    def _read_table(self) -> None:
        self._refused = False

        def say(level: int, text: str) -> None:
            self._refused = True
            self.complaints.add(level, text)

        self._tuning = load_tuning(native_is_built(), say)

    @property
    def tables(self) -> tuple[Registry, ...]:
        """The registries, in the order in which they are tried."""
        return (DEFAULTS,) if self._tuning is None else (self._tuning, DEFAULTS)

    @property
    def active(self) -> bool:
        """Whether there is more than the defaults, or would be but for what was refused, so that ranks might differ."""
        return self._tuning is not None or self._refused or self.users.active

    def subscribe(self, group: Forgetful) -> None:
        """Have a group choose anew when something is added, removed or loaded again."""
        self._groups.add(group)

    def refresh(self) -> None:
        """Look at the files of user algorithms again."""
        self.users.refresh()

    def reload(self) -> None:
        """Read the table and the files again, and have all groups choose anew."""
        with self.lock:
            self._read_table()
            self.users.refresh()
            self.forget()

    def forget(self) -> None:
        """Have all groups choose anew."""
        for group in list(self._groups):
            group.forget()


_making = threading.Lock()


def catalogue() -> Catalogue:
    """The one of this process."""
    with _making:  # a cache alone would let two threads make two
        return _made()


@cache
def _made() -> Catalogue:
    return Catalogue()


def register_algorithm(
    algorithm: Algorithm | str | os.PathLike[str],
    min_bytes: int | None = None,
    max_bytes: int | None = None,
    *,
    placement: Placement | str | None = None,
    registered: bool | None = None,
) -> None:
    """Have the calls that an algorithm is for run it from now on; every rank calls this between the same two calls.

    It is for its own collective, root and number of ranks. Those registered later are tried first; all before files,
    the tuned table and the defaults.

    Args:
        algorithm: an Algorithm, or a file (MSCCL XML, .json, .txt).
        min_bytes, max_bytes: of a rank's larger buffer, both included; by default those of an XML file, else all.
        placement: "in" or "out" for calls in place or out of place only; by default all for which it is proved.
        registered: True or False for tensors in registered memory only, or for others only.

    Raises:
        VerificationError: it is not proved. FormatError: the file cannot be read, or does not say what it is to do.
        SpecError: the bounds, or the placement, are none.
    """
    bounds = None if min_bytes is None and max_bytes is None else Range(min_bytes or 0, max_bytes)
    where = _placement(placement)
    users: tuple[UserAlgorithm, ...]
    if isinstance(algorithm, Algorithm):
        users = (UserAlgorithm(algorithm, "Python", bounds or Range(), where, registered),)
    else:
        users = load_user_algorithm(algorithm, bounds, where, registered)
    here = catalogue()
    with here.lock:
        for user in users:
            here.users.add(user)
        here.forget()


def unregister_algorithm(name: str) -> bool:
    """Take back what was registered under an algorithm's name; whether there was such. Every rank calls this."""
    here = catalogue()
    with here.lock:
        found = here.users.remove(name)
        here.forget()
    return found


def reload_algorithms() -> None:
    """Read tables and files of algorithms again, and choose anew also for calls that were made before.

    Every rank calls this between the same two calls. Without it, new files are seen by calls of a kind (collective,
    size, type, reduction, root) that a group has not made yet.
    """
    catalogue().reload()


def _placement(given: Placement | str | None) -> Placement | None:
    if given is None or isinstance(given, Placement):
        return given
    if given not in ("in", "out"):
        raise SpecError(f'placement is "in" or "out", not {given!r}')
    return Placement(given)
