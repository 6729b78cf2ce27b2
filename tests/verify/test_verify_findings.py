"""One small wrong algorithm for each kind of finding, and what the verifier says of it."""

from __future__ import annotations

import json

import pytest
from verify_samples import (
    Block,
    I,
    O,
    Plan,
    S,
    allpairs,
    direct_alltoall,
    doubling_allgather,
    in_place_ring,
    ring_allreduce,
    split_ring,
)

from commlib.collectives import Buffer, Collective, Custom, Placement, allgather, allreduce, alltonext, custom, sendrecv
from commlib.errors import VerificationError
from commlib.ir.algorithm import Op
from commlib.verify import Finding, FindingKind, execute, require, verify

IN, OUT = Placement.IN, Placement.OUT
NOWHERE = (0, 0)


def _only(plan: Plan, kind: FindingKind, placement: Placement = OUT, fifo_depth: int = 8) -> Finding:
    """The first finding, all of which must be of this kind."""
    report = verify(plan.build(), [placement], fifo_depth)
    assert not report.ok
    assert {finding.kind for finding in report.findings} == {kind}
    return report.findings[0]


def _kinds(plan: Plan, *placements: Placement) -> set[FindingKind]:
    return {finding.kind for finding in verify(plan.build(), placements or None).findings}


@pytest.mark.parametrize(
    "plan",
    [ring_allreduce(2), ring_allreduce(5), ring_allreduce(3, 4), split_ring(4), allpairs(4), doubling_allgather(8)],
)
def test_right_algorithms_are_proved_in_both_placements(plan: Plan) -> None:
    report = verify(plan.build())
    assert report.findings == ()
    assert report.proved == {IN, OUT}
    assert report.postcondition == "proved"


def test_in_place_only() -> None:
    report = verify(in_place_ring(4).build())
    assert report.ok
    assert report.proved == {IN}
    kinds = {f.kind for f in report.placements[OUT].findings}
    assert kinds == {FindingKind.POSTCONDITION, FindingKind.INPUT_OVERWRITTEN}
    finding = next(f for f in report.findings if f.kind is FindingKind.POSTCONDITION)
    assert finding.message == (
        "rank 0 o[0]: nothing was ever written to it; rank 0 i[0], rank 1 i[0], rank 2 i[0], rank 3 i[0] belongs there"
    )
    assert (finding.placement, finding.rank, finding.buffer, finding.chunk) == (OUT, 0, Buffer.OUTPUT, 0)


def test_input_overwritten_names_the_step() -> None:
    finding = verify(in_place_ring(3).build(), [OUT]).findings[0]
    assert finding.kind is FindingKind.INPUT_OVERWRITTEN
    assert finding.message == (
        "rank 0 threadblock 0 step 2 (rrcs i[1] -> i[1], plan.py:3) overwrites the input, "
        "which out of place belongs to the caller"
    )
    assert (finding.file, finding.line, finding.chunk) == ("plan.py", 3, 1)


def test_unmatched_number() -> None:
    plan = ring_allreduce(3)
    plan.blocks[1].rows.pop()
    finding = _only(plan, FindingKind.MATCH)
    assert finding.message == (
        "connection 0 -> 1 channel 0: 4 messages are sent and 3 received; "
        "the message of rank 0 threadblock 0 step 3 (rcs -> o[0], plan.py:4) is never received"
    )
    assert (finding.rank, finding.peer, finding.channel, finding.step) == (0, 1, 0, 3)


def test_never_sent() -> None:
    plan = Plan("lonely", sendrecv(2), 0)
    plan.block(1, recv=0).add(Op.RECV, None, (O, 0))
    message = _only(plan, FindingKind.MATCH).message
    assert "0 messages are sent and 1 received" in message
    assert message.endswith("the message of rank 1 threadblock 0 step 0 (r -> o[0], plan.py:1) is never sent")


def test_unmatched_count() -> None:
    plan = Plan("counts", sendrecv(2, 2), 0)
    plan.block(0, send=1).add(Op.SEND, (I, 0), count=2)
    plan.block(1, recv=0).add(Op.RECV, None, (O, 0), count=1)
    finding = _only(plan, FindingKind.MATCH)
    assert "message 0 is sent with count 2 by rank 0" in finding.message
    assert "received with count 1 by rank 1" in finding.message
    assert finding.others == ((1, 0, 0),)


def test_shared_connection() -> None:
    plan = Plan("shared", sendrecv(2, 2), 0)
    for chunk in range(2):
        plan.block(0, send=1).add(Op.SEND, (I, chunk))
    recv = plan.block(1, recv=0)
    for chunk in range(2):
        recv.add(Op.RECV, None, (O, chunk))
    finding = _only(plan, FindingKind.CONNECTION)
    assert finding.message.startswith("two threadblocks send on the connection 0 -> 1 channel 0, so that nothing")
    assert (finding.rank, finding.threadblock, finding.peer, finding.others) == (0, 1, 1, ((0, 0, 0),))
    plan.blocks[1].channel = 1
    plan.blocks[2].rows.pop()
    plan.block(1, recv=0, channel=1).add(Op.RECV, None, (O, 1))
    assert FindingKind.CONNECTION not in _kinds(plan)


