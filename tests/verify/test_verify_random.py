"""The fast checks against slow and obvious ones, on random small programs that may be wrong in every way."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from verify_samples import Block, I, O, Plan, Row, S, Slot, picks

from commlib.collectives import Buffer, Placement, custom
from commlib.ir.algorithm import Algorithm, Op, Span, Step
from commlib.ir.links import links as links_of
from commlib.verify import FindingKind, Report, execute, interpret, verify
from commlib.verify.happens_before import HappensBefore
from commlib.verify.progress import UNBOUNDED, Simulator
from commlib.verify.units import Units
from commlib.verify.units import units as units_of

CHUNKS = 3
ROUTINE = settings(max_examples=60, deadline=None)


def random_plan(rng: random.Random, steps: int = 9) -> Plan:
    """Random steps whose messages match; dependences mostly point backwards, sometimes in circles."""
    n = rng.choice((1, 2, 2, 3))
    offset = rng.choice((0, 1))
    collective = custom("random", [CHUNKS] * n, [CHUNKS] * n, {}, [(0, offset)] * n)
    plan = Plan("random", collective, 2)
    ring = [(r, (r + 1) % n) for r in range(n)] + [((r + 1) % n, r) for r in range(n)]
    links = rng.sample(ring, min(len(ring), 3)) if n > 1 else []
    for r in range(n):
        for _ in range(rng.choice((1, 2))):
            plan.block(r)
    for channel, (sender, receiver) in enumerate(links):
        plan.block(sender, receiver, None, channel)
        plan.block(receiver, None, sender, channel)
    if n > 1 and rng.random() < 0.7:
        _relay(plan, n)
    while sum(len(block.rows) for block in plan.blocks) < steps:
        _event(plan, rng)
    _dependences(plan, rng)
    if rng.random() < 0.2:
        rng.shuffle(rng.choice(plan.blocks).rows)
    return plan


def _relay(plan: Plan, n: int) -> None:
    """A threadblock per rank that receives from one neighbour and sends to the other."""
    for r in range(n):
        plan.block(r, (r + 1) % n, (r - 1) % n, 9)


def _event(plan: Plan, rng: random.Random) -> None:
    senders = [block for block in plan.blocks if block.send is not None]
    count = rng.choice((1, 1, 2))
    if not senders or rng.random() < 0.4:
        block = rng.choice(plan.blocks)
        op = rng.choice((Op.COPY, Op.COPY, Op.REDUCE, Op.NOP))
        block.rows.append(Row(op, count=0) if op is Op.NOP else Row(op, _slot(rng, count), _slot(rng, count), count))
        return
    block = rng.choice(senders)
    block.rows.append(Row(Op.SEND, _slot(rng, count), None, count))
    while True:
        block = _receiver(plan, block)
        ops = [Op.RECV, Op.RECV_REDUCE_COPY]
        passing = [Op.RECV_COPY_SEND, Op.RECV_REDUCE_SEND, Op.RECV_REDUCE_COPY_SEND]
        op = rng.choice(passing if block.send is not None and rng.random() < 0.7 else ops)
        source = _slot(rng, count) if op.has_source else None
        block.rows.append(Row(op, source, _slot(rng, count) if op.has_destination else None, count))
        if not op.sends:
            return


def _receiver(plan: Plan, sender: Block) -> Block:
    key = (sender.send, sender.rank, sender.channel)
    return next(b for b in plan.blocks if (b.rank, b.recv, b.channel) == key)


def _slot(rng: random.Random, count: int) -> Slot:
    buffer = rng.choice((I, I, O, O, S))
    return buffer, rng.randrange((2 if buffer is S else CHUNKS) - count + 1)


def _dependences(plan: Plan, rng: random.Random) -> None:
    """Each step depends on an earlier one with some probability, now and then on a later one."""
    for block in plan.blocks:
        mine = [other for other in plan.blocks if other.rank == block.rank]
        for row in block.rows:
            backward = rng.random() < 0.98
            known = [
                (tb, step)
                for tb, other in enumerate(mine)
                for step, earlier in enumerate(other.rows)
                if earlier is not row and (earlier.when < row.when) == backward
            ]
            if known and rng.random() < 0.5:
                row.deps.append(rng.choice(known))


def slow_races(algorithm: Algorithm, placement: Placement) -> set[frozenset[tuple[int, int, int]]]:
    """Pairs of steps that race, by transitive closure over all their parts."""
    steps = list(algorithm.steps())
    parts = [(s.number, u) for s in steps for u in range(_parts(s))]
    reach = _closure(algorithm, steps, parts)
    touched = {part: _touched(algorithm, placement, steps[part[0]], part[1]) for part in parts}
    found = set()
    for a, b in combinations(parts, 2):
        (reads_a, writes_a), (reads_b, writes_b) = touched[a], touched[b]
        clash = writes_a & (reads_b | writes_b) or writes_b & reads_a
        if clash and b not in reach[a] and a not in reach[b]:
            found.add(frozenset((algorithm.place(a[0]), algorithm.place(b[0]))))
    for step in steps:
        if _overlaps(algorithm, placement, step):
            found.add(frozenset([algorithm.place(step.number)]))
    return found


def _overlaps(algorithm: Algorithm, placement: Placement, step: Step) -> bool:
    """Whether a chunk that the step writes is another one that it reads."""
    if step.source is None or step.destination is None:
        return False
    here = [
        [_address(algorithm, placement, step.rank, span, i) for i in range(step.count)]
        for span in (step.source, step.destination)
    ]
    return any(here[0][i] == here[1][j] for i, j in permutations(range(step.count), 2))


def _parts(step: Step) -> int:
    return step.count if step.op.sends or step.op.receives else 1


def _closure(a: Algorithm, steps: list[Step], parts: list[tuple[int, int]]) -> dict[tuple[int, int], set]:
    edges: dict[tuple[int, int], set[tuple[int, int]]] = {part: set() for part in parts}
    ends = {a.place(s.number): ((s.number, 0), (s.number, _parts(s) - 1)) for s in steps}
    for (number, part), following in pairwise(parts):
        if a.place(number)[:2] == a.place(following[0])[:2]:
            edges[number, part].add(following)
    for step in steps:
        for dep in step.depends:
            edges[ends[step.rank, *dep][1]].add(ends[a.place(step.number)][0])
    blocks = [tb for r in range(a.ranks) for tb in a.threadblocks(r)]
    for s in blocks:
        for r in blocks:
            if (s.send, s.rank, s.channel) == (r.rank, r.recv, r.channel):
                sent = [(n, u) for n in s.steps if steps[n].op.sends for u in range(_parts(steps[n]))]
                received = [(n, u) for n in r.steps if steps[n].op.receives for u in range(_parts(steps[n]))]
                for one, other in zip(sent, received, strict=True):
                    edges[one].add(other)
    reach = {}
    for part in parts:
        seen, stack = set(), [part]
        while stack:
            for successor in edges[stack.pop()] - seen:
                seen.add(successor)
                stack.append(successor)
        reach[part] = seen
    return reach


def _touched(a: Algorithm, placement: Placement, step: Step, part: int) -> tuple[set, set]:
    indices = [part] if step.op.sends or step.op.receives else range(step.count)
    reads = {_address(a, placement, step.rank, step.source, i) for i in indices if step.source}
    writes = {_address(a, placement, step.rank, step.destination, i) for i in indices if step.destination}
    if step.op is Op.REDUCE:
        reads |= writes
    same = step.op is Op.COPY and all(
        _address(a, placement, step.rank, step.source, i) == _address(a, placement, step.rank, step.destination, i)
        for i in indices
    )
    return (set(), set()) if same else (reads, writes)


def _address(a: Algorithm, placement: Placement, rank: int, span: Span, i: int) -> tuple[int, str, int]:
    index = span.index + i
    if placement is Placement.OUT or span.buffer is Buffer.SCRATCH:
        return rank, span.buffer.letter, index
    return rank, "io", index + a.collective.in_place_offsets(rank)[span.buffer]


def _races(report: Report, placement: Placement) -> set[frozenset[tuple[int, int, int]]]:
    findings = (f for f in report.placements[placement].findings if f.kind is FindingKind.RACE)
    return {frozenset({(f.rank, f.threadblock, f.step), *f.others}) for f in findings}


def check(seed: int) -> str:
    """Compare everything on one random program; returns what it was."""
    rng = random.Random(seed)
    algorithm = random_plan(rng).build()
    report = verify(algorithm, fifo_depth=64)
    kinds = {finding.kind for finding in report.findings}
    if kinds & {FindingKind.MATCH, FindingKind.CONNECTION}:
        return "unmatched"
    free = [d for d in range(1, 12) if not interpret(algorithm, Placement.OUT, rng.choice, d).stuck]
    assert report.smallest_fifo_depth == (free[0] if free else None)
    assert (FindingKind.DEADLOCK in kinds) == (not free)
    if free and free[0] > 1:
        assert FindingKind.DEADLOCK in {f.kind for f in verify(algorithm, fifo_depth=free[0] - 1).findings}
    if not free:
        return "deadlock"
    return _check_memory(algorithm, report, rng)


def _check_memory(algorithm: Algorithm, report: Report, rng: random.Random) -> str:
    verdicts = []
    for placement in Placement:
        slow, fast = slow_races(algorithm, placement), _races(report, placement)
        assert bool(slow) == bool(fast)
        assert fast <= slow
        verdicts.append("racy" if slow else "clean")
        if not slow:
            _check_contents(algorithm, placement, rng)
    return " ".join(verdicts)


def _check_contents(algorithm: Algorithm, placement: Placement, rng: random.Random) -> None:
    contents = execute(algorithm, placement)
    for pick in picks(rng.randrange(1 << 30), 1):
        for cut in (True, False):
            outcome = interpret(algorithm, placement, pick, 64, cut)
            assert not outcome.stuck
            for slot, content in outcome.slots.items():
                known = contents.counts(*slot)
                assert content == (None if known is None else Counter(known))


@given(st.integers(0, 1 << 40))
@ROUTINE
def test_all_checks_agree_with_slow_ones(seed: int) -> None:
    check(seed)


def test_the_random_programs_are_of_all_kinds() -> None:
    kinds = Counter(check(seed) for seed in range(150))
    assert kinds["deadlock"] >= 5
    assert kinds["clean clean"] >= 5
    assert kinds["racy clean"] >= 5
    assert kinds["racy racy"] >= 5


@pytest.mark.parametrize("work", [0, -(1 << 40)], ids=["sometimes", "always"])
def test_clocks_instead_of_the_search_agree_too(work: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _no_search(work, monkeypatch)
    for seed in range(2000, 2060):
        check(seed)


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("work", [8192, -(1 << 40)], ids=["search", "no search"])
def test_clocks_in_arrays_agree_too(work: int, components: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _no_search(work, monkeypatch)
    monkeypatch.setattr("commlib.verify.happens_before.SPARSE_WORK", -1)
    monkeypatch.setattr("commlib.verify.happens_before.COMPONENTS", components)
    for seed in range(1000, 1060):
        check(seed)


def _no_search(work: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the search backward only so much work (and a round costs little), so that clocks must answer."""
    monkeypatch.setattr("commlib.verify.dependences.LEAST_WORK", work)
    monkeypatch.setattr("commlib.verify.dependences.WORK", 1)
    monkeypatch.setattr("commlib.verify.dependences.ROUND", 1)


