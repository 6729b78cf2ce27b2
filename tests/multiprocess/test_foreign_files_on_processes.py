"""MSCCL XML files of other tools on real processes, in each placement that is proved."""

from __future__ import annotations

from pathlib import Path

import pytest
from process_cases import ProcessCase, run_cases

from commlib.formats import read_xml
from commlib.verify import verify

DATA = Path(__file__).resolve().parents[2] / "../shared/data/msccl_xml"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not at hand")


@pytest.mark.parametrize("path", sorted(DATA.glob("*.xml")), ids=lambda path: path.stem)
def test_files_are_exact_where_they_are_proved(path: Path) -> None:
    algorithm = read_xml(path)
    proved = sorted(verify(algorithm, whole_messages=True).proved, key=lambda placement: placement.value)
    if not proved or not algorithm.collective.specified:
        pytest.skip("not proved in any placement, or nothing says what is right")
    sizes = (1, 1000, 12_345)
    run_cases([ProcessCase(algorithm, n, "int64", placement=p) for p in proved for n in sizes], algorithm.ranks)
