"""Crossing: which links between nodes a sketch leaves, and which items may take them.

The nodes of a hierarchy are numbered by digits: digit k of a node is the place of its unit of level k - 1 within its
group of level k. A link of level k joins nodes that differ in digit k only. An item that crosses each level once, out
of the unit where it begins, takes a level's links only where digit k is still that of its origin; so digits are put
right one by one, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from commlib.demand import Demand, Item
from commlib.topology import Topology
from synth.sketch import FULLY_CONNECTED, GpuMap, Level, Sketch
from synth.symmetry import Bools, Ints

CONN = "internode_sketch.internode_conn"
SENDERS = "internode_sketch.gpus_to_sender_rev_map"
STRATEGY = "internode_sketch.strategy"
MAX_RULES = 1 << 31
"""The most (item, link) pairs for which it is kept whether an item may take a link, a byte each."""


@dataclass(frozen=True, eq=False)
class Nodes:
    """Where each rank is: ``node[r]``, its number ``local[r]`` there, and ``rank[n, i]`` the other way round."""

    node: Ints
    local: Ints
    rank: Ints

    @staticmethod
    def of(topology: Topology, sketch: Sketch) -> Nodes:
        """The nodes of a topology, which must be as many as the sketch's, of equal size."""
        names, node = np.unique(np.array(topology.node_of, dtype=np.int64), return_inverse=True)
        if len(names) != sketch.nodes:
            message = f"the sketch is for {sketch.nodes} node(s), and {topology.name} has {len(names)}"
            raise sketch.fail("nnodes", message, nodes=len(names))
        sizes = np.bincount(node)
        if (sizes != sizes[0]).any():
            odd = int(np.flatnonzero(sizes != sizes[0])[0])
            message = f"node {odd} of {topology.name} has {sizes[odd]} ranks and node 0 has {sizes[0]}"
            raise sketch.fail("nnodes", message, node=odd)
        rank = np.argsort(node, kind="stable").reshape(len(names), -1)
        local = np.empty_like(node)
        local[rank] = np.arange(rank.shape[1])
        return Nodes(node, local, rank)

    @property
    def size(self) -> int:
        """Ranks per node."""
        return int(self.rank.shape[1])


