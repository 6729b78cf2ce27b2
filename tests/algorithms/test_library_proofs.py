"""Every algorithm of the library, traced, compiled and proved, at every number of ranks that it takes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from commlib.algorithms import ALGORITHMS, Entry
from commlib.collectives import ROOTED, Buffer, Placement
from commlib.compiler import CompileOptions, compile_trace
from commlib.ir.contents import EMPTY
from commlib.ir.trace import Trace, address_map, run_trace
from commlib.verify import verify

RANKS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16)
each_entry = pytest.mark.parametrize("entry", ALGORITHMS, ids=lambda entry: entry.full_name)


def _settings(entry: Entry, ranks: int) -> Iterator[dict[str, int]]:
    """All parameters, and for rooted collectives several roots."""
    choices: list[dict[str, int]] = [{}]
    if any(parameter.name == "nodes" for parameter in entry.parameters):
        choices = [{"nodes": nodes} for nodes in range(1, ranks + 1)]
    elif entry.parameters:
        choices = [{}, {"chunks": 1}, {"chunks": 3}]
    roots = sorted({0, 1 % ranks, ranks - 1}) if entry.collective in ROOTED else []
    for choice in choices:
        if entry.supports(ranks, **choice):
            yield from ({**choice, "root": root} for root in roots)
            if not roots:
                yield choice


def _wrong(trace: Trace, placement: Placement) -> list[tuple[int, int]]:
    """The output chunks that do not hold what they should, by the definition of the trace."""
    table, memory = run_trace(trace, placement)
    spaces, collective = address_map(trace.collective, trace.scratch_chunks, placement), trace.collective
    return [
        (rank, index)
        for rank in range(collective.ranks)
        for index in range(collective.output_chunks(rank))
        if (expected := collective.expected(rank, index)) is not None
        and (
            (content := memory[rank][spaces.base[rank][Buffer.OUTPUT] + index]) == EMPTY
            or table.counts(content) != dict.fromkeys(expected, 1)
        )
    ]


@each_entry
def test_trace_means_the_collective(entry: Entry) -> None:
    for ranks in RANKS:
        for setting in _settings(entry, ranks):
            trace = entry.trace(ranks, **setting)
            assert trace.placements == entry.placements
            for placement in entry.placements:
                assert _wrong(trace, placement) == [], (ranks, setting, placement)


@each_entry
def test_compiled_algorithm_is_proved(entry: Entry) -> None:
    for ranks in RANKS:
        for setting in _settings(entry, ranks):
            report = verify(compile_trace(entry.trace(ranks, **setting)))
            assert report.proved >= entry.placements, (ranks, setting, report.text())


@each_entry
@pytest.mark.parametrize(("instances", "blocked"), [(2, False), (3, True)])
def test_instances_are_proved(entry: Entry, instances: int, blocked: bool) -> None:
    for ranks in (1, 4, 6):
        if entry.supports(ranks):
            report = verify(compile_trace(entry.trace(ranks, instances=instances, blocked=blocked)))
            assert report.proved >= entry.placements, (ranks, report.text())


@each_entry
def test_proved_without_fusion(entry: Entry) -> None:
    report = verify(compile_trace(entry.trace(8), CompileOptions(fuse=False)))
    assert report.proved >= entry.placements, report.text()


@each_entry
def test_many_ranks_do_not_fill_the_fifos(entry: Entry) -> None:
    """Large counts in one step are where a FIFO of depth 8 could fill up in a circle."""
    for ranks, nodes in ((48, 16), (64, 4)):
        given = {"nodes": nodes} if any(parameter.name == "nodes" for parameter in entry.parameters) else {}
        if entry.supports(ranks, **given):
            report = verify(compile_trace(entry.trace(ranks, **given)), fifo_depth=8)
            assert report.proved >= entry.placements, report.text()


@each_entry
def test_a_rank_that_is_alone_sends_nothing(entry: Entry) -> None:
    if entry.supports(1):
        trace = entry.trace(1)
        assert all(operation.local for operation in trace.operations())
    else:
        assert entry.parameters[0].name == "nodes"
        assert entry.supports(1, nodes=1)