def _order(algorithm: Algorithm) -> tuple[Units, list[int], np.ndarray]:
    links = links_of(algorithm)
    units = units_of(algorithm, links, links.partners(algorithm.count))
    order = Simulator(units).run(UNBOUNDED).order
    position = np.empty(len(units), dtype=np.int64)
    position[order] = np.arange(len(units))
    return units, order, position


def dependence_plan(rng: random.Random) -> Plan:
    """One rank whose threadblocks wait for one another in every way: deep and wide, without messages."""
    plan = Plan("dependences", custom("none", [1], [1], {}), 0)
    blocks = [plan.block(0) for _ in range(rng.choice((2, 3, 6)))]
    made: list[tuple[int, int]] = []
    for _ in range(rng.choice((8, 25))):
        tb = rng.randrange(len(blocks))
        deps = rng.sample(made, min(len(made), rng.choice((0, 0, 1, 1, 2, 4))))
        blocks[tb].add(Op.COPY, (I, 0), (O, 0), deps=deps)
        made.append((tb, len(blocks[tb].rows) - 1))
    return plan


@pytest.mark.parametrize("work", [8192, 0, -(1 << 40)])
def test_happens_before_is_the_transitive_closure(work: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if work != 8192:
        _no_search(work, monkeypatch)
    answers: Counter[bool] = Counter()
    for seed in range(60):
        algorithm = dependence_plan(random.Random(seed)).build()
        units, order, position = _order(algorithm)
        reach = _closure(algorithm, list(algorithm.steps()), [(n, 0) for n in range(algorithm.step_count)])
        pairs = [(a, b) for a, b in combinations(order, 2) if units.threadblock[a] != units.threadblock[b]]
        if pairs:
            got = HappensBefore(units, order, position).ask(*np.array(pairs, dtype=np.int64).T)
            assert got.tolist() == [(b, 0) in reach[a, 0] for a, b in pairs]
            answers.update(got.tolist())
    assert min(answers[True], answers[False]) > 500
