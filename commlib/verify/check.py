"""The driver: which check runs when, and what their findings say of each placement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from commlib.collectives import Placement
from commlib.errors import VerificationError
from commlib.ir.algorithm import Algorithm, Ints
from commlib.ir.contents import ContentTable
from commlib.ir.links import links as links_of
from commlib.ir.links import signal_links
from commlib.verify.contents import (
    Contents,
    check_inputs_kept,
    check_postcondition,
    initial,
    report_undefined,
    run_contents,
    table_of,
)
from commlib.verify.events import Events
from commlib.verify.happens_before import HappensBefore
from commlib.verify.matching import check_connections, check_matching
from commlib.verify.memory import Memory, Operands, memory, operands
from commlib.verify.onesided_contents import check_inputs_kept_by_peers, run_one_sided
from commlib.verify.onesided_races import check_one_sided_races
from commlib.verify.progress import UNBOUNDED, Run, Simulator, deadlocks
from commlib.verify.races import Pairs, conflicts, report_overlaps, report_races
from commlib.verify.report import Finding, FindingKind, Findings, PlacementReport, Report
from commlib.verify.signals import check_signals
from commlib.verify.units import Units
from commlib.verify.units import units as units_of

FIFO_DEPTH = 8
"""The depth of NCCL's FIFOs (NCCL_STEPS), which MSCCL runs on."""


def verify(
    algorithm: Algorithm,
    placements: Iterable[Placement] | None = None,
    fifo_depth: int = FIFO_DEPTH,
    whole_messages: bool = False,
) -> Report:
    """Prove the algorithm, or find counterexamples.

    Checked are: one owner at each end of a connection and of a signal's counter; sends match receives in number,
    order and count, and signals waits; no deadlock when each FIFO holds ``fifo_depth`` messages, however large
    messages are cut; nothing is read before it is written; no race, also while puts are in flight, and between what
    peers do to a rank's tensors and what their owner does before and after the call; the input is kept out of place;
    the postcondition of the collective.
    ``placements``: those to judge, by default both. ``whole_messages``: judge deadlock for a runtime that sends the
    chunks of a step as one message and never cuts them, as commlib's own. Never raises because of what the algorithm
    does.
    O(n log n) for n chunks moved: a step of count 1000 costs what 1000 steps do.

    Raises:
        ValueError: ``fifo_depth`` below 1.
    """
    if fifo_depth < 1:
        raise ValueError(f"a FIFO holds at least one message, not {fifo_depth}")
    asked = tuple(Placement) if placements is None else tuple(placements)
    common = Findings()
    schedule = _schedule(algorithm, fifo_depth, common, whole_messages)
    own = {placement: Findings() for placement in asked}
    _check_placements(algorithm, schedule, own)
    return Report(
        algorithm.name,
        fifo_depth,
        {placement: _placement_report(placement, common, own[placement]) for placement in asked},
        None if schedule is None else schedule.smallest_depth,
        algorithm.collective.specified,
        whole_messages,
    )


def require(
    algorithm: Algorithm, placement: Placement, fifo_depth: int = FIFO_DEPTH, whole_messages: bool = False
) -> Report:
    """Verify for one placement and insist on a proof.

    Raises:
        VerificationError: not proved; the message is the report, ``fields['findings']`` has the findings.
    """
    report = verify(algorithm, (placement,), fifo_depth, whole_messages)
    if not report.ok:
        raise VerificationError(report.text(), algorithm=algorithm.name, findings=report.findings)
    return report


def execute(algorithm: Algorithm, placement: Placement) -> Contents:
    """What every slot holds at the end of a run, symbolically (meaningful when there is no race).

    Raises:
        VerificationError: it cannot run to its end: messages do not match, or a deadlock at any FIFO depth.
        SpecError: in place, for a custom collective that says nothing of it.
    """
    common = Findings()
    schedule = _schedule(algorithm, UNBOUNDED, common)
    if schedule is None or common:
        text = "\n".join(finding.message for finding in common.kept)
        raise VerificationError(text, algorithm=algorithm.name, findings=tuple(common.kept))
    contents = initial(memory(algorithm, placement))
    if algorithm.one_sided:
        run_one_sided(schedule.units, schedule.order, contents)
    else:
        run_contents(schedule.units, operands(schedule.units, contents.memory), schedule.order, contents)
    return contents


def synchronizing(algorithm: Algorithm) -> bool:
    """Whether no rank leaves the call before every rank has entered it, in any run that does not end in an error.

    Then a rank that has left knows that all others have left the call before. False for what cannot run to its end.
    O(steps * ranks / 64) and the cost of one run.
    """
    common = Findings()
    schedule = _schedule(algorithm, UNBOUNDED, common)
    return schedule is not None and not common and Events(schedule.units, schedule.order).all_entered()


def unheard_stores(algorithm: Algorithm) -> npt.NDArray[np.int64]:
    """The steps that write memory of a peer which may not have entered the call yet, one (step number, peer) a row.

    Such a step is right in a proved program: scratch is the group's. But nothing says then that the peer makes the
    same call. Empty for what cannot run to its end, and at once where no step writes another rank's memory;
    else O(steps * ranks / 64) and the cost of one run.
    """
    step, peer = algorithm.operand_step, algorithm.operand_rank
    foreign = np.flatnonzero((algorithm.operand_writes == 1) & (peer != algorithm.step_rank[step]))
    schedule = _schedule(algorithm, UNBOUNDED, Findings()) if len(foreign) else None
    if schedule is None:
        return np.empty((0, 2), dtype=np.int64)
    step, peer = step[foreign].astype(np.int64), peer[foreign].astype(np.int64)
    events = Events(schedule.units, schedule.order)
    unheard = ~events.before(events.entry[peer], schedule.units.first[step])
    return np.unique(np.stack([step[unheard], peer[unheard]], axis=1), axis=0)


