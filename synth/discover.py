"""Discover: the symmetries of a problem that nobody stated."""

from __future__ import annotations

from commlib.topology import Topology
from synth.symmetry import Actions, Symmetry, likely


def discover(actions: Actions, topology: Topology) -> Symmetry:
    """A free group of symmetries of a problem, as large as is found."""
    symmetry, _ = actions.group(likely(topology.ranks))
    return symmetry
