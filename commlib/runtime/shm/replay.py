"""Replay: a table at given tensors as lists of closures, one list for each threadblock, lane and tile; made on use.

A closure (*action*) tries to go on: it returns None when it has done its steps, or what it waits for, and is then
tried again. It holds as many rows as can run without waiting in between. Operands in messages and in the tensors of
other ranks are resolved when they are first met at that address, and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from commlib.runtime.shm.control import WAITS
from commlib.runtime.shm.moves import Call, Movers, Remote
from commlib.runtime.shm.waiting import Blocked
from commlib.runtime.table import MESSAGE_IN, MESSAGE_OUT, MOVE, NONE, OWN_SCRATCH, PEERS, SIGNAL, WAIT, RankTable

if TYPE_CHECKING:
    from commlib.runtime.shm.context import PythonContext, PythonTable

Action = Callable[[], Sequence[Blocked] | None]
_KEPT = 20_000
"""Calls that a replay keeps (some 0.5 KB each); what comes after is made anew each time: long launches, whose tiles
take long."""
_SIGNAL, _MESSAGE, _ROOM, _OTHER = (WAITS.index(name) for name in ("signal", "message", "room", "other"))


class Row(NamedTuple):
    """A row of STEP."""

    kind: int
    number: int
    receive: int
    send: int
    peer: int
    channel: int
    move_low: int
    move_high: int
    depend_low: int
    depend_high: int
    message: int


class Group(NamedTuple):
    """Rows that one action does; only the first of them may wait."""

    block: int
    rows: tuple[int, ...]


class Plan:
    """What all replays of a table share: its rows as plain numbers, and which of them run together."""

    def __init__(self, table: RankTable, traced: bool = False) -> None:
        self.table = table
        self.rows = [Row(*row) for row in table.steps.tolist()]
        self.moves = [row[:3] + row[4:] for row in table.moves.tolist()]
        self.operands = [(row[0], row[2], row[3]) for row in table.operands.tolist()]
        self.depends = table.depends.tolist()
        self.sends, self.receives = table.sends.tolist(), table.receives.tolist()
        self.movers = Movers(table.dtype, table.itemsize, table.combine)
        blocks = enumerate(table.blocks.tolist())
        self.groups = [list(self._grouped(number, low, high, traced)) for number, (low, high) in blocks]
        self.group_of = [[number for number, group in enumerate(groups) for _ in group.rows] for groups in self.groups]

    def _grouped(self, block: int, low: int, high: int, traced: bool) -> Iterator[Group]:
        rows: list[int] = []
        for number in range(low, high):
            if rows and (traced or self._may_wait(self.rows[number])):
                yield Group(block, tuple(rows))
                rows = []
            rows.append(number)
        if rows:
            yield Group(block, tuple(rows))

    @staticmethod
    def _may_wait(row: Row) -> bool:
        return row.kind == WAIT or row.receive != NONE or row.send != NONE or row.depend_high > row.depend_low

    def actions_before(self, block: int, steps: int) -> int:
        """How many actions of a block must be done for its first ``steps`` rows to be."""
        return self.group_of[block][steps - 1] + 1 if steps else 0


class Replay:
    """A table on this rank's input and output."""

    def __init__(self, context: PythonContext, table: PythonTable, plan: Plan, tensors: tuple[int, int]) -> None:
        self.context, self.table, self.plan = context, table, plan
        self.words = tuple(context.board_word(address, table.reach) for address in tensors)
        self.finished = [0] * len(plan.groups)
        self._tensors = tensors
        self._known: dict[tuple[int, int], list[list[Action]]] = {}
        self.count = 0

    def actions(self, lane: int, tile: int) -> list[list[Action]]:
        """The actions of each threadblock in a tile whose epoch works in ``lane``."""
        found = self._known.get((lane, tile))
        if found is None:
            found = [[_Maker(self, lane, tile).action(group) for group in groups] for groups in self.plan.groups]
            if self.count < _KEPT:
                self._known[lane, tile] = found
        return found

    def forget(self) -> None:
        """Drop what was made (and refers back to this): memory is free without a garbage collection."""
        self._known.clear()
        self.count = 0

    def keep(self, calls: list[Call]) -> bool:
        """Whether calls that were made on the way may be kept."""
        self.count += len(calls) + 1
        return self.count < _KEPT

    def own(self, base: int) -> int:
        """The address of this rank's input or output."""
        return self._tensors[base]