@dataclass(frozen=True, eq=False)
class Crossing:
    """The levels of a sketch over the nodes of a topology; ``without`` are statements that are not heeded.

    ``without`` is for explanations: leaving a statement out leaves more links to more items.
    """

    sketch: Sketch
    topology: Topology
    nodes: Nodes
    without: frozenset[str] = field(default=frozenset())

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The hierarchy; a sketch without one has a single level of all nodes."""
        if self.sketch.hierarchy:
            return self.sketch.hierarchy
        internode = self.sketch.internode
        return (Level(self.sketch.nodes, "none" if internode is None else internode.strategy),)

    @cached_property
    def units(self) -> tuple[int, ...]:
        """The number of units in a group of each level."""
        groups = [1, *(level.group for level in self.levels)]
        return tuple(above // below for below, above in pairwise(groups))

    @cached_property
    def digits(self) -> Ints:
        """Shape (nodes, levels)."""
        left, columns = np.arange(self.sketch.nodes), []
        for units in self.units:
            columns.append(left % units)
            left = left // units
        return np.array(columns, dtype=np.int64).T

    def strategy_key(self, level: int) -> str:
        """The key that says how units of a level talk."""
        return f"hierarchy[{level}].strategy" if self.sketch.hierarchy else STRATEGY

    def strategy(self, level: int) -> str:
        """How units of a level talk; "none" where nothing is said or heeded."""
        return "none" if self.strategy_key(level) in self.without else self.levels[level].strategy

    def conn_key(self, level: int) -> str:
        """The key that says which GPUs of a level's nodes are linked."""
        own = self.sketch.hierarchy and self.levels[level].conn is not None
        return f"hierarchy[{level}].internode_conn" if own else CONN

    def conn(self, level: int) -> str | GpuMap | None:
        """Which GPUs of a level's nodes are linked; None: all that the topology links."""
        own, common = self.levels[level].conn, self.sketch.internode
        return own if own is not None else common.conn if common is not None else None

    def wanted(self, level: int) -> Bools:
        """Shape (locals, locals): the links between nodes that the sketch asks for, and that must be there."""
        size, conn, key = self.nodes.size, self.conn(level), self.conn_key(level)
        links = np.zeros((size, size), dtype=np.bool_)
        if isinstance(conn, str):
            if key not in self.without:
                links[:] = True if conn == FULLY_CONNECTED else np.eye(size, dtype=np.bool_)
            return links
        for gpu, others in (conn or {}).items():
            self._require_local(f'{key}["{gpu}"]', (gpu, *others))
            if f'{key}["{gpu}"]' not in self.without:
                links[gpu, list(others)] = True
        return links

    def permitted(self, level: int) -> Bools:
        """Shape (locals, locals): the links between nodes that the sketch leaves, where the topology has them."""
        conn, key, links = self.conn(level), self.conn_key(level), self.wanted(level)
        if conn is None or (isinstance(conn, str) and key in self.without):
            links[:] = True
        elif not isinstance(conn, str):
            for gpu in range(self.nodes.size):
                if (f'{key}["{gpu}"]' if gpu in conn else key) in self.without:
                    links[gpu] = True
        return links

    def _require_local(self, key: str, gpus: tuple[int, ...]) -> None:
        for gpu in gpus:
            if gpu >= self.nodes.size:
                message = f"there is no GPU {gpu}: a node of {self.topology.name} has {self.nodes.size}"
                raise self.sketch.fail(key, message, rank=gpu)

    def linked(self, level: int, source: Ints, target: Ints) -> Bools:
        """Whether units with these digits are neighbours at a level."""
        strategy, units = self.strategy(level), self.units[level]
        if strategy == "ring":
            step = (target - source) % units
            near: Bools = (step == 1) | (step == units - 1)
            return near
        if strategy == "recursive-doubling":
            differ = source ^ target
            one_bit: Bools = (differ & (differ - 1)) == 0
            return one_bit
        return np.ones(len(source), dtype=np.bool_)

    def level_of(self, source: Ints, target: Ints) -> Ints:
        """The level of each link between these ranks: -1 inside a node, -2 for one that the sketch leaves out."""
        ours, theirs = self.digits[self.nodes.node[source]], self.digits[self.nodes.node[target]]
        differ = ours != theirs
        count = differ.sum(axis=1)
        level = np.where(count == 0, -1, np.where(count == 1, differ.argmax(axis=1), -2))
        for k in range(len(self.levels)):
            here = np.flatnonzero(level == k)
            there = self.permitted(k)[self.nodes.local[source[here]], self.nodes.local[target[here]]]
            kept = there & self.linked(k, ours[here, k], theirs[here, k])
            level[here[~kept]] = -2
        return level

    def require_links(self) -> None:
        """Insist that the topology has every link that the sketch asks for.

        Raises:
            SketchError: it lacks one; names key and link.
        """
        present = np.zeros((self.topology.ranks, self.topology.ranks), dtype=np.bool_)
        if self.topology.links:
            present[tuple(np.array(list(self.topology.links)).T)] = True
        for level in range(len(self.levels)):
            wanted = self.wanted(level)
            for one, other in self._neighbours(level) if wanted.any() else ():
                ranks = np.ix_(self.nodes.rank[one], self.nodes.rank[other])
                missing = np.argwhere(wanted & ~present[ranks])
                if len(missing):
                    self._refuse(level, one, other, *missing[0].tolist())

    def _refuse(self, level: int, node: int, other: int, gpu: int, peer: int) -> None:
        source, target = int(self.nodes.rank[node, gpu]), int(self.nodes.rank[other, peer])
        key = self.conn_key(level)
        raise self.sketch.fail(
            key if isinstance(self.conn(level), str) else f'{key}["{gpu}"]',
            f"{self.topology.name} has no link {source} -> {target} (GPU {gpu} of node {node} to GPU {peer} of node "
            f"{other}); leave it out, or take a topology that links all GPUs of different nodes",
            link=(source, target),
        )

    def _neighbours(self, level: int) -> list[tuple[int, int]]:
        """The ordered pairs of nodes that a level links."""
        stride, units, found = int(np.prod(self.units[:level], dtype=np.int64)), self.units[level], []
        for node in range(self.sketch.nodes):
            ours = int(self.digits[node, level])
            theirs = np.array([digit for digit in range(units) if digit != ours], dtype=np.int64)
            kept = theirs[self.linked(level, np.full(len(theirs), ours), theirs)]
            found += [(node, node + (digit - ours) * stride) for digit in kept.tolist()]
        return found

    def statements(self) -> list[str]:
        """The keys of all that the sketch says about links between nodes; each can be left out (``without``)."""
        found = [self.strategy_key(k) for k in range(len(self.levels)) if self.levels[k].strategy != "none"]
        for k in range(len(self.levels)):
            found += _map_statements(self.conn_key(k), self.conn(k))
        senders = None if self.sketch.internode is None else self.sketch.internode.senders
        return list(dict.fromkeys(found + _map_statements(SENDERS, senders)))

    @cached_property
    def sends(self) -> Bools | None:
        """Shape (locals, locals): whether items of a GPU may leave a node through another; None: through any."""
        internode = self.sketch.internode
        if internode is None or internode.senders is None:
            return None
        return self._sends(internode.senders)

    def _sends(self, senders: GpuMap) -> Bools:
        free = SENDERS in self.without
        sends = np.full((self.nodes.size, self.nodes.size), free, dtype=np.bool_)
        mapped = sorted({gpu for gpus in senders.values() for gpu in gpus})
        sends[[gpu for gpu in mapped if gpu < self.nodes.size]] = False
        for sender, gpus in senders.items():
            key = f'{SENDERS}["{sender}"]'
            self._require_local(key, (sender, *gpus))
            if key in self.without:
                sends[list(gpus)] = True
            else:
                sends[list(gpus), sender] = True
        return sends


