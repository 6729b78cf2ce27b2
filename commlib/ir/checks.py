"""Checks of an Algorithm's columns when it is built: that they fit together, and each step's operands its operation.

What an algorithm *does* is the verifier's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from commlib.collectives import Buffer
from commlib.errors import AlgorithmError
from commlib.ir.ops import HAS_DESTINATION, HAS_SOURCE, NOTHING, ONE_SIDED, RECEIVES, SENDS, SYNCHRONIZES, Ints, Op

if TYPE_CHECKING:
    from commlib.ir.algorithm import Algorithm

Mask = npt.NDArray[np.bool_]

_TB_COLUMNS = ("tb_rank", "tb_send", "tb_recv", "tb_channel")
_STEP_COLUMNS = ("op", "source_buffer", "source_index", "destination_buffer", "destination_index", "count")
_OPERAND_COLUMNS = ("operand_buffer", "operand_index", "operand_writes")


def check(a: Algorithm) -> None:
    """Refuse columns that do not fit together. O(steps + operands log operands).

    Raises:
        AlgorithmError: naming the column, or rank, threadblock and step.
    """
    steps, blocks = len(a.op), len(a.tb_rank)
    if len(a.scratch_chunks) != a.ranks:
        raise AlgorithmError(f"{a.name}: scratch sizes for {len(a.scratch_chunks)} ranks, not {a.ranks}")
    _check_rows(a, _TB_COLUMNS, blocks, "threadblocks")
    _check_rows(a, ("tb_start",), blocks, "threadblocks", 1)
    _check_rows(a, _STEP_COLUMNS, steps, "steps")
    _check_rows(a, ("dep_start", "operand_start"), steps, "steps", 1)
    _check_rows(a, _OPERAND_COLUMNS, len(a.operand_rank), "operands")
    _check_threadblocks(a, steps)
    _check_steps(a)


def _check_rows(a: Algorithm, names: tuple[str, ...], rows: int, word: str, more: int = 0) -> None:
    for name in names:
        if len(getattr(a, name)) != rows + more:
            raise AlgorithmError(f"{a.name}: column {name} has {len(getattr(a, name))} rows for {rows} {word}")


def _check_threadblocks(a: Algorithm, steps: int) -> None:
    for column, low, high in ((a.tb_rank, 0, a.ranks), (a.tb_send, NOTHING, a.ranks), (a.tb_recv, NOTHING, a.ranks)):
        if np.any(column < low) or np.any(column >= high):
            raise AlgorithmError(f"{a.name}: a threadblock names a rank outside 0..{a.ranks - 1}")
    if np.any(np.diff(a.tb_rank) < 0):
        raise AlgorithmError(f"{a.name}: threadblocks are not ordered by rank")
    if np.any(a.tb_channel < 0):
        raise AlgorithmError(f"{a.name}: a threadblock has a negative channel")
    if a.tb_start[0] != 0 or a.tb_start[-1] != steps or np.any(np.diff(a.tb_start) < 0):
        raise AlgorithmError(f"{a.name}: threadblocks do not delimit the {steps} steps")


def _check_steps(a: Algorithm) -> None:
    if np.any(a.op < 0) or np.any(a.op >= len(Op)):
        raise AlgorithmError(f"{a.name}: a step has an unknown operation")
    _check_local_operands(a)
    _check_operands(a)
    block = a.step_threadblock
    for has, column, word in ((SENDS, a.tb_send, "sends"), (RECEIVES, a.tb_recv, "receives")):
        _refuse(a, has[a.op] & (column[block] == NOTHING), f"{word}, but its threadblock has no such peer")
    _check_dependences(a)


def _check_local_operands(a: Algorithm) -> None:
    empty = (a.op == Op.NOP) | SYNCHRONIZES[a.op]
    _refuse(a, np.where(empty, a.count != 0, a.count < 1), "has a count that its operation cannot have")
    operands = (
        (HAS_SOURCE[a.op], a.source_buffer, a.source_index, "source"),
        (HAS_DESTINATION[a.op], a.destination_buffer, a.destination_index, "destination"),
    )
    for has, buffer, index, word in operands:
        _refuse(a, (buffer < NOTHING) | (buffer >= len(Buffer)), f"has an unknown {word} buffer")
        _refuse(a, has != (buffer != NOTHING), f"must have a {word} exactly when its operation uses one")
        _refuse(a, np.where(has, index < 0, index != NOTHING), f"has a {word} index that cannot be")
        _refuse(a, has & (index + a.count > _buffer_limits(a, buffer)), f"has a {word} outside its buffer")


def _buffer_limits(a: Algorithm, buffer: Ints) -> Ints:
    return _all_limits(a)[a.step_rank, buffer]


def _all_limits(a: Algorithm) -> Ints:
    return np.array([[a.buffer_chunks(r, b) for b in Buffer] for r in range(a.ranks)], dtype=np.int64)


def _check_operands(a: Algorithm) -> None:
    """The rows of one-sided steps; the slots that they name, and that there are as many as the operation takes."""
    if a.operand_start[0] != 0 or a.operand_start[-1] != len(a.operand_rank) or np.any(np.diff(a.operand_start) < 0):
        raise AlgorithmError(f"{a.name}: operand_start does not delimit the operands")
    rows = np.diff(a.operand_start)
    _refuse(a, ~ONE_SIDED[a.op] & (rows > 0), "has operands, but is not one-sided")
    if not len(a.operand_rank):
        _refuse(a, ONE_SIDED[a.op], "lacks its operands")
        return
    _check_slots(a)
    _check_numbers(a, rows)
    _check_overlaps(a)


def _check_slots(a: Algorithm) -> None:
    step, rank, buffer, index = a.operand_step, a.operand_rank, a.operand_buffer, a.operand_index
    _refuse_row(a, (rank < 0) | (rank >= a.ranks), f"names a rank outside 0..{a.ranks - 1}")
    none = SYNCHRONIZES[a.op[step]]
    own, slot = rank == a.step_rank[step], (buffer != NOTHING) | (index != NOTHING)
    _refuse_row(a, none & (own | slot), "needs another rank as its peer, and no slot")
    _refuse_row(a, ~none & ((buffer < 0) | (buffer >= len(Buffer))), "has an operand in an unknown buffer")
    _refuse_row(a, ~none & (index < 0), "has an operand with an index that cannot be")
    _refuse_row(a, ~none & (index + a.count[step] > _all_limits(a)[rank, buffer]), "has an operand outside its buffer")
    writes = a.operand_writes
    _refuse_row(a, (writes < 0) | (writes > 1), "has an operand that is neither source nor destination")
    falls = np.concatenate(([False], (np.diff(writes) < 0) & (np.diff(step) == 0)))
    _refuse_row(a, falls, "has a source after a destination")


def _check_numbers(a: Algorithm, rows: Ints) -> None:
    """Each operation's number of sources and destinations, and which of them are local."""
    step, writes = a.operand_step, a.operand_writes == 1
    destinations = np.bincount(step[writes], minlength=a.step_count)
    sources, op = rows - destinations, a.op
    local = a.operand_rank == a.step_rank[step]
    local_sources = np.bincount(step[local & ~writes], minlength=a.step_count)
    local_destinations = np.bincount(step[local & writes], minlength=a.step_count)
    one_source = np.isin(op, (Op.PUT, Op.GET, Op.STORE)) | SYNCHRONIZES[op]
    one_destination = np.isin(op, (Op.PUT, Op.GET, Op.READ_REDUCE))
    moves = ONE_SIDED[op] & ~SYNCHRONIZES[op]
    _refuse(a, SYNCHRONIZES[op] & (destinations > 0), "has a destination, but only signals")
    _refuse(a, one_source & (sources != 1), "must have exactly one source or peer")
    _refuse(a, one_destination & (destinations != 1), "must have exactly one destination")
    _refuse(a, moves & ((sources < 1) | (destinations < 1)), "must have sources and destinations")
    _refuse(a, np.isin(op, (Op.PUT, Op.STORE)) & (local_sources != 1), "must have a local source")
    _refuse(a, np.isin(op, (Op.GET, Op.READ_REDUCE)) & (local_destinations != 1), "must have a local destination")
    _refuse(a, (op == Op.PUT) & (local_destinations != 0), "must have a destination on another rank")
    _refuse(a, (op == Op.GET) & (local_sources != 0), "must have a source on another rank")


