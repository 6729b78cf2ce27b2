"""Bounds of known machines: the figures that the field's papers and measurements agree on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from bound_cases import ndv2, posed, switched

from commlib.bounds import Bound, CrossingCertificate, LinearProgram, allreduce_bounds, bounds, fluid_bounds
from commlib.collectives import allgather, allreduce, alltoall, broadcast, collective, gather, scatter
from commlib.errors import SpecError, TopologyError
from commlib.topology import Link, Topology, line, mesh, ring, torus
from commlib.topology.costs import cost_table

TEN = Link(10e-6, 0.0)


def of(found: list[Bound], kind: str) -> float:
    """Microseconds of the bound of a kind."""
    return next(round(each.seconds * 1e6, 3) for each in found if each.kind == kind)


def best(topology: Topology, name: str, chunks: int = 1, **options: object) -> tuple[float, str]:
    """(microseconds, kind) of the best bound, one byte a chunk."""
    first = bounds(*posed(topology, collective(name, topology.ranks, chunks)), **options)[0]
    return round(first.seconds * 1e6, 3), first.kind


@pytest.mark.parametrize(("double", "single", "chunks", "time"), [(23, 46, 1, 69), (32, 34, 1, 68), (10, 17, 1, 30)])
def test_ingress_of_one_ndv2(double, single, chunks, time):
    found = bounds(*posed(ndv2(1, double, single), allgather(8, chunks)))
    assert of(found, "ingress") == time
    assert found[0].seconds == pytest.approx(time * 1e-6)


def test_six_chunks_on_one_ndv2_take_53_67_a_chunk():
    assert best(ndv2(), "allgather", 6) == (322, "ingress")
    assert fluid_bounds(ndv2(), allgather(8), 8.0)[0].seconds * 1e6 == pytest.approx(322 / 6, rel=1e-8)


@pytest.mark.parametrize(("nodes", "time"), [(2, 912), (4, 2592), (10, 7632)])
def test_what_enters_a_node_through_its_nic(nodes, time):
    found = bounds(*posed(ndv2(nodes), allgather(8 * nodes)), representatives=range(8))
    assert of(found, "head-tail") == time == of(found, "cut")
    shown = found[0].certificate
    assert isinstance(shown, CrossingCertificate)
    assert shown.text() == (
        f"{8 * nodes - 8} items must enter ranks 0-7 through in0 (105 us each, 72 us after the last): {time} us"
    )
    assert (shown.ranks, shown.items, shown.twice) == (tuple(range(8)), 8 * nodes - 8, True)


@pytest.mark.parametrize(("cost", "time"), [(8.0, 120), (8.3, 124.5)])
def test_sixteen_ranks_on_a_switch(cost, time):
    assert best(switched(16, cost), "allgather") == (time, "ingress")


@pytest.mark.parametrize(
    ("topology", "name", "time", "kind"),
    [
        (torus((8, 8, 8), TEN), "allgather", 860, "ingress"),
        (torus((16, 16), TEN), "allgather", 640, "ingress"),
        (torus((8, 8), TEN), "alltoall", 640, "flow"),
        (torus((4, 4), TEN), "alltoall", 80, "flow"),
        (mesh((3, 3), TEN), "allgather", 40, "distance"),
        (ring(8, TEN), "allgather", 40, "distance"),
        (ring(8, TEN), "alltoall", 80, "flow"),
        (ring(9, TEN), "broadcast", 40, "distance"),
        (line(5, TEN), "gather", 40, "distance"),
        (line(5, TEN), "alltoall", 60, "head-tail"),
    ],
)
def test_known_optima(topology, name, time, kind):
    whole = name == "allgather" and topology.ranks > 100
    options = {"representatives": [0]} if whole else {"groups": [(0, 1)]}
    assert best(topology, name, **options) == (time, kind)


def test_scatter_and_gather_of_one_ndv2_cross_the_cut_that_allgather_crosses():
    for wanted in (scatter(8, 6, root=3), gather(8, 6, root=3)):
        found = bounds(*posed(ndv2(), wanted))
        assert of(found, "cut") == 322


def test_reducing_collectives_mirror_the_spreading_ones():
    assert best(ndv2(2), "reducescatter") == (912, "head-tail")
    assert best(ndv2(), "reduce", 4)[0] == best(ndv2(), "broadcast", 4)[0]
    words = bounds(*posed(ndv2(2), collective("reducescatter", 16)))[0].certificate.text()
    assert words.startswith("8 items must leave ranks 8-15 through in0")


def test_a_cut_that_is_no_node_is_found():
    # Two triangles of fast links, joined by one slow link each way: 0-2 and 3-5.
    fast = [(a, b) for side in ((0, 1, 2), (3, 4, 5)) for a in side for b in side if a != b]
    links = dict.fromkeys(fast, TEN) | {(2, 3): Link(50e-6), (3, 2): Link(50e-6)}
    found = bounds(*posed(Topology("bell", 6, links), allgather(6)))
    assert (found[0].kind, of(found, "cut")) == ("cut", 160)
    shown = found[0].certificate
    assert isinstance(shown, CrossingCertificate)
    assert set(shown.ranks) in ({0, 1, 2}, {3, 4, 5})


def test_representatives_give_the_same_bounds_in_less_time():
    costs, moved = posed(torus((4, 4), TEN), allgather(16, 3))
    assert [(b.kind, b.ticks) for b in bounds(costs, moved)] == [
        (b.kind, b.ticks) for b in bounds(costs, moved, representatives=[0, 1, 2])
    ]


def test_a_sketch_tightens_the_bounds():
    costs, moved = posed(ring(4, TEN), broadcast(4, 3))
    clockwise = np.array([[(b - a) % 4 == 1 for a, b in zip(costs.source, costs.target, strict=True)]] * 3)
    assert best(ring(4, TEN), "broadcast", 3)[0] == 30
    assert round(bounds(costs, moved, allowed=clockwise)[0].seconds * 1e6, 3) == 50
    with pytest.raises(TopologyError, match=r"rank 0 must reach rank 2.*allow one") as error:
        bounds(costs, moved, allowed=clockwise & (costs.source != 1))
    assert error.value.fields["destination"] == 2


def highs(program: LinearProgram) -> np.ndarray:
    """HiGHS, as a user would plug it in."""
    module = pytest.importorskip("highspy")
    solver, rows, columns = module.Highs(), len(program.upper), len(program.objective)
    solver.setOptionValue("output_flag", False)
    model = module.HighsLp()
    model.num_col_, model.num_row_ = columns, rows
    model.col_cost_ = -program.objective
    model.col_lower_, model.col_upper_ = np.zeros(columns), np.full(columns, np.inf)
    model.row_lower_, model.row_upper_ = np.full(rows, -np.inf), program.upper
    model.a_matrix_.format_ = module.MatrixFormat.kRowwise
    model.a_matrix_.start_, model.a_matrix_.index_ = program.row_start, program.column
    model.a_matrix_.value_ = program.value
    solver.passModel(model)
    solver.run()
    return np.array(solver.getSolution().col_value)


def test_a_solver_prices_the_links_that_matter():
    found = bounds(*posed(ndv2(), alltoall(8)), solver=highs)
    assert (found[0].kind, of(found, "flow")) == ("flow", 138)
    assert fluid_bounds(ndv2(), alltoall(8), 8.0, solver=highs)[0].seconds * 1e6 == pytest.approx(122 + 2 / 3, rel=1e-6)


def test_allreduce():
    costs = cost_table(switched(16), [1.0])
    found = allreduce_bounds(costs, allreduce(16, 16))
    assert (found[0].kind, of(found, "total"), of(found, "distance")) == ("total", 240, 8)
    two = cost_table(ndv2(2), [1.0])
    halves = [range(8), range(8, 16)]
    assert of(allreduce_bounds(two, allreduce(16, 16), groups=halves), "head-tail") == 1752
    assert allreduce_bounds(cost_table(Topology("one", 1, {}), [1.0]), allreduce(1))[0].ticks == 0
    with pytest.raises(SpecError, match="take an allreduce"):
        allreduce_bounds(costs, allgather(16))


def test_fluid_bounds_hold_alpha_and_beta_apart():
    links = {pair: replace(link, alpha=2e-6, beta=1e-9) for pair, link in ring(4).links.items()}
    found = fluid_bounds(Topology("ring", 4, links), allgather(4), 4e6)
    assert of(found, "distance") == 4
    assert of(found, "cut") == pytest.approx(1502)
    whole = fluid_bounds(Topology("ring", 4, links), allreduce(4), 4e6)
    assert of(whole, "total") == pytest.approx(3000)


def test_bounds_are_written_as_json():
    costs, moved = posed(ndv2(2), alltoall(16))
    for each in (
        *bounds(costs, moved),
        *allreduce_bounds(costs, allreduce(16)),
        *fluid_bounds(ndv2(), allgather(8), 8),
    ):
        assert json.loads(json.dumps(each.as_json()))["kind"] == each.kind
        assert each.certificate.text()


def test_nothing_to_move_takes_no_time():
    costs, moved = posed(Topology("one", 1, {}), allgather(1))
    assert [(b.kind, b.ticks) for b in bounds(costs, moved)] == [("distance", 0)]


def test_arguments_that_do_not_fit():
    costs, moved = posed(ring(4), allgather(4))
    with pytest.raises(SpecError, match="one row per item"):
        bounds(costs, moved, allowed=np.ones((3, 8), dtype=bool))
    with pytest.raises(SpecError, match="no item 9"):
        bounds(costs, moved, representatives=[9])
    with pytest.raises(SpecError, match="beyond the 4"):
        bounds(costs, moved, groups=[(2, 7)])
    with pytest.raises(SpecError, match="for the ranks"):
        bounds(costs, posed(ring(5), allgather(5))[1])
