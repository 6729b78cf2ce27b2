"""Every form gives back what was written; folding nops keeps the order of the steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import algorithms, custom_collectives, standard_collectives

from commlib.collectives import Collective
from commlib.formats import collective_from_json, collective_to_json, from_json, load, save
from commlib.formats.json_form import json_text
from commlib.formats.msccl_xml import parse_xml, xml_text
from commlib.formats.waits import without_nops
from commlib.ir.algorithm import Algorithm, Op
from commlib.ir.text import algorithm_from_text, algorithm_to_text

ANY_COLLECTIVE = standard_collectives() | custom_collectives()


def given_to_reader(collective: Collective) -> dict[str, object]:
    """What the caller must say to read the XML of this collective back."""
    return {"collective": collective} if collective.custom is not None else {"root": collective.root}


@settings(max_examples=150, deadline=None)
@given(algorithms(ANY_COLLECTIVE, nops=True))
def test_text_is_loss_free_but_for_origins(algorithm: Algorithm) -> None:
    text = algorithm_to_text(algorithm)
    assert algorithm_from_text(text) == algorithm
    assert algorithm_to_text(algorithm_from_text(text)) == text


@settings(max_examples=150, deadline=None)
@given(algorithms(ANY_COLLECTIVE, nops=True))
def test_json_is_loss_free_with_origins(algorithm: Algorithm) -> None:
    read = from_json(json.loads(json_text(algorithm)))
    assert read == algorithm
    assert json_text(read) == json_text(algorithm)
    assert [read.origin(s) for s in range(read.step_count)] == [algorithm.origin(s) for s in range(read.step_count)]


@settings(max_examples=250, deadline=None)
@given(algorithms(ANY_COLLECTIVE), st.sampled_from(["msccl", "executor"]))
def test_xml_is_loss_free_given_root_and_conditions(algorithm: Algorithm, dialect: str) -> None:
    text = xml_text(algorithm, dialect)
    read, info = parse_xml(text.encode(), **given_to_reader(algorithm.collective))
    assert read == algorithm
    assert xml_text(read, dialect) == text
    assert (info.name, info.ngpus, info.proto) == (algorithm.name, algorithm.ranks, algorithm.protocol)


@settings(max_examples=100, deadline=None)
@given(algorithms(ANY_COLLECTIVE, nops=True))
def test_xml_of_an_algorithm_with_nops_is_that_of_its_folded_form(algorithm: Algorithm) -> None:
    read, _ = parse_xml(xml_text(algorithm).encode(), **given_to_reader(algorithm.collective))
    assert read == without_nops(algorithm)
    assert not np.any(read.op == Op.NOP)


def order(algorithm: Algorithm) -> np.ndarray:
    """[a, b]: step a ends before step b begins, by threadblock order and dependences alone."""
    before = np.zeros((algorithm.step_count, algorithm.step_count), dtype=bool)
    for step in algorithm.steps():
        if step.index:
            before[step.number - 1, step.number] = True
        before[algorithm.dep[algorithm.dep_start[step.number] : algorithm.dep_start[step.number + 1]], step.number] = (
            True
        )
    for middle in range(algorithm.step_count):
        before |= np.outer(before[:, middle], before[middle])
    return before


@settings(max_examples=150, deadline=None)
@given(algorithms(standard_collectives(max_ranks=2), nops=True, max_steps=24))
def test_folding_nops_keeps_the_order_of_all_other_steps(algorithm: Algorithm) -> None:
    keep = algorithm.op != Op.NOP
    assert np.array_equal(order(algorithm)[np.ix_(keep, keep)], order(without_nops(algorithm)))


@settings(max_examples=100, deadline=None)
@given(ANY_COLLECTIVE)
def test_collective_json_is_loss_free(collective: Collective) -> None:
    assert collective_from_json(json.loads(json.dumps(collective_to_json(collective)))) == collective


@pytest.mark.parametrize("ending", [".xml", ".json", ".txt"])
def test_load_tells_what_save_wrote_by_its_content(tmp_path: Path, ending: str) -> None:
    text = 'algorithm "a"\ncollective "allreduce" ranks 1 chunks 2\nprotocol "LL"\nplacements in out\nscratch 1\n\n'
    algorithm = algorithm_from_text(text + "rank 0\ntb 0 channel 0\n  0 cpy i[0:2] -> o[0:2]\n")
    save(algorithm, tmp_path / f"a{ending}")
    (tmp_path / f"a{ending}").rename(tmp_path / "a.anything")
    assert load(tmp_path / "a.anything") == algorithm
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.anything"]