@dataclass(frozen=True, eq=False)
class _Schedule:
    """The units in a topological order of happens-before, and the smallest FIFO depth."""

    units: Units
    order: list[int]
    position: Ints
    smallest_depth: int


def _schedule(
    algorithm: Algorithm, fifo_depth: int, findings: Findings, whole_messages: bool = False
) -> _Schedule | None:
    """Check what holds in any placement; None when there is no order in which all units can run."""
    links = links_of(algorithm)
    check_connections(algorithm, links, findings)
    check_matching(algorithm, links, findings)
    signals = signal_links(algorithm)
    check_signals(algorithm, signals, findings)
    partners = links.partners(algorithm.count)
    if findings or partners is None:
        return None
    units = units_of(algorithm, links, partners, signals)
    simulator = Simulator(units)
    run, smallest = simulator.run(1), 1
    if not run.complete:
        found = _deeper(simulator, units, fifo_depth, findings, whole_messages)
        if found is None:
            return None
        run, smallest = found
    position = np.empty(len(units), dtype=np.int64)
    position[run.order] = np.arange(len(units))
    return _Schedule(units, run.order, position, smallest)


def _deeper(
    simulator: Simulator, units: Units, depth: int, findings: Findings, whole_messages: bool
) -> tuple[Run, int] | None:
    """A complete run at some depth above 1, and the smallest such depth; a deadlock at ``depth`` is reported."""
    smallest = simulator.smallest_depth(fails=1)
    if smallest is not None and smallest <= depth:
        return simulator.run(smallest), smallest
    if smallest is None or not (whole_messages and _completes_whole(units.algorithm, depth)):
        fatal = UNBOUNDED if smallest is None else depth
        for finding in deadlocks(simulator, units, simulator.run(fatal), fatal):
            findings.add(finding)
    return None if smallest is None else (simulator.run(smallest), smallest)


def _completes_whole(algorithm: Algorithm, depth: int) -> bool:
    """Whether it completes at this FIFO depth when every step's message takes one slot, however many chunks it has."""
    whole = replace(algorithm, count=np.minimum(algorithm.count, 1))
    links = links_of(whole)
    partners = links.partners(whole.count)
    if partners is None:
        return False
    return Simulator(units_of(whole, links, partners, signal_links(whole))).run(depth).complete


def _check_placements(algorithm: Algorithm, schedule: _Schedule | None, own: dict[Placement, Findings]) -> None:
    checked: list[_Placed] = []
    table = table_of(algorithm.collective)
    for placement, findings in own.items():
        if placement is Placement.IN and not algorithm.collective.can_be_in_place:
            message = f"{algorithm.collective.name} has no in-place form: its definition gives no offsets"
            findings.add(Finding(FindingKind.PLACEMENT, message, placement=placement))
        elif schedule is not None:
            checked.append(_check_contents(schedule, memory(algorithm, placement), table, findings))
    if schedule is not None and algorithm.one_sided:
        placed = ((each.memory, each.findings) for each in checked)
        check_one_sided_races(schedule.units, schedule.order, placed)
    elif schedule is not None:
        _check_races(schedule, checked)


@dataclass(frozen=True, eq=False)
class _Placed:
    memory: Memory
    operands: Operands
    findings: Findings


def _check_contents(schedule: _Schedule, memory: Memory, table: ContentTable, findings: Findings) -> _Placed:
    placed, units, order = operands(schedule.units, memory), schedule.units, schedule.order
    contents = initial(memory, table)
    if memory.algorithm.one_sided:
        undefined = run_one_sided(units, order, contents)
    else:
        undefined = run_contents(units, placed, order, contents)
    report_undefined(units, memory, undefined, findings)
    if memory.placement is Placement.OUT:
        check_inputs_kept(memory.algorithm, memory, findings)
        check_inputs_kept_by_peers(memory.algorithm, memory.placement, findings)
    if memory.algorithm.collective.specified:
        check_postcondition(contents, findings)
    return _Placed(memory, placed, findings)


def _check_races(schedule: _Schedule, checked: list[_Placed]) -> None:
    """Ask for all placements at once: they mostly share their conflicts."""
    units = schedule.units
    pairs = [conflicts(units, placed.operands, schedule.position) for placed in checked]
    answers = _ordered(schedule, pairs)
    for placed, conflict, ordered in zip(checked, pairs, answers, strict=True):
        report_races(units, placed.memory, conflict, ordered, placed.findings)
        report_overlaps(units, placed.memory, placed.operands, placed.findings)


def _ordered(schedule: _Schedule, pairs: list[Pairs]) -> list[np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    if not pairs:
        return []
    size = len(schedule.units)
    keys = np.concatenate([conflict.before * size + conflict.after for conflict in pairs])
    distinct, place = np.unique(keys, return_inverse=True)
    before, after = np.divmod(distinct, max(size, 1))
    answer = HappensBefore(schedule.units, schedule.order, schedule.position).ask(before, after)[place]
    return np.split(answer, np.cumsum([len(conflict) for conflict in pairs])[:-1])


def _placement_report(placement: Placement, common: Findings, own: Findings) -> PlacementReport:
    return PlacementReport(placement, (*common.kept, *own.kept), common.more() | own.more())
