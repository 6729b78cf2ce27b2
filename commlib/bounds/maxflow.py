"""Maximum flow and minimum cut on a small integer network: Dinic's algorithm (1970) over flat lists.

Complexity: O(nodes^2 x arcs) at worst; in practice a few dozen rounds, each a breadth-first search and a walk over the
arcs. That does for tens of thousands of arcs in plain Python.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Network:
    """Arcs in pairs: arc a and its reverse a ^ 1. Capacities are whole numbers."""

    nodes: int
    head: list[int] = field(default_factory=list, repr=False)
    room: list[int] = field(default_factory=list, repr=False)
    out: list[list[int]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.out = [[] for _ in range(self.nodes)]

    def arc(self, tail: int, head: int, capacity: int) -> int:
        """Add an arc; its number."""
        number = len(self.head)
        self.head += (head, tail)
        self.room += (capacity, 0)
        self.out[tail].append(number)
        self.out[head].append(number + 1)
        return number

    def max_flow(self, source: int, sink: int) -> int:
        """The value of a maximum flow; ``room`` is left as the residual capacities."""
        total = 0
        while (level := self._levels(sink))[source] >= 0:
            total += self._blocking(source, sink, level)
        return total

    def reachable(self, source: int) -> list[bool]:
        """Which nodes the residual network reaches: the source's side of a minimum cut, after ``max_flow``."""
        seen = [False] * self.nodes
        seen[source] = True
        stack = [source]
        while stack:
            for arc in self.out[stack.pop()]:
                if self.room[arc] and not seen[self.head[arc]]:
                    seen[self.head[arc]] = True
                    stack.append(self.head[arc])
        return seen

    def _levels(self, sink: int) -> list[int]:
        """Arcs to the sink on a shortest residual way, -1 where there is none."""
        level = [-1] * self.nodes
        level[sink] = 0
        queue = [sink]
        for node in queue:
            further = level[node] + 1
            for arc in self.out[node]:
                before = self.head[arc]
                if level[before] < 0 and self.room[arc ^ 1]:
                    level[before] = further
                    queue.append(before)
        return level

    def _blocking(self, source: int, sink: int, level: list[int]) -> int:
        """Push along shortest ways until each of them has a full arc; what was pushed."""
        head, room, out = self.head, self.room, self.out
        place = [0] * self.nodes
        way: list[int] = []
        node, total = source, 0
        while True:
            if node == sink:
                total += self._push(way)
                full = next(k for k, arc in enumerate(way) if not room[arc])
                node = head[way[full] ^ 1]
                del way[full:]
            arcs, further = out[node], level[node] - 1
            while place[node] < len(arcs):
                arc = arcs[place[node]]
                if room[arc] and level[head[arc]] == further:
                    break
                place[node] += 1
            else:
                if not way:
                    return total
                node = head[way.pop() ^ 1]
                place[node] += 1
                continue
            way.append(arc)
            node = head[arc]

    def _push(self, way: list[int]) -> int:
        amount = min(self.room[arc] for arc in way)
        for arc in way:
            self.room[arc] -= amount
            self.room[arc ^ 1] += amount
        return amount
