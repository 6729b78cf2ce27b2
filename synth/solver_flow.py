"""Maximum flow by OR-Tools' push-relabel in C++; the only module that imports it for flows."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from synth.errors import SolverError
from synth.symmetry import Ints

PLENTY = 1 << 60
"""A capacity that no flow fills."""


class MaxFlow:
    """A network whose capacities change: arc a goes from ``tail[a]`` to ``head[a]``; parallel arcs are allowed."""

    def __init__(self, tail: Ints, head: Ints) -> None:
        try:
            module: Any = importlib.import_module("ortools.graph.python.max_flow")
        except ImportError as error:
            raise SolverError("OR-Tools is not there: pip install 'ortools>=9.11'", module="ortools") from error
        self._solver = module.SimpleMaxFlow()
        zeros = np.zeros(len(tail), dtype=np.int64)
        self._arcs = self._solver.add_arcs_with_capacity(tail.astype(np.int32), head.astype(np.int32), zeros)
        self._done = module.SimpleMaxFlow.OPTIMAL

    def value(self, capacity: Ints, source: int, sink: int) -> int:
        """The value of a maximum flow; capacities are whole and at least 0.

        Raises:
            SolverError: the sum of capacities is beyond 63 bits.
        """
        self._solver.set_arcs_capacity(self._arcs, np.minimum(capacity, PLENTY))
        status = self._solver.solve(source, sink)
        if status != self._done:
            raise SolverError(f"OR-Tools' maximum flow gave up: {status}", solver="OR-Tools")
        return int(self._solver.optimal_flow())

    def flows(self) -> Ints:
        """Shape (A,): the last flow on each arc."""
        flows: Ints = self._solver.flows(self._arcs)
        return flows

    def source_side(self, nodes: int) -> npt.NDArray[np.bool_]:
        """The nodes on the source's side of a minimum cut of the last flow, as a mask."""
        side = np.zeros(nodes, dtype=np.bool_)
        side[self._solver.get_source_side_min_cut()] = True
        return side
