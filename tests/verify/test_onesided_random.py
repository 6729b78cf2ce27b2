"""Races and order of one-sided programs against a slow and obvious check, on random small programs."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given, settings
from onesided_machine import Machine, runs
from onesided_plans import Block, Plan, Row
from onesided_strategies import one_sided_algorithms

from commlib.collectives import Buffer, Placement, custom
from commlib.ir.algorithm import Algorithm, Op, Step
from commlib.ir.builder import Slot
from commlib.verify import FindingKind, Report, execute, synchronizing, verify

CHUNKS, SCRATCH = 2, 2
PROGRAMS = 400
Event = tuple[str, int, int]
"""("part", step number, part of the step), ("entry", rank, 0) or ("exit", rank, 0)."""
Cell = tuple[int, str, int]
Place = tuple[int, int, int]


def random_plan(rng: random.Random, signals: float = 0.5, steps: tuple[int, ...] = (3, 6, 9, 14)) -> Plan:
    """Steps in a random order of time, so that most programs end; signals come with their waits."""
    ranks = rng.choice((2, 2, 3))
    collective = custom("random", [CHUNKS] * ranks, [CHUNKS] * ranks, {}, [(0, rng.choice((0, 1)))] * ranks)
    plan = Plan("random", collective, (SCRATCH,) * ranks, [])
    for rank in range(ranks):
        for channel in range(rng.choice((1, 1, 2))):
            plan.blocks.append(Block(rank, None, None, channel))
    plan.blocks.append(Block(0, 1, None, 7))
    plan.blocks.append(Block(1, None, 0, 7))
    plan.blocks.sort(key=lambda block: block.rank)
    for _ in range(rng.choice(steps)):
        random_step(plan, rng, signals)
    return plan


def random_step(plan: Plan, rng: random.Random, signals: float) -> None:
    block, ranks = rng.choice(plan.blocks), plan.collective.ranks
    peer = rng.choice([rank for rank in range(ranks) if rank != block.rank])
    kind, depends, count = rng.random(), random_dependence(plan, block, rng), rng.choice((1, 1, 1, 2))
    if kind < signals:
        owners = [other for other in plan.blocks if other.rank == peer]
        block.rows.append(Row(Op.SIGNAL, 0, depends, peer, [], []))
        there = owners[(block.channel + block.rank) % len(owners)]
        if there.channel == block.channel or rng.random() < 0.1:
            there.rows.append(Row(Op.WAIT, 0, [], block.rank, [], []))
        else:
            block.rows.pop()
    elif kind < signals + 0.08:
        block.rows.append(Row(Op.FLUSH, 0, depends, peer, [], []))
    elif kind < signals + 0.15:
        sender, receiver = (next(b for b in plan.blocks if b.channel == 7 and b.rank == rank) for rank in (0, 1))
        sender.rows.append(Row(Op.SEND, count, [], None, [slot(0, count, rng)], []))
        receiver.rows.append(Row(Op.RECV, count, [], None, [], [slot(1, count, rng)]))
    else:
        block.rows.append(random_move(block.rank, peer, depends, count, rng))


def random_move(rank: int, peer: int, depends: list[tuple[int, int]], count: int, rng: random.Random) -> Row:
    mine, theirs = slot(rank, count, rng), slot(peer, count, rng)
    moves: list[tuple[Op, list[Slot], list[Slot]]] = [
        (Op.PUT, [mine], [theirs]),
        (Op.GET, [theirs], [mine]),
        (Op.STORE, [mine], [theirs, slot(rank, count, rng)]),
        (Op.READ_REDUCE, [theirs, slot(rank, count, rng)], [mine]),
        (Op.READ_REDUCE_STORE, [mine, theirs], [theirs]),
        (Op.COPY, [mine], [slot(rank, count, rng)]),
        (Op.REDUCE, [mine], [slot(rank, count, rng)]),
    ]
    op, sources, destinations = rng.choice(moves)
    return Row(op, count, depends, None, sources, destinations)


def slot(rank: int, count: int, rng: random.Random) -> Slot:
    buffer = rng.choice((Buffer.INPUT, Buffer.OUTPUT, Buffer.SCRATCH, Buffer.SCRATCH))
    return rank, buffer, rng.randrange((SCRATCH if buffer is Buffer.SCRATCH else CHUNKS) - count + 1)


def random_dependence(plan: Plan, block: Block, rng: random.Random) -> list[tuple[int, int]]:
    mine = [other for other in plan.blocks if other.rank == block.rank]
    known = [(tb, len(other.rows) - 1) for tb, other in enumerate(mine) if other is not block and other.rows]
    return [rng.choice(known)] if known and rng.random() < 0.3 else []


@dataclass(frozen=True)
class Access:
    step: Place | None
    begin: Event
    ends: tuple[Event, ...]
    cell: Cell
    writes: bool


class Slow:
    """Happens-before by search, accesses by reading the records, all pairs of them."""

    def __init__(self, algorithm: Algorithm, placement: Placement) -> None:
        self.a, self.placement = algorithm, placement
        self.steps = list(algorithm.steps())
        self.channel = {
            n: tb.channel for r in range(algorithm.ranks) for tb in algorithm.threadblocks(r) for n in tb.steps
        }
        self.edges = set(self._edges())
        self.after = cache(self._after)

    def events(self, step: Step) -> list[Event]:
        return [("part", step.number, part) for part in range(max(step.count, 1))]

    def _edges(self):
        for step in self.steps:
            events = self.events(step)
            yield from pairwise(events)
            yield ("entry", step.rank, 0), events[0]
            yield events[-1], ("exit", step.rank, 0)
            for other in self.steps:
                before = (other.rank, other.threadblock, other.index + 1) == (step.rank, step.threadblock, step.index)
                if before or (other.rank == step.rank and (other.threadblock, other.index) in step.depends):
                    yield self.events(other)[-1], events[0]
        for rank in range(self.a.ranks):
            yield ("entry", rank, 0), ("exit", rank, 0)
        for signal, wait in self.met(Op.SIGNAL, Op.WAIT):
            yield self.events(signal)[0], self.events(wait)[0]
        for send, recv in self.met(Op.SEND, Op.RECV):
            yield from zip(self.events(send), self.events(recv), strict=True)

    def met(self, first: Op, then: Op) -> list[tuple[Step, Step]]:
        """The k-th of one operation with the k-th of the other, by pair of ranks and channel."""
        ends: list[tuple[Step, Step]] = []
        for sender, receiver in permutations(range(self.a.ranks), 2):
            for channel in set(self.channel.values()):
                one = self.all_of(first, sender, receiver, channel)
                if first is Op.SIGNAL or (sender, receiver) == (0, 1):
                    ends += zip(one, self.all_of(then, receiver, sender, channel), strict=True)
        return ends

    def all_of(self, op: Op, rank: int, peer: int, channel: int) -> list[Step]:
        here = [s for s in self.steps if s.op is op and s.rank == rank and self.channel[s.number] == channel]
        return [step for step in here if step.peer in (None, peer)]

    def _after(self, event: Event) -> set[Event]:
        """The events that the event happens before, and itself."""
        seen, stack = {event}, [event]
        while stack:
            here = stack.pop()
            for one, other in self.edges:
                if one == here and other not in seen:
                    seen.add(other)
                    stack.append(other)
        return seen

    def synchronizing(self) -> bool:
        ranks = range(self.a.ranks)
        return all(("exit", b, 0) in self.after(("entry", a, 0)) for a in ranks for b in ranks)

    def cell(self, rank: int, buffer: Buffer, index: int) -> Cell:
        if buffer is Buffer.SCRATCH or self.placement is Placement.OUT:
            return rank, buffer.letter, index
        return rank, "tensor", index + self.a.collective.in_place_offsets(rank)[buffer]

    def cells(self, span) -> list[Cell]:
        return [self.cell(span.rank, span.span.buffer, span.span.index + i) for i in range(span.span.count)]

    def accesses(self) -> list[Access]:
        found = []
        for rank in range(self.a.ranks):
            tensors = {self.cell(rank, b, i) for b in (Buffer.INPUT, Buffer.OUTPUT) for i in range(CHUNKS)}
            for word in ("entry", "exit"):
                found += [Access(None, (word, rank, 0), ((word, rank, 0),), cell, True) for cell in tensors]
        for step in self.steps:
            sources = [self.cells(span) for span in step.sources]
            targets = [self.cells(span) for span in step.destinations]
            if step.op is Op.COPY and sources == targets:
                continue
            for cells in sources:
                peer = step.destinations[0].rank if step.op is Op.PUT else None
                found += self._of(step, cells, False, peer)
            for span, cells in zip(step.destinations, targets, strict=True):
                if not (step.op is Op.STORE and cells == sources[0]):
                    found += self._of(step, cells, True, span.rank if span.rank != step.rank else None)
        return found

    def _of(self, step: Step, cells: list[Cell], writes: bool, peer: int | None) -> list[Access]:
        place, events = (step.rank, step.threadblock, step.index), self.events(step)
        ends = None if peer is None else self.ends(step, peer)
        return [
            Access(place, event, (event,) if ends is None else ends, cell, writes)
            for event, cell in zip(events, cells, strict=True)
        ]

    def ends(self, step: Step, peer: int) -> tuple[Event, ...]:
        later = [
            s for s in self.steps
            if (s.rank, s.threadblock, s.peer) == (step.rank, step.threadblock, peer) and s.index > step.index
        ]  # fmt: skip
        waits = {signal.number: wait for signal, wait in self.met(Op.SIGNAL, Op.WAIT)}
        seen = [self.events(waits[s.number])[0] for s in later if s.op is Op.SIGNAL]
        return tuple(seen + [self.events(s)[0] for s in later if s.op is Op.FLUSH])

    def races(self) -> set[frozenset[Place | None]]:
        found = {frozenset([place]) for place in self.overlaps()}
        for one, other in combinations(self.accesses(), 2):
            clash = one.cell == other.cell and (one.writes or other.writes) and one.begin != other.begin
            if clash and not self.over(one, other) and not self.over(other, one):
                found.add(frozenset((one.step, other.step)))
        return found

    def over(self, one: Access, other: Access) -> bool:
        return any(other.begin in self.after(end) for end in one.ends)

    def overlaps(self) -> set[Place]:
        found = set()
        for step in self.steps:
            operands = [(self.cells(span), False) for span in step.sources]
            operands += [(self.cells(span), True) for span in step.destinations]
            for (one, first_writes), (other, then_writes) in combinations(operands, 2):
                twice = first_writes and then_writes
                if (first_writes or then_writes) and set(one) & set(other) and (twice or one != other):
                    found.add((step.rank, step.threadblock, step.index))
        return found


def reported_races(report: Report, placement: Placement) -> set[frozenset[Place | None]]:
    found = set()
    for finding in report.placements[placement].findings:
        if finding.kind is FindingKind.RACE:
            place = (finding.rank, finding.threadblock, finding.step)
            user = "the call" in finding.message
            found.add(frozenset([place, None] if user else [place, *finding.others]))
    return found


@pytest.mark.parametrize("seed", range(8))
def test_races_are_those_of_the_slow_check(seed: int) -> None:
    rng, seen = random.Random(seed), Counter()
    for _ in range(PROGRAMS // 8):
        algorithm = random_plan(rng).build()
        if algorithm is None:
            continue
        report = verify(algorithm)
        if any(f.kind in (FindingKind.MATCH, FindingKind.CONNECTION, FindingKind.DEADLOCK) for f in report.findings):
            seen["no order"] += 1
            continue
        for placement in Placement:
            slow = Slow(algorithm, placement)
            wanted, found = slow.races(), reported_races(report, placement)
            assert found <= wanted
            assert bool(found) == bool(wanted)
            assert synchronizing(algorithm) == slow.synchronizing()
            seen["race" if wanted else "none"] += 1
            seen["synchronizing"] += slow.synchronizing()
    assert seen["race"] >= 20
    assert seen["none"] >= 5, seen


def test_what_ends_in_the_machine_has_no_deadlock_and_the_other_way_round() -> None:
    rng, seen = random.Random(77), Counter()
    while seen.total() < 150:
        plan = random_plan(rng, signals=0.8, steps=(9, 16))
        for block in plan.blocks:
            rng.shuffle(block.rows)
        algorithm = plan.build()
        if algorithm is None:
            continue
        kinds = {finding.kind for finding in verify(algorithm, fifo_depth=3, whole_messages=True).findings}
        if kinds & {FindingKind.MATCH, FindingKind.CONNECTION}:
            continue
        ends = list(runs(algorithm, Placement.OUT, 1, 3, judge=lambda machine: machine.ended))
        assert len(set(ends)) == 1, "whether a program ends does not depend on the run"
        assert ends[0] == (FindingKind.DEADLOCK not in kinds)
        seen["ends" if ends[0] else "stuck"] += 1
    assert min(seen["ends"], seen["stuck"]) >= 20, seen


def as_executed(machine: Machine) -> bool:
    """Whether every output with a known content holds the sum of what ``execute`` says that it holds."""
    contents = execute(machine.algorithm, machine.placement)
    for (rank, index), value in machine.outputs.items():
        counts = contents.counts(rank, Buffer.OUTPUT, index)
        if counts is not None and value != sum(machine.inputs[one] * times for one, times in counts.items()):
            return False
    return machine.ended


@pytest.mark.parametrize("signals", [0.35, 0.5])
def test_what_has_no_race_gives_the_same_in_every_run(signals: float) -> None:
    rng, seen = random.Random(5), Counter()
    while seen["none"] < 50:
        algorithm = random_plan(rng, signals, (2, 4, 8, 16)).build()
        bad = {FindingKind.MATCH, FindingKind.CONNECTION, FindingKind.DEADLOCK}
        report = None if algorithm is None else verify(algorithm)
        if report is None or bad & {finding.kind for finding in report.findings}:
            continue
        for placement in Placement:
            if reported_races(report, placement):
                seen["differs"] += seen["race"] < 25 and not all(runs(algorithm, placement, 3, 20, as_executed))
                seen["race"] += 1
            else:
                assert all(runs(algorithm, placement, 3, 10, as_executed))
                seen["none"] += 1
    assert seen["differs"] >= 3, seen


@settings(max_examples=150, deadline=None)
@given(one_sided_algorithms())
def test_whatever_an_algorithm_does_it_is_judged(algorithm: Algorithm) -> None:
    report = verify(algorithm)
    assert report.as_json()["ok"] == report.ok
    assert report.text().startswith(algorithm.name)
    assert not (synchronizing(algorithm) and report.smallest_fifo_depth is None)
