"""The summary of an algorithm: what it is, what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from commlib.cli.console import counted, out

if TYPE_CHECKING:
    from commlib.ir.algorithm import Algorithm
    from commlib.ir.stats import Stats
    from commlib.verify import Report

_PLACEMENT = {"in": "in place", "out": "out of place"}


def placement_words(names: list[str]) -> str:
    """ "in", "out" -> "in place, out of place"."""
    return ", ".join(_PLACEMENT[name] for name in names) or "no placement"


def summary_json(algorithm: Algorithm) -> dict[str, object]:
    """Name, collective and costs as JSON values; counts are of all ranks together unless the key says otherwise."""
    from commlib.formats import collective_to_json
    from commlib.ir.stats import statistics

    stats = statistics(algorithm)
    return {
        "algorithm": algorithm.name,
        "collective": algorithm.collective.name,
        "ranks": algorithm.ranks,
        "conditions": collective_to_json(algorithm.collective),
        "protocol": algorithm.protocol,
        "placements": sorted(placement.value for placement in algorithm.placements),
        "steps": stats.steps,
        "threadblocks": stats.threadblocks,
        "longest_threadblock": stats.longest_threadblock,
        "channels": stats.channels,
        "messages": stats.messages,
        "signals": stats.signals,
        "remote_reads": stats.remote_reads,
        "remote_writes": stats.remote_writes,
        "chunks_sent": list(stats.chunks_sent),
        "critical_path": stats.critical_path,
        "scratch_chunks": list(algorithm.scratch_chunks),
    }


def summary_lines(algorithm: Algorithm) -> Iterator[str]:
    """The summary for a person."""
    from commlib.ir.stats import statistics

    stats = statistics(algorithm)
    path = _path_words(stats)
    most, scratch = stats.max_chunks_sent, max(algorithm.scratch_chunks, default=0)
    longest, moved = counted(stats.longest_threadblock, "step"), counted(stats.chunks_moved, "chunk")
    yield f"{algorithm.name}: {algorithm.collective}"
    yield f"  meant for      {placement_words(sorted(p.value for p in algorithm.placements))}"
    yield f"  protocol       {algorithm.protocol}"
    yield f"  steps          {stats.steps}"
    yield f"  threadblocks   {stats.threadblocks} (the longest has {longest})"
    yield f"  channels       {stats.channels}"
    yield f"  messages       {stats.messages} ({moved}; {most} from the rank that sends most)"
    if algorithm.one_sided:
        reads, writes = counted(stats.remote_reads, "read"), counted(stats.remote_writes, "write")
        yield f"  one-sided      {counted(stats.signals, 'signal')}; {reads} and {writes} of other ranks' memory"
    yield f"  critical path  {path}"
    if scratch:
        yield f"  scratch        {counted(scratch, 'chunk')} on the rank that has most"


def _path_words(stats: Stats) -> str:
    if stats.critical_path is None:
        return f"none ({'messages or signals' if stats.signals else 'messages'} do not match)"
    if not stats.signals:
        return counted(stats.critical_path, "message")
    return f"{stats.critical_path} {'message or signal' if stats.critical_path == 1 else 'messages or signals'}"


def print_summary(algorithm: Algorithm) -> None:
    """Print the summary."""
    for line in summary_lines(algorithm):
        out(line)


def proof_line(report: Report) -> str:
    """In one line what is proved: for ``compile`` and ``demo``."""
    proved = placement_words([p.value for p in report.placements if p in report.proved])
    depth = report.smallest_fifo_depth
    fifo = "" if depth is None else f"; free of deadlock from FIFO depth {depth} on"
    condition = "" if report.postcondition_given else ", but no postcondition was given"
    return f"proved for {proved}{condition}{fifo}"
