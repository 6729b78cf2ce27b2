"""Channels: a number for every message, so that each connection has one threadblock at each end.

A threadblock has one channel, one receive peer and one send peer. So the messages that fused instructions tie
together share a channel, and on one channel of one rank a receive peer that is fused with one send peer cannot be
fused with another. Chains of tied messages are taken in trace order and get the lowest channel of their lane that
fits (lane l of W tries l, l + W, ...), or the user's. Where none fits, a long chain opens a channel, and a short one
gives up the fused steps that do not fit. Threadblock hints tie messages too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from commlib.errors import CompileError
from commlib.ir.algorithm import NOTHING, Ints
from commlib.ir.graph import InstructionGraph

MAX_CHANNELS = 1 << 16
WORTH_A_CHANNEL = 4
"""A chain with fewer fused steps than this never opens a channel."""
FUSED_KEY = 1 << 40
"""Threadblock keys from here on are pairs of peers, below are the user's threadblock numbers."""


@dataclass
class Connections:
    """Who owns the ends of connections, by (rank, channel, peer): a threadblock key.

    A key is a user's threadblock number, or ``FUSED_KEY`` plus the pair of peers that fusion ties together.
    Connections that nothing constrains are absent.
    """

    ranks: int
    recv: dict[int, int] = field(default_factory=dict)
    send: dict[int, int] = field(default_factory=dict)

    def code(self, rank: int, channel: int, peer: int) -> int:
        """The dictionary key of one end."""
        return (rank * MAX_CHANNELS + channel) * self.ranks + peer


Need = tuple[int, int, int, int, int]
"""An instruction that constrains its channel: (row, rank, receive peer, send peer, key)."""


@dataclass(frozen=True)
class Channels:
    """Graph in, graph out with ``channel`` filled.

    Also returns the owners of connections, and the fused rows that cannot keep the channels asked for: they must be
    taken apart and the pass run again. Near linear: each chain tries channels until one fits.

    Raises:
        CompileError: hints that contradict each other.
    """

    def __call__(self, graph: InstructionGraph) -> tuple[InstructionGraph, Connections, list[int]]:
        """Apply the pass."""
        trace = graph.trace
        key = _keys(graph)
        if trace.column("channel").max(initial=NOTHING) >= MAX_CHANNELS:
            sender = graph.message_ends()[0][int(np.argmax(trace.column("channel")))]
            raise _contradiction(graph, int(sender), f"channels must stay below {MAX_CHANNELS} on every lane")
        group = _groups(graph)
        owners = Connections(trace.collective.ranks)
        hint = trace.column("channel")
        channel = np.where(hint == NOTHING, trace.column("lane"), hint)
        refused = _assign(graph, key, group, channel, owners)
        of_node = np.where(graph.recv != NOTHING, channel[graph.recv], channel[np.maximum(graph.send, 0)])
        of_node = np.where((graph.recv == NOTHING) & (graph.send == NOTHING), NOTHING, of_node)
        return graph.with_columns(channel=of_node), owners, refused


def hinted_threadblock(graph: InstructionGraph) -> Ints:
    """The threadblock that the user wants each instruction in, or NOTHING.

    Raises:
        CompileError: a local operation with two different hints.
    """
    trace = graph.trace
    send_tb, recv_tb = trace.column("send_tb"), trace.column("recv_tb")
    by_send = np.where(graph.send == NOTHING, NOTHING, send_tb[graph.send])
    by_recv = np.where(graph.recv == NOTHING, NOTHING, recv_tb[graph.recv])
    local = (graph.send == NOTHING) & (graph.recv == NOTHING)
    t = graph.operation
    clash = local & (send_tb[t] != NOTHING) & (recv_tb[t] != NOTHING) & (send_tb[t] != recv_tb[t])
    if clash.any():
        raise _contradiction(graph, int(np.argmax(clash)), "a local operation runs in one threadblock, not two")
    by_local = np.where(local, np.maximum(send_tb[t], recv_tb[t]), NOTHING)
    return np.maximum(np.maximum(by_send, by_recv), by_local)


def _keys(graph: InstructionGraph) -> Ints:
    """Per instruction the threadblock key that it demands, or NOTHING."""
    hinted = hinted_threadblock(graph)
    fused = (graph.recv != NOTHING) & (graph.send != NOTHING)
    pair = FUSED_KEY + graph.recv_peer * graph.trace.collective.ranks + graph.send_peer
    return np.where(hinted != NOTHING, hinted, np.where(fused, pair, NOTHING))