class _Maker:
    """Makes the actions of one tile in one lane."""

    def __init__(self, replay: Replay, lane: int, tile: int) -> None:
        self.replay, self.lane, self.tile = replay, lane, tile
        self.plan, self.context = replay.plan, replay.context

    def action(self, group: Group) -> Action:
        """The action of a group of rows."""
        first = self.plan.rows[group.rows[0]]
        conditions = list(self._conditions(group.block, first))
        action = _together(conditions, list(self._body(group)))
        if self.context.trace is None:
            return action
        return _traced(action, self.context.tracer(self.plan.table.threadblocks[group.block], first.number))

    def _blocked(self, block: int, row: Row, kind: int, peer: int = NONE, channel: int = NONE) -> tuple[Blocked, ...]:
        return ((self.plan.table.threadblocks[block], row.number, kind, peer, channel),)

    def _conditions(self, block: int, row: Row) -> Iterator[Action]:
        """What must hold before the row begins; a wait comes last, because it counts what it has seen."""
        needs = [
            (other, self.plan.actions_before(other, steps))
            for other, steps in self.plan.depends[row.depend_low : row.depend_high]
            if other != block and steps
        ]
        if needs:
            yield _depend(self.replay.finished, needs, self._blocked(block, row, _OTHER))
        if row.receive != NONE:
            peer, channel = self.plan.receives[row.receive]
            blocked = self._blocked(block, row, _MESSAGE, peer, channel)
            yield self.context.links.has_message(peer, channel, blocked)
        if row.send != NONE:
            peer, channel = self.plan.sends[row.send]
            yield self.context.links.has_room(peer, channel, self._blocked(block, row, _ROOM, peer, channel))
        if row.kind == WAIT:
            blocked = self._blocked(block, row, _SIGNAL, row.peer, row.channel)
            yield self.context.links.wait(row.peer, row.channel, blocked)

    def _body(self, group: Group) -> Iterator[Call]:
        """The calls of all rows; bells are rung after the last of neighbouring signals."""
        bells: list[int] = []
        for number in group.rows:
            row = self.plan.rows[number]
            if row.kind == SIGNAL:
                yield self.context.links.signal(row.peer, row.channel)
                bells.append(row.peer)
                continue
            if bells and row.move_high > row.move_low:
                yield self.context.links.ringing(bells)
                bells = []
            yield from self._row(row, bells)
        if bells:
            yield self.context.links.ringing(bells)

    def _row(self, row: Row, bells: list[int]) -> Iterator[Call]:
        if row.kind == MOVE:
            yield from self._moves(row)
        if row.receive != NONE:
            yield self.context.links.taken(*self.plan.receives[row.receive])
            bells.append(self.plan.receives[row.receive][0])
        if row.send != NONE:
            yield self.context.links.sent(*self.plan.sends[row.send])
            bells.append(self.plan.sends[row.send][0])

    def _moves(self, row: Row) -> Iterator[Call]:
        operands = self.plan.operands
        bases = {
            operands[at][0]
            for low, _, high, _ in self.plan.moves[row.move_low : row.move_high]
            for at in range(low, high)
        }
        foreign = sorted(base for base in bases if base >= PEERS and (base - PEERS) % 3 != OWN_SCRATCH)
        if not foreign and row.receive == NONE and row.send == NONE:
            made = list(self._made(row, {base: self._fixed(base) for base in bases}))
            self.replay.keep(made)
            yield from made
        elif bases:
            yield self._late(row, sorted(bases), foreign)

    def _late(self, row: Row, bases: Sequence[int], foreign: Sequence[int]) -> Call:
        """A call that resolves its operands when it runs, and remembers them by what decides on them."""
        known: dict[tuple[int, ...], list[Call]] = {}
        links, plan, replay = self.context.links, self.plan, self.replay
        incoming = None if row.receive == NONE else plan.receives[row.receive]
        outgoing = None if row.send == NONE else plan.sends[row.send]
        fixed = {base: self._fixed(base) for base in bases if base not in (MESSAGE_IN, MESSAGE_OUT, *foreign)}

        def late() -> None:
            into = 0 if incoming is None else links.incoming(*incoming)
            out = 0 if outgoing is None else links.outgoing(*outgoing)
            key = (into, out, *(self.context.peer_word(base) for base in foreign))
            calls = known.get(key)
            if calls is None:
                where: dict[int, int | Remote] = {**fixed, MESSAGE_IN: into, MESSAGE_OUT: out}
                for base, word in zip(foreign, key[2:], strict=True):
                    where[base] = self.context.reach(base, word, replay.table.reach)
                calls = list(self._made(row, where))
                if replay.keep(calls):
                    known[key] = calls
            for call in calls:
                call()

        return late

    def _fixed(self, base: int) -> int:
        """The address of a base that only the lane decides on."""
        if base < OWN_SCRATCH:
            return self.replay.own(base)
        rank, buffer = divmod(base - PEERS, 3) if base >= PEERS else (self.context.rank, base)
        if rank == self.context.rank and buffer < OWN_SCRATCH:
            return self.replay.own(buffer)
        return self.context.scratch(rank, self.lane)

    def _made(self, row: Row, where: Any) -> Iterator[Call]:
        """The calls of a row's moves in this tile, given the address of each base."""
        table, operands = self.plan.table, self.plan.operands
        for source_low, destination_low, high, length in self.plan.moves[row.move_low : row.move_high]:
            count = length
            if table.tiles > 1:
                count = min(max(length - self.tile * table.width, 0), table.width)
            if count:
                used = operands[source_low:high]
                places = [self._place(where[base], offset, stride) for base, offset, stride in used]
                sources = destination_low - source_low
                yield from self.plan.movers.calls(places[:sources], places[sources:], count)

    def _place(self, base: Any, offset: int, stride: int) -> Any:
        skip = offset + self.tile * stride
        return Remote(base.pid, base.address + skip) if isinstance(base, Remote) else base + skip


def _together(conditions: list[Action], calls: list[Call]) -> Action:
    if not conditions:
        return _unconditional(calls)
    if len(conditions) == 1 and not calls:
        return conditions[0]
    return _conditional(conditions, calls)


def _traced(action: Action, tell: Call) -> Action:
    """Tells when the action is first tried."""
    told = False

    def attempt() -> Sequence[Blocked] | None:
        nonlocal told
        if not told:
            tell()
        blocked = action()
        told = blocked is not None
        return blocked

    return attempt


def _unconditional(calls: list[Call]) -> Action:
    def action() -> None:
        for call in calls:
            call()

    return action


def _conditional(conditions: list[Action], calls: list[Call]) -> Action:
    def action() -> Sequence[Blocked] | None:
        for condition in conditions:
            blocked = condition()
            if blocked is not None:
                return blocked
        for call in calls:
            call()
        return None

    return action


def _depend(finished: list[int], needs: list[tuple[int, int]], blocked: tuple[Blocked, ...]) -> Action:
    def action() -> Sequence[Blocked] | None:
        for block, actions in needs:
            if finished[block] < actions:
                return blocked
        return None

    return action