def _check_overlaps(a: Algorithm) -> None:
    """Within a step, a destination is no other destination, and equal to each source or apart from it."""
    moved = a.operand_buffer != NOTHING
    if not moved.any():
        return
    step, writes, index = a.operand_step[moved], a.operand_writes[moved], a.operand_index[moved]
    place = (step * a.ranks + a.operand_rank[moved]) * len(Buffer) + a.operand_buffer[moved]
    order = np.lexsort((index, place))
    place, index, step, writes = place[order], index[order], step[order], writes[order]
    first = np.concatenate(([True], (np.diff(place) != 0) | (np.diff(index) != 0)))
    slot = np.cumsum(first) - 1
    written = np.bincount(slot, weights=writes, minlength=1)
    _refuse(a, _at(a, step[first][written > 1]), "has a destination twice")
    place, index, step = place[first], index[first], step[first]
    near = (np.diff(place) == 0) & (np.diff(index) < a.count[step[:-1]]) & (written[:-1] + written[1:] > 0)
    _refuse(a, _at(a, step[:-1][near]), "has operands that overlap in part; they must be equal or apart")


def _at(a: Algorithm, steps: Ints) -> Mask:
    mask = np.zeros(a.step_count, dtype=bool)
    mask[steps] = True
    return mask


def _refuse_row(a: Algorithm, wrong: Mask, message: str) -> None:
    if wrong.any():
        _refuse(a, _at(a, a.operand_step[wrong]), message)


def _check_dependences(a: Algorithm) -> None:
    if a.dep_start[0] != 0 or a.dep_start[-1] != len(a.dep) or np.any(np.diff(a.dep_start) < 0):
        raise AlgorithmError(f"{a.name}: dep_start does not delimit the dependences")
    if np.any(a.dep < 0) or np.any(a.dep >= a.step_count):
        raise AlgorithmError(f"{a.name}: a dependence names a step that does not exist")
    owner = np.repeat(np.arange(a.step_count, dtype=np.int64), np.diff(a.dep_start))
    foreign = np.zeros(a.step_count, dtype=bool)
    foreign[owner[a.step_rank[owner] != a.step_rank[a.dep]]] = True
    _refuse(a, foreign, "depends on a step of another rank")


def _refuse(a: Algorithm, wrong: Mask, message: str) -> None:
    if wrong.any():
        number = int(np.argmax(wrong))
        rank, threadblock, index = a.place(number)
        raise AlgorithmError(
            f"{a.name}: rank {rank} threadblock {threadblock} step {index} {message}",
            rank=rank,
            threadblock=threadblock,
            step=index,
        )
