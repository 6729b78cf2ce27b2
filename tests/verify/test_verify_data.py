"""MSCCL XML files of other tools, judged as their README says."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from commlib.collectives import Placement
from commlib.formats.msccl_xml import read_xml
from commlib.verify import FindingKind, interpret, verify

DATA = Path(__file__).resolve().parents[2] / "../shared/data/msccl_xml"
IN, OUT = Placement.IN, Placement.OUT
PROVED = {
    "allgather_recursive_doubling_8_1": {IN},
    "allgather_recursive_doubling_8_2": set(),
    "allgather_ring_8_1_1": {IN},
    "allreduce-allpairs-8n-ll-32tb": {IN},
    "allreduce_a100_ncv4_v2_4_12": {IN},
    "allreduce_a100_pcie_hierarchical_8_1": set(),
    "allreduce_a100_ring_8_1_1": {IN},
    "alltoall-8n-0-9kb": {OUT},
    "alltoall-8n-7mb-43mb": {IN, OUT},
    "alltoall_a100_three_step_3_4_1": {OUT},
    "alltoall_allpairs_8_2": {OUT},
    "alltonext_forward_2_1": {OUT},
    "hierarchical_allreduce_8_2_1_schedule_manual": {IN},
    "simple_allreduce_ring_8_2": {IN},
}
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not at hand")


@pytest.mark.parametrize("name", PROVED)
def test_placements(name: str) -> None:
    algorithm = read_xml(DATA / f"{name}.xml")
    report = verify(algorithm)
    assert report.proved == PROVED[name]
    if not algorithm.collective.specified:
        return
    for placement in report.proved if algorithm.step_count < 600 else ():
        assert interpret(algorithm, placement, random.Random(1).choice, 8).is_right(algorithm, placement)


def test_no_file_is_left_out() -> None:
    assert {path.stem for path in DATA.glob("*.xml")} == set(PROVED)


def test_the_wrong_allreduce_is_wrong_and_not_racy() -> None:
    report = verify(read_xml(DATA / "allreduce_a100_pcie_hierarchical_8_1.xml"), [IN], fifo_depth=16)
    assert {finding.kind for finding in report.findings} == {FindingKind.POSTCONDITION}
    assert report.findings[0].message == (
        "rank 0 o[0]: the contribution of rank 4 i[0], rank 5 i[0], rank 6 i[0], rank 7 i[0] is lost; "
        "rank 1 i[0] is counted 2 times"
    )


def test_the_race_between_instances() -> None:
    algorithm = read_xml(DATA / "allgather_recursive_doubling_8_2.xml")
    report = verify(algorithm, [IN])
    assert {finding.kind for finding in report.findings} == {FindingKind.RACE}
    runs = [interpret(algorithm, IN, random.Random(seed).choice, 8, False) for seed in range(10)]
    assert not all(run.is_right(algorithm, IN) for run in runs)


def test_alltonext_races_in_place_only() -> None:
    report = verify(read_xml(DATA / "alltonext_forward_2_1.xml"))
    assert {(f.kind, f.placement) for f in report.findings} == {(FindingKind.RACE, IN)}
    assert report.postcondition == "not given"
