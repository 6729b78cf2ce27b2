"""The table of the library: names, parameters, and what it says when it is asked for something else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from commlib.algorithms import ALGORITHMS, algorithms, find, lookup, trace
from commlib.algorithms.entry import Entry
from commlib.collectives import COLLECTIVES, Placement
from commlib.dsl import Program
from commlib.errors import SpecError

each_entry = pytest.mark.parametrize("entry", ALGORITHMS, ids=lambda entry: entry.full_name)


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_each_collective_has_algorithms_for_small_large_and_in_place(collective: str) -> None:
    entries = algorithms(collective)
    assert {size for entry in entries for size in entry.good_for} == {"small", "large"}
    assert any(Placement.IN in entry.placements and entry.supports(7) for entry in entries)


@each_entry
def test_each_entry_is_found_by_both_names_and_documented(entry: Entry) -> None:
    assert find(entry.full_name) is entry
    assert lookup(entry.collective, entry.name) is entry
    assert lookup(entry.collective, entry.full_name) is entry
    assert entry.full_name == f"{entry.name}_{entry.collective}"
    assert entry.summary.endswith(".")
    assert "\n" not in entry.summary
    text = entry.function.__doc__ or ""
    assert "Chunks: " in text
    assert "Steps: " in text
    assert "Bytes " in text


def test_full_names_are_unique() -> None:
    assert len({entry.full_name for entry in ALGORITHMS}) == len(ALGORITHMS)


def test_trace_passes_its_settings_on() -> None:
    recorded = trace("broadcast", "chain", 4, root=2, instances=3, blocked=True, protocol="LL", chunks=5)
    assert recorded.name == "chain_broadcast"
    assert (recorded.collective.root, recorded.collective.chunks) == (2, 5)
    assert (recorded.instances, recorded.blocked, recorded.protocol) == (3, True, "LL")


def test_out_of_place_only_is_said() -> None:
    assert find("direct_alltoall").placements == {Placement.OUT}
    assert find("pairwise_alltoall").placements == {Placement.IN, Placement.OUT}


def test_unknown_algorithm_lists_what_there_is_with_a_hint() -> None:
    with pytest.raises(SpecError, match="did you mean 'ring_allreduce'\\? there are ring_allreduce, allpairs_one_shot"):
        find("rign_allreduce")
    with pytest.raises(SpecError, match="no alltoall algorithm is called 'ring'; there are direct, pairwise, bruck"):
        trace("alltoall", "ring", 4)
    with pytest.raises(SpecError, match="no collective is called 'allredcue'; did you mean 'allreduce'\\?"):
        algorithms("allredcue")


def test_unsupported_ranks_give_the_reason() -> None:
    with pytest.raises(SpecError, match=r"recursive_doubling_allgather does not run on 6 ranks: .* power of two"):
        trace("allgather", "recursive_doubling", 6)
    with pytest.raises(SpecError, match=r"hierarchical_allreduce does not run on 8 ranks: .* multiple of nodes=3") as e:
        trace("allreduce", "hierarchical", 8, nodes=3)
    assert e.value.fields == {"ranks": 8, "nodes": 3}
    with pytest.raises(SpecError, match="at least 1 rank, not 0"):
        trace("allreduce", "recursive_halving_doubling", 0)
    assert not find("ring_allreduce").supports(0)
    assert find("recursive_doubling_allgather").supports(16)


def test_parameters_are_checked() -> None:
    with pytest.raises(SpecError, match="ring_allreduce has no parameter 'nodes'; there are: none"):
        trace("allreduce", "ring", 8, nodes=2)
    with pytest.raises(SpecError, match="nodes of hierarchical_allreduce must be a whole number >= 1, not 0"):
        trace("allreduce", "hierarchical", 8, nodes=0)
    with pytest.raises(SpecError, match="root 9 is not one of the 4 ranks"):
        trace("gather", "direct", 4, root=9)


def test_own_entry_works_as_the_librarys() -> None:
    def hello_alltonext(p: Program) -> None:
        """Hello."""
        p.chunk(0, "input").copy(1, "output")

    entry = Entry("alltonext", hello_alltonext, ("small",))
    assert (entry.name, len(entry.trace(2))) == ("hello", 1)


def test_importing_the_library_loads_no_torch() -> None:
    code = "import sys, commlib.algorithms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
