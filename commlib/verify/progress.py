"""Progress: runs the threadblocks to a fixed point on bounded FIFOs, which shows every deadlock.

A unit receives one message (which frees its slot of the FIFO), then sends one when there is a free slot. A runtime
that takes the message out of its FIFO only when it has room to send on needs one slot more than this says.

Nothing a threadblock waits for depends on time or on other threadblocks' choices: every FIFO has one sender and one
receiver, and a wait that is over stays over. So all maximal runs perform the same units (confluence), and one run,
in any order, decides for all of them; a larger depth only enables more, so freedom from deadlock is monotone in the
depth. It also follows that the repetition of the program for each tile of a large message adds nothing: a run that
performs all units leaves all FIFOs empty, so tile after tile is a possible run that completes, hence all runs
complete.

Cost O(units + dependences) per run; depth 1 is tried first, and most algorithms need no other run.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from commlib.ir.algorithm import NOTHING, Op
from commlib.verify.report import Finding, FindingKind, at_step, describe
from commlib.verify.units import Units

UNBOUNDED = 1 << 62


@dataclass(frozen=True, eq=False)
class Run:
    """What one run performed: the units in order (a topological order of happens-before), and each threadblock's
    next unit; ``holding[b]`` when that unit has received and waits to send."""

    order: list[int]
    next_unit: list[int]
    holding: bytearray
    complete: bool


class Simulator:
    """Runs units at a FIFO depth."""

    def __init__(self, units: Units) -> None:
        self._units = units
        a, links = units.algorithm, units.links
        self._bounds = units.first[a.tb_start].tolist()
        self._block = units.threadblock.tolist()
        self._send = units.send_link.tolist()
        self._recv = units.recv_link.tolist()
        self._sender = a.step_threadblock[links.sends[links.send_start[:-1]]].tolist()
        self._receiver = a.step_threadblock[links.recvs[links.recv_start[:-1]]].tolist()

    def run(self, depth: int) -> Run:
        """Run until nothing can move, every FIFO holding at most ``depth`` messages."""
        return _Machine(self, depth).run()

    @cached_property
    def longest_fifo(self) -> int:
        """The largest number of messages on one connection: a deeper FIFO is never full."""
        first, links = self._units.first, self._units.links
        sizes = (first[links.sends + 1] - first[links.sends]).cumsum() if len(links) else [0]
        ends = [0] + [int(sizes[end - 1]) for end in links.send_start[1:].tolist()]
        return max((after - before for before, after in pairwise(ends)), default=0)

    def smallest_depth(self, fails: int) -> int | None:
        """The smallest depth above ``fails`` at which all units run; None when no depth is enough.

        O(log depth) runs, by doubling and bisection.
        """
        if not self.run(UNBOUNDED).complete:
            return None
        works = 2 * fails
        while works < self.longest_fifo and not self.run(works).complete:
            fails, works = works, 2 * works
        while works - fails > 1:
            middle = (fails + works) // 2
            if self.run(middle).complete:
                works = middle
            else:
                fails = middle
        return works

    def obstacle(self, run: Run, block: int) -> tuple[int, str, int]:
        """What a stuck threadblock waits for: (threadblock row that could end it, in words, connection or NOTHING)."""
        unit = run.next_unit[block]
        if not run.holding[block]:
            for last in self._units.waits.get(unit, ()):
                if run.next_unit[self._block[last]] <= last:
                    return self._block[last], self._event(unit, last), NOTHING
        link = self._recv[unit]
        links = self._units.links
        if link != NOTHING and not run.holding[block]:
            words = f"a message from rank {links.sender[link]} on channel {links.channel[link]} (its FIFO is empty)"
            return self._sender[link], words, link
        link = self._send[unit]
        words = f"room to send to rank {links.receiver[link]} on channel {links.channel[link]} (its FIFO is full)"
        return self._receiver[link], words, link

    def _event(self, unit: int, last: int) -> str:
        """What a unit waits for when it waits for the end of another: a step it depends on, or a signal."""
        a = self._units.algorithm
        rank, threadblock, step = a.place(int(self._units.step[last]))
        if a.step_rank[self._units.step[unit]] == rank:
            return f"threadblock {threadblock} step {step}, on which it depends"
        channel = a.tb_channel[self._block[last]]
        return f"the signal of rank {rank} on channel {channel} (its threadblock {threadblock} step {step})"


class _Machine:
    """The state of one run: an event-driven worklist of threadblocks that may be able to move."""

    def __init__(self, simulator: Simulator, depth: int) -> None:
        self._s = simulator
        self._depth = depth
        blocks = len(simulator._bounds) - 1
        self._next = simulator._bounds[:-1]
        self._holding = bytearray(blocks)
        self._waited = [0] * blocks
        self._queued = bytearray(b"\1") * blocks
        self._ready = deque(range(blocks))
        self._in_flight = [0] * len(simulator._sender)
        self._waiters: dict[int, list[int]] = {}
        self._order: list[int] = []

    def run(self) -> Run:
        """Move threadblocks until none can."""
        ready, queued = self._ready, self._queued
        while ready:
            block = ready.popleft()
            queued[block] = 0
            self._advance(block)
        complete = len(self._order) == len(self._s._block)
        return Run(self._order, self._next, self._holding, complete)

    def _advance(self, block: int) -> None:
        """Run a threadblock until it must wait or ends."""
        send, recv, waits, depth = self._s._send, self._s._recv, self._s._units.waits, self._depth
        in_flight, waiters, holding, following = self._in_flight, self._waiters, self._holding, self._next
        unit, end, begin = following[block], self._s._bounds[block + 1], following[block]
        while unit < end:
            needed = waits.get(unit)
            if needed is not None and not self._dependences_done(block, needed):
                break
            link = recv[unit]
            if link >= 0 and not holding[block]:
                if not in_flight[link]:
                    break
                if in_flight[link] == depth:
                    self._wake(self._s._sender[link])
                in_flight[link] -= 1
            link = send[unit]
            if link >= 0:
                if in_flight[link] >= depth:
                    holding[block] = True
                    break
                if not in_flight[link]:
                    self._wake(self._s._receiver[link])
                in_flight[link] += 1
                holding[block] = False
            if unit in waiters:
                self._wake_all(waiters.pop(unit))
            if needed is not None:
                self._waited[block] = 0
            unit += 1
            following[block] = unit
        self._order.extend(range(begin, unit))

    def _wake(self, block: int) -> None:
        if not self._queued[block]:
            self._queued[block] = 1
            self._ready.append(block)

    def _wake_all(self, blocks: list[int]) -> None:
        for block in blocks:
            self._wake(block)

    def _dependences_done(self, block: int, needed: list[int]) -> bool:
        """Whether all dependences are done; if not, the threadblock is woken when the first missing one is.

        ``_waited`` remembers how many were found done, so that each is looked at O(1) times.
        """
        following, block_of = self._next, self._s._block
        for done in range(self._waited[block], len(needed)):
            last = needed[done]
            if following[block_of[last]] <= last:
                self._waited[block] = done
                self._waiters.setdefault(last, []).append(block)
                return False
        self._waited[block] = len(needed)
        return True


def deadlocks(simulator: Simulator, units: Units, run: Run, depth: int) -> list[Finding]:
    """The cycles of threadblocks that wait for one another at the end of an incomplete run, one finding each."""
    a = units.algorithm
    ends = units.first[a.tb_start[1:]].tolist()
    stuck = [block for block, end in enumerate(ends) if run.next_unit[block] < end]
    seen: set[int] = set()
    found: list[Finding] = []
    for block in stuck:
        trail: dict[int, None] = {}
        while block not in seen:
            seen.add(block)
            trail[block] = None
            block = simulator.obstacle(run, block)[0]
        if block in trail:
            path = list(trail)
            found.append(_cycle(simulator, units, run, path[path.index(block) :], depth))
    return found


def _cycle(simulator: Simulator, units: Units, run: Run, cycle: list[int], depth: int) -> Finding:
    a = units.algorithm
    numbers = [int(units.step[run.next_unit[block]]) for block in cycle]
    waits = [simulator.obstacle(run, block) for block in cycle]
    lines = [f"{describe(a, number)} waits for {wait[1]}" for number, wait in zip(numbers, waits, strict=True)]
    shown = lines if len(lines) <= 12 else [*lines[:10], f"... {len(lines) - 11} more ...", lines[-1]]
    limit = "at any FIFO depth" if depth == UNBOUNDED else f"at FIFO depth {depth}"
    who = f"{len(cycle)} threadblocks wait for one another" if len(cycle) > 1 else "1 threadblock waits for itself"
    message = f"{limit}, {who}:\n" + "\n".join(shown)
    links, link = units.links, waits[0][2]
    more: dict[str, object] = {}
    if link != NOTHING:
        sender, receiver = int(links.sender[link]), int(links.receiver[link])
        more["peer"] = sender if a.place(numbers[0])[0] == receiver else receiver
        more["channel"] = int(links.channel[link])
    elif a.op[numbers[0]] == Op.WAIT:
        more["peer"] = int(a.operand_rank[a.operand_start[numbers[0]]])
        more["channel"] = int(a.tb_channel[cycle[0]])
    return at_step(a, FindingKind.DEADLOCK, message, numbers[0], others=tuple(map(a.place, numbers[1:])), **more)
