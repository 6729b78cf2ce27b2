"""Instances: cut every operation into the parts that run in parallel, each on a lane of its own.

Chunks are refined first, by the least factor that every cut needs; then an operation of k chunks becomes so many
operations on equal parts of its span. Because this happens before anything is ordered, the compiler sees every
overlap between parts, whatever the sizes.

Interleaved, part j of a span is its j-th equal piece. Blocked, part j of a shard is its j-th piece, and chunk k of the
program is chunk k of each piece, so that parts of spans of different size never meet; a span that crosses shards is
cut at the border first. That numbers the chunks of a shard anew, which no collective can tell, because all keep a
chunk's place in its shard (the shards of a custom one are single chunks).

Hinted channels and threadblocks keep their numbers on lane 0; each further lane gets numbers above those before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from commlib.collectives import Buffer
from commlib.ir.algorithm import NOTHING, Ints
from commlib.ir.trace import COLUMNS, Trace

_AT = {name: position for position, name in enumerate(COLUMNS)}
_ENDS = (
    ("src_rank", "src_buffer", "src_index"),
    ("dst_rank", "dst_buffer", "dst_index"),
    ("dst_rank", "operand_buffer", "operand_index"),
)


@dataclass(frozen=True)
class Instances:
    """Trace in, the expanded Trace out (instances and ways 1, lanes set); means the same on refined chunks.

    Linear in the operations of the result.
    """

    def __call__(self, trace: Trace) -> Trace:
        """Apply the pass."""
        ways = trace.column("ways")
        if trace.instances == 1 and (len(trace) == 0 or int(ways.max()) == 1):
            return trace
        inner = int(np.lcm.reduce(np.unique(ways))) if len(trace) else 1
        factor = trace.instances * inner
        rows = _cut_at_shards(trace) if trace.blocked and trace.instances > 1 else trace.rows
        expanded = _expand(trace, rows, factor)
        return replace(
            trace,
            collective=trace.collective.refine(factor),
            scratch_chunks=tuple(size * factor for size in trace.scratch_chunks),
            rows=expanded,
            instances=1,
            blocked=False,
            lanes=trace.instances * int(ways.max(initial=1)),
        )


def _expand(trace: Trace, rows: Ints, factor: int) -> Ints:
    """Each row as instances x ways rows, on consecutive lanes."""
    ways = rows[:, _AT["ways"]]
    parts = trace.instances * ways
    result = np.repeat(rows, parts, axis=0)
    first = np.cumsum(parts) - parts
    lane = np.arange(len(result)) - np.repeat(first, parts)
    instance, way = np.divmod(lane, np.repeat(ways, parts))
    count = result[:, _AT["count"]]
    size = count * factor // np.repeat(parts, parts)
    for rank_name, buffer_name, index_name in _ENDS:
        index = result[:, _AT[index_name]]
        if trace.blocked and trace.instances > 1:
            shard = _shard_sizes(trace, result[:, _AT[rank_name]], result[:, _AT[buffer_name]])
            own = factor // trace.instances
            start = index // shard * shard * factor + instance * shard * own + index % shard * own + way * size
        else:
            start = index * factor + lane * size
        result[:, _AT[index_name]] = start
    result[:, _AT["count"]] = size
    result[:, _AT["ways"]] = 1
    result[:, _AT["lane"]] = lane
    for name in ("channel", "send_tb", "recv_tb"):
        result[:, _AT[name]] = _hints_by_lane(result[:, _AT[name]], lane)
    return result


def _hints_by_lane(hint: Ints, lane: Ints) -> Ints:
    """Lane 0 keeps the numbers asked for; each further lane gets the next free ones, in the same order."""
    asked = np.unique(hint[hint != NOTHING])
    if not len(asked):
        return hint
    further = asked[-1] + 1 + (lane - 1) * len(asked) + np.searchsorted(asked, hint)
    return np.where((hint == NOTHING) | (lane == 0), hint, further)


def _shard_sizes(trace: Trace, rank: Ints, buffer: Ints) -> Ints:
    """The shard that a slot belongs to has this many chunks; a rank's scratch is one shard."""
    scratch = np.array(trace.scratch_chunks, dtype=np.int64)
    return np.where(buffer == Buffer.SCRATCH, scratch[rank], trace.collective.chunks)


def _cut_at_shards(trace: Trace) -> Ints:
    """Cut the rows whose spans cross a shard's border into rows that do not; the rest stays as it is."""
    rows = trace.rows
    count = rows[:, _AT["count"]]
    room = np.stack([_room(trace, rows, end) for end in _ENDS])
    crossing = (room < count).any(axis=0)
    if not crossing.any():
        return rows
    pieces: list[list[int]] = []
    order: list[int] = []
    for number in np.flatnonzero(crossing).tolist():
        for piece in _pieces(trace, rows[number]):
            pieces.append(piece)
            order.append(number)
    kept = np.flatnonzero(~crossing)
    merged = np.concatenate([rows[kept], np.array(pieces, dtype=np.int64)])
    place = np.argsort(np.concatenate([kept, order]), kind="stable")
    return np.asarray(merged[place], dtype=np.int64)


def _room(trace: Trace, rows: Ints, end: tuple[str, str, str]) -> Ints:
    """How many chunks remain from each row's index to the end of its shard."""
    rank, buffer, index = (rows[:, _AT[name]] for name in end)
    shard = _shard_sizes(trace, rank, buffer)
    return shard - index % shard


def _pieces(trace: Trace, row: Ints) -> list[list[int]]:
    found: list[list[int]] = []
    rest = row.copy()
    while rest[_AT["count"]] > 0:
        room = min(int(_room(trace, rest[None, :], end)[0]) for end in _ENDS)
        size = min(room, int(rest[_AT["count"]]))
        piece = rest.copy()
        piece[_AT["count"]] = size
        found.append(piece.tolist())
        for _, _, index in _ENDS:
            rest[_AT[index]] += size
        rest[_AT["count"]] -= size
    return found
