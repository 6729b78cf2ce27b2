"""One-sided programs: what every threadblock of every rank does, written out step by step, as for MSCCL++.

    k = OneSidedProgram("exchange", collective("allgather", ranks=2))
    for me, peer in ((0, 1), (1, 0)):
        tb = k.threadblock(me)
        tb.copy(k.input(me)[0], k.scratch(me)[0])
        tb.signal(peer)
        tb.wait(peer)
        tb.store(k.input(me)[0], [k.output(me)[me]])
        tb.get(k.scratch(peer)[0], k.output(me)[peer])
        tb.signal(peer)
        tb.wait(peer)
    algorithm = k.algorithm()

The meaning of the steps is told in ``commlib.ir.ops``. Nothing is compiled: the Algorithm has exactly these steps.
What one line can do wrong raises there: a slot that does not exist, a written input, operands of a wrong rank or size.
What only the whole can show (races, deadlock, a wrong result, signals that nobody waits for) is the verifier's to say;
its findings name the lines that wrote the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from commlib.collectives import Buffer, Collective, Placement
from commlib.dsl.chunk import MAX_HINT
from commlib.dsl.memory import PlacementName
from commlib.dsl.places import Area, Place
from commlib.dsl.where import at_caller, caller
from commlib.errors import ProgramError
from commlib.ir.algorithm import Algorithm, Op, Origins
from commlib.ir.builder import AlgorithmBuilder

_PLACEMENTS: dict[str, frozenset[Placement]] = {
    "in": frozenset({Placement.IN}),
    "out": frozenset({Placement.OUT}),
    "both": frozenset(Placement),
}


@dataclass(frozen=True)
class StepHandle:
    """A step that was written, for ``after=`` of later steps of its rank."""

    program: OneSidedProgram
    rank: int
    threadblock: int
    index: int


After = StepHandle | Iterable[StepHandle]


class OneSidedProgram:
    """A program whose threadblocks are written out; see the module's text.

    ``placement`` is "in", "out" or "both" and means what it means for ``Program``: unless it is "in", no input is
    ever written, by its own rank or another.

    Raises:
        ProgramError: no such placement.
    """

    def __init__(
        self, name: str, collective: Collective, *, placement: PlacementName = "both", protocol: str = "Simple"
    ) -> None:
        if placement not in _PLACEMENTS:
            raise at_caller(ProgramError, f'placement is "in", "out" or "both", not {placement!r}')
        if placement == "both" and not collective.can_be_in_place:
            placement = "out"
        self.name = name
        self.collective = collective
        self.input_is_constant = placement != "in"
        self._settings = (_PLACEMENTS[placement], protocol)
        self._blocks: list[list[ThreadblockWriter]] = [[] for _ in range(collective.ranks)]
        self._scratch = [0] * collective.ranks

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.collective.ranks

    def input(self, rank: int) -> Area:
        """The input of a rank. Raises ProgramError if there is no such rank, as do ``output`` and ``scratch``."""
        return Area(self, self.known_rank(rank), Buffer.INPUT)

    def output(self, rank: int) -> Area:
        """The output of a rank."""
        return Area(self, self.known_rank(rank), Buffer.OUTPUT)

    def scratch(self, rank: int) -> Area:
        """The scratch of a rank: as large as the steps' use of it, undefined at the start of a run, never in use by
        two calls at once."""
        return Area(self, self.known_rank(rank), Buffer.SCRATCH)

    def threadblock(
        self, rank: int, channel: int = 0, *, send: int | None = None, recv: int | None = None
    ) -> ThreadblockWriter:
        """Begin a threadblock; ``send`` and ``recv`` are the peers of its two-sided steps, if it has any.

        Raises:
            ProgramError: no such rank or channel, or a connection of a rank with itself.
        """
        if type(channel) is not int or not 0 <= channel <= MAX_HINT:
            raise at_caller(ProgramError, f"channel is a whole number from 0 to {MAX_HINT}, not {channel!r}")
        self.known_rank(rank)
        for peer in (send, recv):
            if peer is not None and self.known_rank(peer) == rank:
                raise at_caller(ProgramError, f"rank {rank} needs no connection with itself", rank=rank)
        block = ThreadblockWriter(self, rank, len(self._blocks[rank]), channel, send, recv)
        self._blocks[rank].append(block)
        return block

    def algorithm(self) -> Algorithm:
        """The program as it stands; scratch is as large as its use. Linear in the number of steps and operands."""
        placements, protocol = self._settings
        builder = AlgorithmBuilder(self.name, self.collective, self._scratch, placements, protocol)
        rows: list[_Row] = []
        for block in (block for blocks in self._blocks for block in blocks):
            builder.threadblock(block.rank, block.send_peer, block.recv_peer, block.channel)
            rows += block.rows
            for row in block.rows:
                row.append_to(builder)
        return builder.build(origins=_origins(rows))

    def known_rank(self, rank: int) -> int:
        """The rank itself; ProgramError if there is no such rank."""
        if type(rank) is not int or not 0 <= rank < self.ranks:
            raise at_caller(ProgramError, f"there is no rank {rank!r}; the collective has {self.ranks}", rank=rank)
        return rank

    def check_places(self, sources: Sequence[Place], destinations: Sequence[Place]) -> int:
        """The count of a step's places, which they must share; notes the scratch that they use.

        Raises:
            ProgramError: places of another program or of different sizes, a written input, a destination that is
                another one's or that overlaps another operand in part.
        """
        places = (*sources, *destinations)
        for place in places:
            if not isinstance(place, Place) or place.program is not self:
                raise at_caller(ProgramError, f"{place} is no place of this program, such as program.input(0)[1]")
        sizes = {place.count for place in places}
        if len(sizes) > 1:
            raise at_caller(ProgramError, f"operands differ in size: {', '.join(map(str, places[:4]))}")
        for place in destinations:
            if place.buffer is Buffer.INPUT and self.input_is_constant:
                raise at_caller(
                    ProgramError,
                    f"{place} would be written, but out of place the input is constant; "
                    'write to output or scratch, or make the program placement="in"',
                    slot=str(place),
                )
        count = sizes.pop() if sizes else 0
        _check_apart(sources, destinations, count)
        for place in places:
            if place.buffer is Buffer.SCRATCH:
                self._scratch[place.rank] = max(self._scratch[place.rank], place.index + count)
        return count


class ThreadblockWriter:
    """A threadblock being written; each method appends a step and returns its handle.

    ``after`` names steps of the same rank, in other threadblocks, that must have ended before this one begins.

    All raise ProgramError: a place or peer that the operation cannot have (see ``commlib.ir.ops``), places that
    differ in size, a written input, or an ``after`` of another rank.
    """

    def __init__(
        self, program: OneSidedProgram, rank: int, index: int, channel: int, send: int | None, recv: int | None
    ) -> None:
        self.program = program
        self.rank = rank
        self.index = index
        self.channel = channel
        self.send_peer = send
        self.recv_peer = recv
        self.rows: list[_Row] = []

    def put(self, source: Place, destination: Place, *, after: After = ()) -> StepHandle:
        """Write a local source to another rank, asynchronously: a signal or a flush makes sure of it."""
        self._other(destination, "put writes to another rank; a copy stays")
        return self._one_sided(Op.PUT, [self._own(source)], [destination], after)

    def get(self, source: Place, destination: Place, *, after: After = ()) -> StepHandle:
        """Read a source of another rank into a local destination."""
        self._other(source, "get reads from another rank; a copy stays")
        return self._one_sided(Op.GET, [source], [self._own(destination)], after)

    def read_reduce(self, sources: Sequence[Place], destination: Place, *, after: After = ()) -> StepHandle:
        """Combine sources of any ranks, from left to right, into a local destination."""
        return self._one_sided(Op.READ_REDUCE, sources, [self._own(destination)], after)

    def store(self, source: Place, destinations: Sequence[Place], *, after: After = ()) -> StepHandle:
        """Write a local source to destinations of any ranks; asynchronously to those of others."""
        return self._one_sided(Op.STORE, [self._own(source)], destinations, after)

    def read_reduce_store(
        self, sources: Sequence[Place], destinations: Sequence[Place], *, after: After = ()
    ) -> StepHandle:
        """Combine sources of any ranks, from left to right, and write the result to destinations of any ranks."""
        return self._one_sided(Op.READ_REDUCE_STORE, sources, destinations, after)

    def signal(self, peer: int, *, after: After = ()) -> StepHandle:
        """Tell a peer, on this channel, that everything before is done; releases it."""
        return self._append(Op.SIGNAL, after, peer=self._peer(peer))

    def wait(self, peer: int, *, after: After = ()) -> StepHandle:
        """Wait for the next signal of a peer on this channel; acquires what it released."""
        return self._append(Op.WAIT, after, peer=self._peer(peer))

    def flush(self, peer: int, *, after: After = ()) -> StepHandle:
        """Wait until all that this threadblock put or stored at a peer has arrived, and its sources may be reused."""
        return self._append(Op.FLUSH, after, peer=self._peer(peer))

    def copy(self, source: Place, destination: Place, *, after: After = ()) -> StepHandle:
        """Copy within the rank."""
        return self._two_sided(Op.COPY, source, destination, after)

    def reduce(self, source: Place, destination: Place, *, after: After = ()) -> StepHandle:
        """``destination = destination + source`` within the rank."""
        return self._two_sided(Op.REDUCE, source, destination, after)

    def send(self, source: Place, *, after: After = ()) -> StepHandle:
        """Send a message to the threadblock's ``send`` peer, which must receive it."""
        return self._two_sided(Op.SEND, source, None, after)

    def recv(self, destination: Place, *, after: After = ()) -> StepHandle:
        """Receive a message from the threadblock's ``recv`` peer."""
        return self._two_sided(Op.RECV, None, destination, after)

    def recv_copy_send(self, destination: Place, *, after: After = ()) -> StepHandle:
        """Receive a message, keep it, and pass it on."""
        return self._two_sided(Op.RECV_COPY_SEND, None, destination, after)

    def recv_reduce_copy(self, source: Place, destination: Place, *, after: After = ()) -> StepHandle:
        """``destination = source + message``."""
        return self._two_sided(Op.RECV_REDUCE_COPY, source, destination, after)

    def recv_reduce_send(self, source: Place, *, after: After = ()) -> StepHandle:
        """Pass ``source + message`` on."""
        return self._two_sided(Op.RECV_REDUCE_SEND, source, None, after)

    def recv_reduce_copy_send(self, source: Place, destination: Place, *, after: After = ()) -> StepHandle:
        """``destination = source + message``, and pass it on."""
        return self._two_sided(Op.RECV_REDUCE_COPY_SEND, source, destination, after)

    def nop(self, *, after: After = ()) -> StepHandle:
        """Only wait for other steps."""
        return self._append(Op.NOP, after)

    def _own(self, place: Place) -> Place:
        if isinstance(place, Place) and place.rank != self.rank:
            raise at_caller(ProgramError, f"{place} must be a place of rank {self.rank}, whose threadblock this is")
        return place

    def _other(self, place: Place, why: str) -> None:
        if isinstance(place, Place) and place.rank == self.rank:
            raise at_caller(ProgramError, f"{place} is on the threadblock's own rank; {why}")

    def _peer(self, peer: int) -> int:
        if self.program.known_rank(peer) == self.rank:
            raise at_caller(ProgramError, f"rank {peer} cannot be its own peer", rank=self.rank)
        return peer

    def _one_sided(self, op: Op, sources: Sequence[Place], destinations: Sequence[Place], after: After) -> StepHandle:
        if not sources or not destinations:
            raise at_caller(ProgramError, f"{op.short} has at least one source and one destination")
        return self._append(op, after, tuple(sources), tuple(destinations))

    def _two_sided(self, op: Op, source: Place | None, destination: Place | None, after: After) -> StepHandle:
        for needed, peer, word in ((op.sends, self.send_peer, "send"), (op.receives, self.recv_peer, "recv")):
            if needed and peer is None:
                raise at_caller(ProgramError, f"{op.short} needs a threadblock that was begun with {word}=PEER")
        sources = () if source is None else (self._own(source),)
        destinations = () if destination is None else (self._own(destination),)
        return self._append(op, after, sources, destinations)

    def _append(
        self,
        op: Op,
        after: After,
        sources: tuple[Place, ...] = (),
        destinations: tuple[Place, ...] = (),
        peer: int | None = None,
    ) -> StepHandle:
        depends = self._depends(after)
        count = self.program.check_places(sources, destinations)
        self.rows.append(_Row(op, sources, destinations, count, peer, depends, *caller()))
        return StepHandle(self.program, self.rank, self.index, len(self.rows) - 1)

    def _depends(self, after: After) -> tuple[tuple[int, int], ...]:
        """The dependences that ``after`` adds to the order of the threadblock."""
        found = set()
        for handle in (after,) if isinstance(after, StepHandle) else after:
            mine = isinstance(handle, StepHandle) and handle.program is self.program and handle.rank == self.rank
            if not mine:
                raise at_caller(ProgramError, f"after= takes steps that rank {self.rank} of this program has written")
            if handle.threadblock != self.index:
                found.add((handle.threadblock, handle.index))
        return tuple(sorted(found))