def test_an_unused_peer_is_no_connection() -> None:
    plan = ring_allreduce(3)
    plan.block(0, send=1).add(Op.NOP, count=0)
    assert verify(plan.build()).ok


def test_own_rank() -> None:
    plan = Plan("self", sendrecv(2), 0)
    block = plan.block(0, send=0, recv=0)
    block.add(Op.SEND, (I, 0))
    block.add(Op.RECV, None, (O, 0))
    finding = _only(plan, FindingKind.CONNECTION)
    assert "exchanges messages with its own rank; use cpy or re" in finding.message


def _both_send_first(count: int) -> Plan:
    plan = Plan("exchange", allgather(2, count), 0)
    for r in range(2):
        block = plan.block(r, 1 - r, 1 - r)
        block.add(Op.SEND, (I, 0), count=count)
        block.add(Op.RECV, None, (O, (1 - r) * count), count)
        plan.block(r).add(Op.COPY, (I, 0), (O, r * count), count)
    return plan


def test_deadlock_when_a_large_message_is_cut() -> None:
    report = verify(_both_send_first(8).build(), fifo_depth=8)
    assert (report.ok, report.smallest_fifo_depth) == (True, 8)
    finding = _only(_both_send_first(9), FindingKind.DEADLOCK, fifo_depth=8)
    assert finding.message == (
        "at FIFO depth 8, 2 threadblocks wait for one another:\n"
        "rank 0 threadblock 0 step 0 (s i[0:9], plan.py:1) waits for room to send to rank 1 on channel 0 "
        "(its FIFO is full)\n"
        "rank 1 threadblock 0 step 0 (s i[0:9], plan.py:4) waits for room to send to rank 0 on channel 0 "
        "(its FIFO is full)"
    )
    assert (finding.rank, finding.peer, finding.channel, finding.others) == (0, 1, 0, ((1, 0, 0),))
    assert verify(_both_send_first(9).build(), fifo_depth=8).smallest_fifo_depth == 9


def test_deadlock_at_any_depth() -> None:
    plan = _both_send_first(1)
    for r in range(2):
        plan.blocks[2 * r].rows.reverse()
    report = verify(plan.build())
    assert report.smallest_fifo_depth is None
    assert report.findings[0].message.startswith("at any FIFO depth, 2 threadblocks wait for one another:\nrank 0")
    assert "waits for a message from rank 1 on channel 0 (its FIFO is empty)" in report.findings[0].message
    with pytest.raises(VerificationError, match="wait for one another"):
        execute(plan.build(), OUT)


def test_deadlock_of_dependences() -> None:
    plan = ring_allreduce(2)
    for tb in (1, 2):
        plan.block(0).add(Op.NOP, count=0, deps=[(3 - tb, 0)])
    finding = _only(plan, FindingKind.DEADLOCK)
    assert "rank 0 threadblock 1 step 0 (nop after 2.0, plan.py:7) waits for threadblock 2 step 0" in finding.message
    plan.blocks[-1].rows[0].deps = [(2, 0)]
    assert "1 threadblock waits for itself" in _only(plan, FindingKind.DEADLOCK).message


def test_other_checks_go_on_after_a_deadlock_of_the_depth() -> None:
    plan = _both_send_first(9)
    plan.blocks[1].rows[0].dst = (O, 1)
    plan.blocks[1].rows[0].count = 8
    assert {FindingKind.DEADLOCK, FindingKind.POSTCONDITION} <= _kinds(plan, OUT)


def test_race_names_both_steps() -> None:
    report = verify(direct_alltoall(2).build())
    assert report.proved == {OUT}
    finding = report.findings[0]
    assert finding.message == (
        "in place, rank 0 i[1] = o[1]: rank 0 threadblock 1 step 0 (s i[1], plan.py:2) and "
        "rank 0 threadblock 2 step 0 (r -> o[1], plan.py:3) both use it, one of them writes, "
        "and no threadblock order, dependence or message orders them"
    )
    assert (finding.kind, finding.placement, finding.others) == (FindingKind.RACE, IN, ((0, 1, 0),))
    assert (finding.rank, finding.threadblock, finding.step, finding.chunk) == (0, 2, 0, 1)


def test_a_missing_dependence_is_a_race() -> None:
    plan = allpairs(3)
    plan.blocks[2].rows[1].deps = []
    assert FindingKind.RACE in _kinds(plan)


