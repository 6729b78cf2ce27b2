"""The errors of the toolkit: one base class, one kind per room, each with its facts as fields.

Every error carries ``fields``: a dictionary of what is at fault (file, line, rank, buffer, chunk, threadblock,
step, link, ...), so that a program can read what a person reads in the message.
"""

from __future__ import annotations


class CommlibError(Exception):
    """The base of every error that commlib raises on purpose; ``fields`` names what is at fault."""

    def __init__(self, message: str, **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.fields))


def _rebuild(kind: type[CommlibError], message: str, fields: dict[str, object]) -> CommlibError:
    return kind(message, **fields)


class SpecError(CommlibError):
    """A collective, a reduction or one of their parameters is not defined that way."""


class TopologyError(CommlibError):
    """A topology is ill-formed, or an algorithm wants a link that the topology lacks."""


class ProgramError(CommlibError):
    """A DSL program does something that has no meaning; the message names the user's source line and the chunk."""


class StaleReferenceError(ProgramError):
    """A chunk reference is used after its slot was overwritten."""


class UninitializedReadError(ProgramError):
    """A slot is read before anything was written to it."""


class SlotError(ProgramError):
    """A slot lies outside its buffer, its rank outside the collective, or the buffer does not exist."""


class CompileError(CommlibError):
    """A valid program cannot be compiled as asked, for example because its hints contradict each other."""


class AlgorithmError(CommlibError):
    """An Algorithm's columns do not fit together (found when it is built, never later)."""


class FormatError(CommlibError):
    """A file cannot be read or written in the format asked for; ``fields`` has file and line where known."""


class LimitError(FormatError):
    """A file, or a question, is refused before anything is allocated, because it exceeds a stated limit."""


class VerificationError(CommlibError):
    """An algorithm was asked for that is not proved; ``fields['findings']`` has the counterexamples."""


class ExecutionError(CommlibError):
    """A run failed; the message names rank, peer, channel, threadblock and step."""


class DeadlineError(ExecutionError):
    """A wait reached its deadline."""


class PeerFailedError(ExecutionError):
    """A peer died, stopped or reported an error on which this rank's remaining steps depend."""


class MismatchError(ExecutionError):
    """Ranks called with different algorithms, shapes, dtypes or reductions."""
