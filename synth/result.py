"""Result: what synthesis returns. The schedule, its algorithm, and how far it is from the best possible."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING

from commlib.collectives import Collective
from commlib.errors import SpecError, VerificationError
from commlib.topology import Topology, cost_table
from synth.engine import Ended, Stage
from synth.moves import Moves
from synth.retiming import in_sequence
from synth.schedule import Transfer

if TYPE_CHECKING:
    from commlib.bounds import Bound
    from commlib.ir.algorithm import Algorithm
    from commlib.verify import Report


@dataclass(frozen=True)
class Result:
    """A synthesized collective.

    ``logical`` is what the sketch leaves of ``topology``: the moves run on it. ``time`` is the predicted time in
    seconds; ``bound`` a proven lower bound for the sketch's problem (or an engine's own proof: ``bound_kind`` says
    which), ``topology_bound`` one for the whole topology without the sketch. ``proven``: time equals ``bound``.
    ``seconds`` is how long the synthesis took, ``stages`` where it went.
    """

    collective: Collective
    topology: Topology = field(repr=False)
    logical: Topology = field(repr=False)
    moves: Moves = field(repr=False)
    chunk_bytes: float
    engine: str
    ended: Ended
    time: float
    bound: float
    bound_kind: str
    certificate: Bound | None = field(repr=False)
    topology_bound: float
    topology_bound_kind: str
    stages: tuple[Stage, ...]
    seconds: float
    instances: int = 1
    name: str = "synthesized"
    notes: tuple[str, ...] = ()
    plans: Mapping[str, tuple[Transfer, ...]] = field(default_factory=dict, repr=False)
    """The plans that were expanded, by collective: starting points for another search (see ``known`` of ``solve``)."""

    @property
    def proven(self) -> bool:
        """Whether nothing faster exists for the sketch's problem."""
        return self.ended is Ended.PROOF

    @property
    def gap(self) -> float:
        """How much longer than ``bound`` it takes, as a fraction of the bound (0 when proven)."""
        if self.proven or self.time <= self.bound:
            return 0.0
        return (self.time - self.bound) / self.bound if self.bound else float("inf")

    def seconds_at(self, chunk_bytes: float) -> float:
        """The predicted time when every chunk has this size instead: the same order, priced anew. O(M log M).

        Where chunks differ in size (alltoallv) all grow by ``chunk_bytes`` / ``self.chunk_bytes``.

        Raises:
            SpecError: chunks differ in size, and ``self.chunk_bytes`` is 0: nobody knows how large each is to be.
            TopologyError: the size is negative or not finite.
        """
        costs = cost_table(self.logical, self._sizes_at(chunk_bytes))
        return in_sequence(self.collective, costs, self.moves.parcels, list(self.moves.rows())).seconds

    def _sizes_at(self, chunk_bytes: float) -> list[float]:
        sizes = self.moves.costs.sizes
        if self.chunk_bytes:
            return [size * (chunk_bytes / self.chunk_bytes) for size in sizes]
        if any(sizes):
            raise SpecError(
                f"{self.collective.name} has chunks of sizes of their own, given beside a chunk size of 0 bytes: they "
                f"do not grow with it; ask with a chunk size that is more than 0",
                chunk_bytes=chunk_bytes,
            )
        return [chunk_bytes] * len(sizes)

    @property
    def time_profile(self) -> float:
        """The time in the unit of the topology's profile."""
        return _in_units(self.time, self.topology)

    @property
    def bound_profile(self) -> float:
        """The bound in the unit of the topology's profile."""
        return _in_units(self.bound, self.topology)

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Where the time went, by stage; a stage that ran several times is added up."""
        spent: dict[str, float] = {}
        for stage in self.stages:
            spent[stage.name] = spent.get(stage.name, 0.0) + stage.seconds
        return spent

    @property
    def algorithm(self) -> Algorithm:
        """The compiled algorithm, proved by the verifier in every placement that it declares.

        Raises:
            VerificationError: the verifier found something wrong (which would be a defect of the synthesizer).
        """
        return self._proved[0]

    @property
    def proof_seconds(self) -> float:
        """How long compiling and proving the algorithm took, which is done once, after the search."""
        return self._proved[1]

    @cached_property
    def _proved(self) -> tuple[Algorithm, float]:
        from synth.lowering import compiled

        began = time.monotonic()
        algorithm = compiled(self.moves, name=self.name, instances=self.instances)
        report = _verified(algorithm)
        if not report.proved >= algorithm.placements:
            raise VerificationError(report.text(), findings=report.findings)
        return algorithm, time.monotonic() - began

    def save(self, path: str | PathLike[str]) -> None:
        """Write the algorithm, proved; the form (MSCCL XML, JSON, text) follows the file's suffix.

        Raises:
            VerificationError: the verifier found something wrong; nothing is written.
            FormatError: the file cannot be written.
        """
        from commlib.formats import save

        save(self.algorithm, path)

    def as_json(self) -> Mapping[str, object]:
        """The facts, for a program; times in seconds unless the name says ``profile``."""
        return {
            "collective": self.collective.name,
            "topology": self.topology.name,
            "engine": self.engine,
            "ended": self.ended.value,
            "time": self.time,
            "bound": self.bound,
            "bound_kind": self.bound_kind,
            "certificate": None if self.certificate is None else self.certificate.as_json(),
            "gap": self.gap if self.gap != float("inf") else None,
            "proven": self.proven,
            "topology_bound": self.topology_bound,
            "topology_bound_kind": self.topology_bound_kind,
            "time_profile": self.time_profile,
            "bound_profile": self.bound_profile,
            "profile_unit": self.topology.unit.name,
            "seconds": self.seconds,
            "stages": self.stage_seconds,
            "proof_seconds": self.proof_seconds,
            "ranks": self.collective.ranks,
            "chunks": self.collective.chunks,
            "chunk_bytes": self.chunk_bytes,
            "steps": self.algorithm.step_count,
            "instances": self.instances,
            "notes": list(self.notes),
        }


def _in_units(seconds: float, topology: Topology) -> float:
    return float(f"{seconds / topology.unit.seconds:.12g}")


def _verified(algorithm: Algorithm) -> Report:
    from commlib.verify import verify

    return verify(algorithm)
