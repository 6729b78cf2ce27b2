"""Files that other tools wrote: all are read, and what they mean survives being written by us."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from commlib.collectives import Placement
from commlib.formats import load, read_xml_with_info, xml_info
from commlib.formats.msccl_xml import parse_xml, xml_text
from commlib.ir.algorithm import Op

FOLDER = Path(__file__).parents[2].parent / "shared" / "data" / "msccl_xml"
IN, OUT = {Placement.IN}, {Placement.OUT}
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared/data")
FILES = sorted(FOLDER.glob("*.xml"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_foreign_file_is_read_and_means_the_same_after_writing(path: Path) -> None:
    algorithm, info = read_xml_with_info(path)
    assert info.notes == ()
    assert xml_info(path) == info
    assert info.ngpus == algorithm.ranks
    assert info.nchannels == algorithm.channels
    assert not np.any(algorithm.op == Op.NOP)
    for dialect in ("msccl", "executor"):
        assert parse_xml(xml_text(algorithm, dialect).encode())[0] == algorithm


@pytest.mark.parametrize(
    ("name", "collective", "steps", "threadblocks", "placements", "waits"),
    [
        ("allreduce-allpairs-8n-ll-32tb", "allreduce(ranks=8, chunks=256)", 2688, 256, IN, 3136),
        ("alltoall-8n-0-9kb", "alltoall(ranks=8, chunks=1)", 120, 120, OUT, 0),
        ("allgather_recursive_doubling_8_2", "allgather(ranks=8, chunks=2)", 96, 48, IN, 48),
        (
            "hierarchical_allreduce_8_2_1_schedule_manual",
            "allreduce(ranks=16, chunks=16)",
            576,
            96,
            IN,
            320,
        ),
    ],
)
def test_what_a_foreign_file_holds(
    name: str, collective: str, steps: int, threadblocks: int, placements: set[Placement], waits: int
) -> None:
    algorithm = load(FOLDER / f"{name}.xml")
    assert str(algorithm.collective) == collective
    assert (algorithm.step_count, len(algorithm.tb_rank)) == (steps, threadblocks)
    assert algorithm.placements == placements
    assert len(algorithm.dep) == waits


def test_alltonext_is_custom_until_the_caller_names_it() -> None:
    path = FOLDER / "alltonext_forward_2_1.xml"
    assert not load(path).collective.specified
    assert str(load(path, collective="alltonext").collective) == "alltonext(ranks=16, chunks=8)"
