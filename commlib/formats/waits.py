"""Waits: folds nop steps into the dependences of the steps after them, which means the same.

A nop waits and does nothing. The next step of its threadblock starts no earlier than the nop would end, so it may as
well wait itself; who waits for a nop waits for what the nop waits for and for the step before it. MSCCL XML has
one dependence per step and uses nops to carry more; an Algorithm has any number per step and needs none.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from commlib.errors import FormatError
from commlib.formats.limits import DEFAULT_LIMITS, refuse
from commlib.ir.algorithm import Algorithm, Op, Origins

Mask = npt.NDArray[np.bool_]
Waits = dict[int, list[int]]
"""For each step that waits: the steps it waits for, by global number."""

_STEP_COLUMNS = ("op", "source_buffer", "source_index", "destination_buffer", "destination_index", "count")


def waits_of(algorithm: Algorithm) -> Waits:
    """The dependences of an algorithm, as lists for the steps that have any."""
    bounds, dep = algorithm.dep_start.tolist(), algorithm.dep.tolist()
    return {int(s): dep[bounds[s] : bounds[s + 1]] for s in np.flatnonzero(np.diff(algorithm.dep_start))}


def without_nops(algorithm: Algorithm, max_dependences: int = DEFAULT_LIMITS.max_dependences) -> Algorithm:
    """The same algorithm without nop steps and with every dependence list sorted and free of repetitions.

    A nop at the end of a threadblock that nothing waits for vanishes. Linear, unless steps wait for nops.

    Raises:
        FormatError: nops that wait for each other in a circle, which no step could ever get past.
        LimitError: the dependences grow beyond ``max_dependences``.
    """
    keep = algorithm.op != Op.NOP
    waits = _fold(algorithm, (~keep).tolist(), max_dependences)
    number = np.cumsum(keep) - 1
    kept = np.cumsum(np.concatenate(([0], keep)))
    counts = np.zeros(algorithm.step_count, dtype=np.int64)
    counts[list(waits)] = [len(row) for row in waits.values()]
    flat = np.array([step for s in sorted(waits) for step in waits[s]], dtype=np.int64)
    columns = {name: getattr(algorithm, name)[keep] for name in _STEP_COLUMNS}
    return replace(
        algorithm,
        **columns,
        tb_start=kept[algorithm.tb_start],
        dep_start=np.concatenate(([0], np.cumsum(counts[keep]))),
        dep=number[flat],
        # Nops have no operands, so that no row of them goes.
        operand_start=algorithm.operand_start[np.append(keep, True)],
        origins=_kept_origins(algorithm.origins, keep),
    )


def _kept_origins(origins: Origins | None, keep: Mask) -> Origins | None:
    return None if origins is None else Origins(origins.files, origins.file[keep], origins.line[keep])


def _fold(algorithm: Algorithm, nop: list[bool], max_dependences: int) -> Waits:
    """The waits of the steps that are no nops, for steps that are no nops."""
    waits = waits_of(algorithm)
    meaning = _NopMeaning(algorithm, nop, waits, max_dependences)
    folded: Waits = {}
    for first, end in pairwise(algorithm.tb_start.tolist()):
        pending: list[int] = []
        for step in range(first, end):
            if step in waits:
                pending += meaning.resolve(waits[step])
            if pending and not nop[step]:
                folded[step] = sorted(set(pending))
                pending = []
    return folded


@dataclass
class _NopMeaning:
    """What waiting for a nop means, worked out once for each nop that is waited for."""

    algorithm: Algorithm
    nop: list[bool]
    waits: Waits
    max_dependences: int
    known: dict[int, frozenset[int]] = field(default_factory=dict)
    spent: int = 0

    def resolve(self, steps: list[int]) -> list[int]:
        """The steps that are no nops that a wait for these steps waits for."""
        found: list[int] = []
        for step in steps:
            found.extend(self._meaning(step) if self.nop[step] else (step,))
        self._spend(len(found))
        return found

    def _spend(self, count: int) -> None:
        self.spent += count
        if self.spent > self.max_dependences:
            file, line = self.algorithm.origin(0) or (self.algorithm.name, 1)
            what = "folding its nops makes too many dependences"
            raise refuse(file, line, "max_dependences", self.max_dependences, what)

    def _before(self, nop: int) -> list[int]:
        """What a nop waits for: its dependences and the step before it in its threadblock."""
        starts = self.algorithm.tb_start[self.algorithm.step_threadblock[nop]] == nop
        return self.waits.get(nop, []) + ([] if starts else [nop - 1])

    def _meaning(self, nop: int) -> frozenset[int]:
        # Depth first with a stack of its own: a chain of nops may be longer than Python's.
        open_nops, stack = set[int](), [nop]
        while stack:
            top = stack[-1]
            missing = [s for s in self._before(top) if self.nop[s] and s not in self.known]
            if top not in self.known and missing:
                open_nops.add(top)
                self._refuse_circle(missing, open_nops)
                stack.extend(missing)
                continue
            stack.pop()
            open_nops.discard(top)
            if top not in self.known:
                before = self._before(top)
                parts = (self.known[s] if self.nop[s] else (s,) for s in before)
                self.known[top] = frozenset(step for part in parts for step in part)
                self._spend(len(self.known[top]))
        return self.known[nop]

    def _refuse_circle(self, missing: list[int], open_nops: set[int]) -> None:
        circle = open_nops.intersection(missing)
        if circle:
            number = circle.pop()
            rank, threadblock, step = self.algorithm.place(number)
            file, line = self.algorithm.origin(number) or (self.algorithm.name, 0)
            raise FormatError(
                f"{file}:{line}: rank {rank} threadblock {threadblock} step {step} is a nop that waits for itself, "
                f"through the dependences of other nops; remove one of them",
                file=file, line=line, rank=rank, threadblock=threadblock, step=step,
            )  # fmt: skip
