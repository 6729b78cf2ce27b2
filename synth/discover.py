"""Discover: the symmetries of a problem that nobody stated."""

from __future__ import annotations

from synth.symmetry import Actions, Symmetry, likely


def discover(actions: Actions) -> Symmetry:
    """A free group of symmetries of a problem, as large as is found."""
    symmetry, _ = actions.group(likely(actions.costs.ranks))
    return symmetry