@dataclass(frozen=True)
class _Row:
    """A step that was written, and the line that wrote it."""

    op: Op
    sources: tuple[Place, ...]
    destinations: tuple[Place, ...]
    count: int
    peer: int | None
    depends: tuple[tuple[int, int], ...]
    file: str
    line: int

    def append_to(self, builder: AlgorithmBuilder) -> None:
        """Append the step to the builder's last threadblock."""
        if self.op.one_sided:
            ends = ([place.slot for place in self.sources], [place.slot for place in self.destinations])
            builder.step(
                self.op, None, None, self.count, self.depends,
                sources=ends[0], destinations=ends[1], peer=self.peer,
            )  # fmt: skip
            return
        source, destination = (
            (places[0].buffer, places[0].index) if places else None for places in (self.sources, self.destinations)
        )
        builder.step(self.op, source, destination, self.count, self.depends)


def _check_apart(sources: Sequence[Place], destinations: Sequence[Place], count: int) -> None:
    """Refuse a destination given twice, and operands that overlap in part. O(operands log operands)."""
    written = {place.slot for place in destinations}
    if len(written) < len(destinations):
        raise at_caller(ProgramError, f"a destination is given twice: {', '.join(map(str, destinations[:4]))}")
    if count < 2:
        return
    slots = sorted(written.union(place.slot for place in sources))
    for a, b in pairwise(slots):
        if a[:2] == b[:2] and b[2] - a[2] < count and (a in written or b in written):
            name = f"{a[1].name.lower()} of rank {a[0]}"
            raise at_caller(
                ProgramError,
                f"[{a[2]}:{a[2] + count}] and [{b[2]}:{b[2] + count}] in {name} overlap in part, and one is written",
            )


def _origins(rows: list[_Row]) -> Origins:
    files = {file: number for number, file in enumerate(dict.fromkeys(row.file for row in rows))}
    return Origins(
        tuple(files),
        np.array([files[row.file] for row in rows], dtype=np.int64),
        np.array([row.line for row in rows], dtype=np.int64),
    )
