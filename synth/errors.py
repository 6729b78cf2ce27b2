"""The errors of the synthesizer."""

from __future__ import annotations

from commlib.errors import CommlibError


class SketchError(CommlibError):
    """A sketch is ill-formed or does not fit its topology; the message names file, key, rank or link."""


class SynthesisError(CommlibError):
    """A problem has no solution; ``fields`` has the rank that cannot be reached and the statements that clash."""


class ScheduleError(CommlibError):
    """A schedule does not solve its problem; the message names item, rank, link and time."""


class SolverError(CommlibError):
    """A solver is missing or failed; the message says which, and what to install."""
