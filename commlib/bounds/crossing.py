"""What must cross into a group of ranks: the counting bound behind ingress, egress, cut and head/tail.

n items must enter a group: each begins outside it and is wanted inside. Take the schedule without its useless
transfers, so that every transfer of an item that enters the group serves a destination inside. Every link into the
group takes some resource of a *cover*; a resource serves one transfer at a time, so the transfers that enter through
it start at least p apart (its smallest busy time of those links). Let head be the least time at which an item can
stand before the resource's links, and finish the least time from the start of a transfer until the item is where it
has to go. A resource then *serves* at most floor((T - finish - head) / p) + 1 entries by time T. Two counts follow.

- Every item enters, and its last entry on the way to its farthest destination leads there by links inside:
  entries(T) >= n, with finish up to that destination. (It may have been inside before, so heads are distances by any
  links.)
- An item that enters once comes to all its destinations from that entry, by links inside the group (leaving it would
  mean a second entry); an item that enters twice takes two entries. With *full* entries counted to all destinations
  and *any* counted to the entry's end: any(T) + full(T) >= 2 n.

Both counts hold for every subset of the items, so subsets of late heads and of long tails are tried as well (that is
Jackson's bound, for several machines), and with several message sizes the work is summed instead of the number.
For demands that reduce, time runs backwards and resources are busy at a transfer's end: both readings are counted,
and the weaker one is the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from commlib.bounds.bound import Json, microseconds, rank_list
from commlib.bounds.distances import FAR


@dataclass(frozen=True)
class Machine:
    """A resource of the cover: entries through it start ``ticks`` apart, the first at ``head``.

    ``finish`` is the time from the start of an entry until the item is at the destination that is counted, ``full``
    at all of them, ``least`` at the rank where it enters.
    """

    name: str
    ticks: int
    head: int
    finish: int
    full: int
    least: int

    def entries(self, time: int, finish: int) -> int:
        """How many entries can start and still have ``finish`` ticks to go by ``time``; -1: without limit."""
        room = time - finish - self.head
        if room < 0:
            return 0
        return room // self.ticks + 1 if self.ticks else -1


@dataclass(frozen=True)
class CrossingCertificate:
    """``items`` items must enter ``ranks`` (or leave them) through ``machines``; ``twice``: by the second count."""

    ranks: tuple[int, ...]
    enters: bool
    items: int
    machines: tuple[Machine, ...]
    twice: bool
    ticks: int
    tick: float

    def text(self) -> str:
        """What must enter or leave which ranks, through what, and what that takes."""
        items = f"{self.items} item{'s' * (self.items != 1)}"
        what = f"{items} must {'enter' if self.enters else 'leave'} rank{'s' * (len(self.ranks) > 1)} "
        return f"{what}{rank_list(self.ranks)} through {self._through()}: {microseconds(self.ticks, self.tick)}"

    def _through(self) -> str:
        shown = [self._machine(machine) for machine in self.machines[:4]]
        more = [f"{len(self.machines) - 4} more like these"] * (len(self.machines) > 4)
        return ", ".join(shown + more)

    def _machine(self, machine: Machine) -> str:
        def time(ticks: int) -> str:
            return microseconds(ticks, self.tick)

        after = (machine.full if self.twice else machine.finish) - machine.ticks
        if after >= FAR // 2:
            return f"{machine.name} ({time(machine.ticks)} each, for second entries)"
        parts = [f"{time(machine.ticks)} each"]
        parts += [f"from {time(machine.head)} on"] * (machine.head > 0)
        parts += [f"{time(after)} after the last"] * (after > 0)
        return f"{machine.name} ({', '.join(parts)})"

    def as_json(self) -> Json:
        """The ranks, the number of items, the resources and their times in ticks."""
        machines = [
            {"resource": m.name, "ticks": m.ticks, "head": m.head, "finish": m.full if self.twice else m.finish}
            for m in self.machines
        ]
        return {
            "ranks": list(self.ranks),
            "direction": "in" if self.enters else "out",
            "items": self.items,
            "resources": machines,
            "twice": self.twice,
            "ticks": self.ticks,
            "tick": self.tick,
        }


@dataclass(frozen=True)
class Load:
    """Work of several sizes: what each machine moves per tick, from when on, and how much there is to move."""

    rates: tuple[Fraction, ...] = field(repr=False)
    offsets: tuple[int, ...] = field(repr=False)
    amount: Fraction = Fraction(0)

    def least_time(self) -> int:
        """The smallest whole time T with sum of rate x max(0, T - offset) >= amount."""
        order = sorted(range(len(self.rates)), key=lambda place: (self.offsets[place], place))
        rate, moved = Fraction(0), Fraction(0)
        for place, nearer in enumerate(order):
            rate += self.rates[nearer]
            moved += self.rates[nearer] * self.offsets[nearer]
            if not rate:
                continue
            time = (self.amount + moved) / rate
            if place + 1 == len(order) or time <= self.offsets[order[place + 1]]:
                return -(-time.numerator // time.denominator)
        return 0


def least_time(machines: Sequence[Machine], items: int, twice: bool, beyond: int) -> int:
    """The smallest T at which the machines can serve that many items, or ``beyond`` if that is no larger.

    Complexity: O(machines x log T).
    """

    def enough(time: int) -> bool:
        if not twice:
            return _count(machines, time, lambda machine: machine.finish, items) >= items
        wanted = 2 * items
        once = _count(machines, time, lambda machine: machine.full, wanted)
        return once + _count(machines, time, lambda machine: machine.least, wanted) >= wanted

    if not machines or enough(beyond):
        return beyond
    step = 1
    while not enough(beyond + step):
        step *= 2
    low, high = beyond + step // 2, beyond + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _count(machines: Sequence[Machine], time: int, finish: Callable[[Machine], int], limit: int) -> int:
    total = 0
    for machine in machines:
        entries = machine.entries(time, finish(machine))
        total += limit if entries < 0 else entries
        if total >= limit:
            return limit
    return total