def _groups(graph: InstructionGraph) -> Ints:
    """Per message, the first message of the set that must share its channel."""
    parent = list(range(len(graph.trace)))
    fused = graph.fused
    for recv, send in zip(graph.recv[fused].tolist(), graph.send[fused].tolist(), strict=True):
        parent[send] = parent[recv]  # Rows are in time order, so the receive's own set is known by now.
    if (graph.trace.column("send_tb") != NOTHING).any() or (graph.trace.column("recv_tb") != NOTHING).any():
        _join_hinted(graph, parent)
    return np.array(parent, dtype=np.int64)


def _find(parent: list[int], message: int) -> int:
    while parent[message] != message:
        parent[message] = parent[parent[message]]
        message = parent[message]
    return message


def _join_hinted(graph: InstructionGraph, parent: list[int]) -> None:
    """Join the messages of each hinted threadblock, and check that it has one peer in each direction."""
    hinted = hinted_threadblock(graph)
    first: dict[tuple[int, int], int] = {}
    peers: dict[tuple[int, int, str], int] = {}
    recv_peer, send_peer = graph.recv_peer, graph.send_peer
    for row in np.flatnonzero(hinted != NOTHING).tolist():
        tb = (int(graph.rank[row]), int(hinted[row]))
        ends = (("receives from", graph.recv, recv_peer), ("sends to", graph.send, send_peer))
        for word, message, peer in ends:
            if message[row] == NOTHING:
                continue
            if peers.setdefault((*tb, word), int(peer[row])) != peer[row]:
                raise _contradiction(graph, row, f"threadblock {tb[1]} of rank {tb[0]} {word} two different ranks")
            one, other = _find(parent, first.setdefault(tb, int(message[row]))), _find(parent, int(message[row]))
            parent[max(one, other)] = min(one, other)
    parent[:] = [_find(parent, number) for number in range(len(parent))]


