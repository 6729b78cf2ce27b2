"""Forks: a child process must not use what its parent has opened to other ranks, for both would speak as one rank."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

FORKED = "the process was forked: this group belongs to its parent; make a new one"


class Owned(Protocol):
    """What belongs to the process that made it."""

    def disown(self) -> None:
        """In a child: refuse all later use. No other thread runs, and the locks of those that ran may be held."""


_owned: weakref.WeakSet[Owned] = weakref.WeakSet()


def own(thing: Owned) -> None:
    """Have ``thing.disown()`` called in every fork of this process, as long as it lives."""
    _owned.add(thing)


def _disown() -> None:
    things = list(_owned)
    _owned.clear()
    for thing in things:
        thing.disown()


os.register_at_fork(after_in_child=_disown)