def test_a_message_orders_only_the_chunks_that_it_carries() -> None:
    """Rank 0 sends i[0:2] and gets them back one chunk further on: chunk 0 may return before chunk 1 has left."""
    plan = Plan("boomerang", custom("none", [3, 0], [0, 0], {}, [NOWHERE] * 2), 2)
    plan.block(0, send=1).add(Op.SEND, (I, 0), count=2)
    plan.block(1, send=0, recv=0).add(Op.RECV_COPY_SEND, None, (S, 0), 2)
    plan.block(0, recv=1).add(Op.RECV, None, (I, 1), 2)
    finding = _only(plan, FindingKind.RACE, IN)
    assert (finding.chunk, finding.others) == (1, ((0, 0, 0),))
    plan.blocks[2].rows[0].dst = (I, 0)
    assert verify(plan.build(), [IN]).ok


@pytest.mark.parametrize(("src", "dst"), [(0, 1), (1, 0)])
def test_a_step_whose_source_and_destination_overlap(src: int, dst: int) -> None:
    """Threads move the elements in parallel: the result is undefined, whatever the operation and the direction."""
    plan = Plan("overlap", custom("none", [4, 4], [0, 0], {}, [NOWHERE] * 2), 0)
    plan.block(0, send=1).add(Op.SEND, (I, 0), count=2)
    plan.block(1, recv=0).add(Op.RECV_REDUCE_COPY, (I, src), (I, dst), 2)
    finding = _only(plan, FindingKind.RACE, IN)
    assert "rrc i" in finding.message
    assert "reads and writes overlapping chunks" in finding.message
    assert (finding.rank, finding.threadblock, finding.step, finding.chunk) == (1, 0, 0, dst)
    plan.blocks[1].rows[0].dst = (I, src + 2 if src == 0 else src - 1)
    plan.blocks[1].rows[0].src = plan.blocks[1].rows[0].dst
    assert verify(plan.build(), [IN]).ok


