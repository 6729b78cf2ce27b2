"""Engine: what every engine is given and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from synth.problem import Problem
from synth.schedule import Schedule, Transfer


class Progress(NamedTuple):
    """Where a search stands: its stage, best time and bound in ticks (None: not yet), and seconds left.

    ``tick`` is the length of a tick in seconds; engines need not know it, the pipeline fills it in.
    """

    stage: str
    incumbent: int | None
    bound: int
    left: float
    tick: float = 0.0


@dataclass(frozen=True)
class Budget:
    """How long an engine may search.

    ``seconds`` is wall-clock time from the making of the budget on (infinite: no clock). ``work`` is the solver's
    deterministic time (None: unlimited); a search that ends by proof or by work gives the same result every time.
    ``report`` hears of progress.
    """

    seconds: float = 60.0
    work: float | None = None
    threads: int = 1
    seed: int = 0
    report: Callable[[Progress], None] = field(default=lambda progress: None, repr=False)
    began: float = field(default_factory=time.monotonic, repr=False)

    @property
    def left(self) -> float:
        """Seconds left, 0 when the time is over."""
        return max(0.0, self.seconds - (time.monotonic() - self.began))


class Ended(Enum):
    """Why a search ended."""

    PROOF = "proof"
    """Its time equals a proven bound, or the search was exhausted."""
    HEURISTIC = "heuristic"
    """The engine has nothing more to try; deterministic, not proven."""
    WORK = "work limit"
    """The work limit was reached; deterministic, not proven."""
    TIME = "time limit"
    """The clock ran out; another run may end elsewhere."""

    def after(self, other: Ended) -> Ended:
        """How a search ended that had several parts: any that the clock cut makes it depend on the clock."""
        order = (Ended.TIME, Ended.WORK, Ended.HEURISTIC)
        return next((ended for ended in order if ended in (self, other)), Ended.HEURISTIC)


class Stage(NamedTuple):
    """A stage of an engine and the seconds that it took."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What an engine found: a plan (never none: a connected problem always has one), and what it proved.

    ``bound`` is a lower bound in ticks that holds for every schedule of the problem (0: the engine proved nothing);
    ``bound_kind`` says where it comes from. A bound that holds only for schedules with the problem's symmetry does not
    count as one for the problem; it goes into ``notes``. ``wider`` is a shorter schedule of the same problem that does
    not have its symmetry, and so is no plan, where one was found.
    """

    engine: str
    plan: tuple[Transfer, ...] = field(repr=False)
    bound: int
    bound_kind: str
    ended: Ended
    stages: tuple[Stage, ...] = ()
    notes: tuple[str, ...] = ()
    wider: Schedule | None = None


class Engine(Protocol):
    """An engine; ``bound`` is what is already known (ticks), ``incumbent`` a plan to start from, if there is one."""

    def __call__(
        self, problem: Problem, budget: Budget, bound: int, incumbent: tuple[Transfer, ...] | None = None
    ) -> Outcome:
        """Solve a problem.

        Raises:
            SynthesisError: the problem has no solution; the message says which rank cannot be reached and why.
        """
        ...
