"""Linear programs for the bounds: known optima by HiGHS and by CBC, and the flow bound that they make."""

import sys

import numpy as np
import pulp  # noqa: F401  (before a test hides HiGHS from it)
import pytest
from synth_cases import MIB, TEN

from commlib.bounds import bounds
from commlib.bounds.flow import LinearProgram
from commlib.collectives import alltoall
from commlib.demand import demand
from commlib.topology import cost_table, ring, torus
from synth.solver_lp import LpSolver


@pytest.fixture(params=["HiGHS", "CBC"])
def by(request, monkeypatch):
    if request.param == "CBC":
        monkeypatch.setitem(sys.modules, "highspy", None)
    return request.param


def program(upper: list[float]) -> LinearProgram:
    """Maximise 3 x + 2 y subject to x + y <= a, x + 3 y <= b, x <= c."""
    starts, columns = np.array([0, 2, 4, 5]), np.array([0, 1, 0, 1, 0])
    return LinearProgram(np.array([3.0, 2.0]), starts, columns, np.array([1.0, 1.0, 1.0, 3.0, 1.0]), np.array(upper))


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize(("upper", "best"), [([4.0, 6.0, 3.0], [3.0, 1.0]), ([4.0, 6.0, 2.0], [2.0, 4 / 3])])
def test_known_optima(upper, best):
    found = LpSolver()(program(upper))
    assert found is not None
    assert found.tolist() == pytest.approx(best)


@pytest.mark.usefixtures("by")
def test_what_has_no_answer_or_no_end_is_none():
    assert LpSolver()(program([-1.0, 6.0, 3.0])) is None
    endless = LinearProgram(np.array([1.0]), np.array([0, 1]), np.array([0]), np.array([-1.0]), np.array([1.0]))
    assert LpSolver()(endless) is None


def test_no_time_is_no_answer():
    assert LpSolver(left=lambda: 0.0)(program([4.0, 6.0, 3.0])) is None


@pytest.mark.usefixtures("by")
@pytest.mark.parametrize(
    ("topology", "ticks"), [(ring(6, TEN), 50), (torus((3, 3), TEN), 30), (torus((4, 4), TEN), 80)]
)
def test_the_flow_bound_of_alltoall(topology, ticks):
    wanted = demand(alltoall(topology.ranks), MIB)
    costs = cost_table(topology, wanted.sizes)
    flow = next(b for b in bounds(costs, wanted, solver=LpSolver()) if b.kind == "flow")
    assert round(flow.seconds * 1e6, 6) == ticks