@pytest.mark.parametrize(("src", "dst"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("op", [Op.COPY, Op.REDUCE])
def test_a_local_step_whose_source_and_destination_overlap(op: Op, src: int, dst: int) -> None:
    plan = Plan("overlap", custom("none", [4], [0], {}, [NOWHERE]), 0)
    row = plan.block(0)
    row.add(op, (I, src), (I, dst), 3)
    finding = _only(plan, FindingKind.RACE, IN)
    assert finding.message == (
        f"in place, rank 0 threadblock 0 step 0 ({op.short} i[{src}:{src + 3}] -> i[{dst}:{dst + 3}], plan.py:1) reads "
        f"and writes overlapping chunks: which it moves first is not defined; move them in steps that do not overlap"
    )
    assert (finding.placement, finding.buffer, finding.chunk) == (IN, Buffer.INPUT, dst)
    row.rows[0].count = 1
    assert verify(plan.build(), [IN]).ok


@pytest.mark.parametrize("op", [Op.COPY, Op.REDUCE])
def test_a_step_may_write_where_it_reads(op: Op) -> None:
    plan = Plan("same", custom("none", [4], [0], {}, [NOWHERE]), 0)
    plan.block(0).add(op, (I, 1), (I, 1), 3)
    assert verify(plan.build(), [IN]).ok
    contents = execute(plan.build(), IN)
    assert contents.counts(0, I, 2) == {(0, 2): 1 if op is Op.COPY else 2}


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_an_overlap_of_input_and_output_is_in_place_only(offset: int) -> None:
    sources = {(0, k): [(0, k)] for k in range(2)}
    plan = Plan("alias", custom("copy", [2], [2], sources, [(0, offset)]), 0)
    plan.block(0).add(Op.COPY, (I, 0), (O, 0), 2)
    report = verify(plan.build())
    assert report.proved == ({OUT} if offset == 1 else {IN, OUT})
    kinds = {f.kind for f in report.findings}
    assert (FindingKind.RACE in kinds) == (offset == 1)
    assert all(f.placement is IN for f in report.findings)


def test_a_sum_over_chunk_indices() -> None:
    """A postcondition that combines different chunk indices, with one contribution twice when wrong."""
    sources = {(0, 0): [(0, 0), (0, 1), (0, 2)], (0, 1): [(0, 1)]}
    plan = Plan("sum", custom("sum", [3], [3], sources), 0)
    block = plan.block(0)
    for k in range(3):
        block.add(Op.REDUCE if k else Op.COPY, (I, k), (O, 0))
    block.add(Op.COPY, (I, 1), (O, 1))
    assert verify(plan.build(), [OUT]).ok
    block.rows[2].src = (I, 1)
    message = _only(plan, FindingKind.POSTCONDITION).message
    assert message == "rank 0 o[0]: the contribution of rank 0 i[2] is lost; rank 0 i[1] is counted 2 times"


def test_uninitialized() -> None:
    plan = Plan("early", sendrecv(2), 1)
    for r in range(2):
        plan.block(r, send=1 - r).add(Op.SEND, (S, 0))
        plan.block(r, recv=1 - r).add(Op.RECV, None, (O, 0))
    finding = _only(plan, FindingKind.UNINITIALIZED)
    assert finding.message == (
        "rank 0 threadblock 0 step 0 (s s[0], plan.py:1) reads s[0], to which nothing has been written"
    )
    assert (finding.buffer, finding.chunk) == (Buffer.SCRATCH, 0)


def test_reduce_into_an_uninitialized_slot() -> None:
    plan = Plan("early", allreduce(1), 0)
    plan.block(0).add(Op.REDUCE, (I, 0), (O, 0))
    assert "reads o[0]" in _only(plan, FindingKind.UNINITIALIZED).message


def test_lost_twice_and_foreign_contributions() -> None:
    plan = ring_allreduce(3)
    for block in plan.blocks:
        block.rows[1].src = (I, (block.rows[1].src[1] + 1) % 3)
    message = verify(plan.build(), [OUT]).findings[0].message
    assert message == "rank 0 o[0]: the contribution of rank 1 i[0] is lost; rank 1 i[1] does not belong there"
    plan = ring_allreduce(2)
    plan.block(0).add(Op.REDUCE, (O, 0), (O, 0), deps=[(0, 2)])
    assert _only(plan, FindingKind.POSTCONDITION).message == "rank 0 o[0]: rank 0 i[0], rank 1 i[0] is counted 2 times"


def test_only_some_findings_are_kept() -> None:
    report = verify(in_place_ring(8).build(), [OUT])
    placed = report.placements[OUT]
    assert len([f for f in placed.findings if f.kind is FindingKind.POSTCONDITION]) == 20
    assert placed.more[FindingKind.POSTCONDITION] == 64 - 20
    assert "postcondition: and 59 more" in report.text()


def test_alltonext_prescribes_nothing_on_rank_0() -> None:
    plan = Plan("next", alltonext(3), 0)
    for r in range(3):
        if r < 2:
            plan.block(r, send=r + 1).add(Op.SEND, (I, 0))
        if r:
            plan.block(r, recv=r - 1).add(Op.RECV, None, (O, 0))
    assert verify(plan.build()).proved == {OUT}


def test_placement_without_meaning_and_no_postcondition() -> None:
    nothing = Custom((1, 1), (1, 1), ((None,), (None,)), None, specified=False)
    plan = Plan("file", Collective("custom", 2, 1, None, nothing), 0)
    plan.block(0, send=1).add(Op.SEND, (I, 0))
    plan.block(1, recv=0).add(Op.RECV, None, (O, 0))
    report = verify(plan.build())
    assert report.proved == {OUT}
    assert [f.kind for f in report.findings] == [FindingKind.PLACEMENT]
    assert report.postcondition == "not given"
    assert "no postcondition was given: everything else was checked" in report.text()


def test_copy_of_a_slot_to_itself_touches_nothing_in_place() -> None:
    plan = Plan("idle", sendrecv(2), 1)
    for r in range(2):
        plan.block(r, send=1 - r).add(Op.SEND, (I, 0))
        plan.block(r).add(Op.COPY, (I, 0), (O, 0))
        plan.block(r, recv=1 - r).add(Op.RECV, None, (S, 0))
    assert _kinds(plan, IN) == {FindingKind.POSTCONDITION}


def test_require_and_json() -> None:
    assert require(allpairs(3).build(), IN).proved == {IN}
    with pytest.raises(VerificationError, match="nothing was ever written") as caught:
        require(in_place_ring(3).build(), OUT)
    assert isinstance(caught.value.fields["findings"][0], Finding)
    report = json.loads(json.dumps(verify(direct_alltoall(2).build()).as_json()))
    shown = [report[key] for key in ("ok", "fifo_depth", "smallest_fifo_depth", "postcondition")]
    assert shown == [True, 8, 1, "proved"]
    assert report["placements"]["out"] == {"ok": True, "findings": [], "more": {}}
    finding = report["findings"][0]
    assert finding.pop("message").startswith("in place, rank 0 i[1] = o[1]")
    place = {"rank": 0, "threadblock": 2, "step": 0, "buffer": "output", "chunk": 1, "file": "plan.py", "line": 3}
    assert finding == {"kind": "race", "placement": "in", "others": [[0, 1, 0]], **place}


def test_depth_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least one message"):
        verify(allpairs(2).build(), fifo_depth=0)


def test_an_algorithm_without_steps() -> None:
    assert not verify(Plan("nothing", allreduce(2), 0).build()).ok
    plan = Plan("nothing", alltonext(1), 0)
    plan.blocks.append(Block(0))
    assert verify(plan.build()).ok