def _assign(graph: InstructionGraph, key: Ints, group: Ints, channel: Ints, owners: Connections) -> list[int]:
    """Choose each group's channel, in place; returns the fused rows that do not fit a channel they must have."""
    rows = np.flatnonzero((key != NOTHING) & ((graph.recv != NOTHING) | (graph.send != NOTHING)))
    message = np.where(graph.recv[rows] != NOTHING, graph.recv[rows], graph.send[rows])
    order = np.argsort(group[message], kind="stable")
    rows, leader = rows[order], group[message][order]
    columns = (rows, graph.rank[rows], graph.recv_peer[rows], graph.send_peer[rows], key[rows])
    needs: list[Need] = list(zip(*(column.tolist() for column in columns), strict=True))
    starts = np.concatenate([np.flatnonzero(np.diff(leader, prepend=-1)), [len(rows)]]).tolist()
    forced = _forced_channels(graph, group)
    chosen, lanes = channel.copy(), graph.trace.column("lane")
    demanded = [(need, forced[head]) for need, head in zip(needs, leader.tolist(), strict=True) if head in forced]
    refused = _claim_forced(graph, demanded, owners)
    for head, wanted in forced.items():
        chosen[head] = wanted
    opened = dict.fromkeys(range(graph.trace.lanes), 1)
    for begin, end in pairwise(starts):
        head = int(leader[begin])
        if head not in forced:
            lane = int(lanes[head])
            choice = _choose(graph, needs[begin:end], lane, opened[lane], owners)
            chosen[head], opened[lane] = choice.channel, max(opened[lane], choice.channel // graph.trace.lanes + 1)
            refused += choice.refused
    channel[:] = chosen[group]
    return refused


def _forced_channels(graph: InstructionGraph, group: Ints) -> dict[int, int]:
    """The channel that hints demand for a group; two different demands contradict each other."""
    hint = graph.trace.column("channel")
    rows = np.flatnonzero(hint != NOTHING)
    forced: dict[int, int] = {}
    for message, head, wanted in zip(rows.tolist(), group[rows].tolist(), hint[rows].tolist(), strict=True):
        if forced.setdefault(head, wanted) != wanted:
            sender = graph.message_ends()[0][message]
            raise _contradiction(graph, int(sender), "its threadblock is hinted to two different channels")
    return forced


@dataclass(frozen=True)
class _Choice:
    """A channel for a chain, and the fused rows that do not fit there."""

    channel: int
    refused: list[int]


def _choose(graph: InstructionGraph, chain: list[Need], lane: int, opened: int, owners: Connections) -> _Choice:
    """The channel for a chain, claimed for all of it that fits.

    Fused rows that do not fit are given up rather than a new channel opened for a few of them: a long chain that
    would lose more than half of its fusion is worth a channel. The user's threadblocks must fit.
    """
    step = graph.trace.lanes
    if any(need[4] < FUSED_KEY for need in chain):
        choice = _choose_for_hints(graph, chain, lane, owners)
    else:
        candidates = range(lane, lane + opened * step, step)
        found = ((channel, _misfits(chain, channel, owners)) for channel in candidates)
        channel, misfits = _fewest_misfits(found)
        if len(chain) >= WORTH_A_CHANNEL and 2 * len(misfits) > len(chain):
            channel = lane + opened * step
            misfits = _misfits(chain, channel, owners)
        choice = _Choice(channel, [need[0] for need in misfits])
    refused = set(choice.refused)
    for need in chain:
        if need[0] not in refused:
            _claim(need, choice.channel, owners)
    return choice


def _fewest_misfits(found: Iterable[tuple[int, list[Need]]]) -> tuple[int, list[Need]]:
    best: tuple[int, list[Need]] | None = None
    for channel, misfits in found:
        if best is None or len(misfits) < len(best[1]):
            best = (channel, misfits)
        if not misfits:
            break
    return best or (0, [])


def _choose_for_hints(graph: InstructionGraph, chain: list[Need], lane: int, owners: Connections) -> _Choice:
    """The lowest channel of the lane where the user's threadblocks of a chain fit."""
    alone = _misfits([need for need in chain if need[4] < FUSED_KEY], 0, Connections(owners.ranks))
    if alone:
        raise _contradiction(graph, alone[0][0], "another hinted threadblock has the same peer")
    for channel in range(lane, MAX_CHANNELS, graph.trace.lanes):
        misfits = _misfits(sorted(chain, key=lambda need: need[4] >= FUSED_KEY), channel, owners)
        if all(need[4] >= FUSED_KEY for need in misfits):
            return _Choice(channel, [need[0] for need in misfits])
    raise CompileError(f"{graph.trace.name} needs more than {MAX_CHANNELS} channels")


def _misfits(chain: list[Need], channel: int, owners: Connections) -> list[Need]:
    """The needs of a chain that others on this channel, or earlier ones of the chain itself, stand against."""
    own = Connections(owners.ranks)
    found = []
    for need in chain:
        if _conflicts(need, channel, owners) or _conflicts(need, channel, own):
            found.append(need)
        else:
            _claim(need, channel, own)
    return found


def _claim_forced(graph: InstructionGraph, demanded: list[tuple[Need, int]], owners: Connections) -> list[int]:
    """Claim the channels that hints demand, the user's own threadblocks before the fused ones, which may give way."""
    refused = []
    for need, channel in sorted(demanded, key=lambda pair: pair[0][4] >= FUSED_KEY):
        if not _conflicts(need, channel, owners):
            _claim(need, channel, owners)
        elif graph.recv[need[0]] != NOTHING and graph.send[need[0]] != NOTHING:
            refused.append(need[0])
        else:
            raise _contradiction(graph, need[0], f"another threadblock has the same peer on channel {channel}")
    return refused


def _conflicts(need: Need, channel: int, owners: Connections) -> bool:
    _, rank, recv, send, key = need
    if recv != NOTHING and owners.recv.get(owners.code(rank, channel, recv), key) != key:
        return True
    return send != NOTHING and owners.send.get(owners.code(rank, channel, send), key) != key


def _claim(need: Need, channel: int, owners: Connections) -> None:
    _, rank, recv, send, key = need
    if recv != NOTHING:
        owners.recv[owners.code(rank, channel, recv)] = key
    if send != NOTHING:
        owners.send[owners.code(rank, channel, send)] = key


def _contradiction(graph: InstructionGraph, row: int, why: str) -> CompileError:
    trace = graph.trace
    t = int(graph.operation[row])
    file, line = trace.files[int(trace.column("file")[t])], int(trace.column("line")[t])
    return CompileError(
        f"{file}:{line}: the hints of this operation cannot be kept: {why}",
        file=file,
        line=line,
        rank=int(graph.rank[row]),
    )