def _map_statements(key: str, value: str | GpuMap | None) -> list[str]:
    if value is None or isinstance(value, str):
        return [] if value is None else [key]
    return [key, *(f'{key}["{gpu}"]' for gpu in value)]


def allowed(crossing: Crossing, demand: Demand, source: Ints, target: Ints) -> Bools | None:
    """Shape (items, links): which items may take which of the links that a sketch leaves; None: all.

    Links are those of the posed problem: for a demand that reduces, the reversed ones, and the GPU that sends is the
    one at their end. Complexity: O(items x links) in space, with a small constant.

    Raises:
        SketchError: that would be more than ``MAX_RULES``.
    """
    if crossing.sketch.nodes == 1 or not len(source):
        return None
    rule = _ItemRule(crossing, source, target, target if demand.reduces else source)
    if not rule.binds:
        return None
    if len(demand.items) * len(source) > MAX_RULES:
        message = f"{len(demand.items)} items on {len(source)} links are too many for a sketch's rules"
        raise crossing.sketch.fail("internode_sketch", f"{message}; solve without the sketch, or with fewer ranks")
    rows: dict[object, Bools] = {}
    table = np.empty((len(demand.items), len(source)), dtype=np.bool_)
    for number, item in enumerate(demand.items):
        key = rule.key(item)  # many items have equal rows
        if key not in rows:
            rows[key] = rule.row(item)
        table[number] = rows[key]
    return None if table.all() else table


def allowed_row(crossing: Crossing, demand: Demand, item: Item, source: Ints, target: Ints) -> Bools:
    """Shape (links,): the row of ``allowed`` for one item."""
    return _ItemRule(crossing, source, target, target if demand.reduces else source).row(item)


@dataclass(frozen=True, eq=False)
class _ItemRule:
    """What decides whether an item may take a link; ``sender`` is the rank that sends in fact."""

    crossing: Crossing
    source: Ints
    target: Ints
    sender: Ints

    @property
    def binds(self) -> bool:
        levels = range(len(self.crossing.levels))
        return self.crossing.sends is not None or any(self.crossing.strategy(k) != "none" for k in levels)

    @cached_property
    def level(self) -> Ints:
        node, digits = self.crossing.nodes.node, self.crossing.digits
        differ = digits[node[self.source]] != digits[node[self.target]]
        level: Ints = np.where(differ.any(axis=1), differ.argmax(axis=1), -1)
        return level

    def key(self, item: Item) -> object:
        """Items with the same key have the same row."""
        wanted = item.destinations
        everywhere = len(wanted) == len(self.crossing.nodes.node) - 1
        return item.origin, None if everywhere else frozenset(self.crossing.nodes.node[list(wanted)].tolist())

    def row(self, item: Item) -> Bools:
        crossing, node = self.crossing, self.crossing.nodes.node
        wanted = crossing.digits[node[list(item.destinations)]]
        origin = crossing.digits[node[item.origin]]
        row = np.ones(len(self.source), dtype=np.bool_)
        for k in range(len(crossing.levels)):
            here = np.flatnonzero(self.level == k)
            ours = crossing.digits[node[self.source[here]], k]
            theirs = crossing.digits[node[self.target[here]], k]
            strategy = crossing.strategy(k)
            if strategy in ("relay", "direct"):
                row[here] &= (ours == origin[k]) & np.isin(theirs, wanted[:, k])
            elif strategy != "none":
                row[here] &= theirs != origin[k]
            if crossing.sends is not None and strategy != "direct":
                local = crossing.nodes.local
                row[here] &= crossing.sends[local[item.origin], local[self.sender[here]]]
        return row
