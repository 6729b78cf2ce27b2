"""Explain: why a sketch leaves no solution: a smallest set of its statements that cannot all hold.

Statements are what can be taken out of a sketch one by one, each with its key. The set is found by deletion: every
statement in turn is left out for good where the contradiction stays without it (a minimal unsatisfiable subset, by
as many tests as there are statements). A test is a search over the links that the statements leave to one item; no
solver is asked. Symmetries need no part in it: where a group keeps what is allowed, images of a route are routes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from commlib.collectives import Collective
from commlib.demand import Demand, Item, demand
from commlib.topology import Topology, cost_table
from synth.crossing import SENDERS, STRATEGY, Crossing, Nodes, allowed_row
from synth.errors import SynthesisError
from synth.logical import logical, selected
from synth.problem import Problem
from synth.sketch import Sketch
from synth.symmetry import Actions, Bools, Ints, Symmetry

_EFFORT = 1 << 29
"""Steps (statements x items x links) that the explanation of a broken symmetry may take."""


@dataclass(frozen=True)
class Explanation:
    """Items of rank ``origin`` cannot reach ``rank``; they get no farther than the ranks ``reached``.

    ``statements`` are the keys of the sketch that clash, none of which can be left out of this list; it is empty
    where the topology itself has no way. For a demand that reduces, links are read backwards: sums for ``origin``
    cannot come from ``rank``.
    """

    origin: int
    rank: int
    reached: tuple[int, ...]
    statements: tuple[str, ...]
    text: str


def explain(topology: Topology, sketch: Sketch, collective: Collective) -> Explanation | None:
    """Why a sketch leaves no solution; None where it leaves one. O(statements x links) after the first search.

    Raises:
        SketchError: the sketch does not fit the topology at all.
        SpecError: the collective has no demand.
    """
    wanted = demand(collective, 1.0)
    found = logical(topology, sketch, wanted)
    problem = Problem(
        found.topology, wanted, cost_table(found.topology, wanted.sizes), Symmetry.trivial(topology.ranks), found.rules
    )
    gap = unreached(problem)
    return None if gap is None else explain_gap(topology, sketch, wanted, *gap)


def unreached(problem: Problem) -> tuple[int, int] | None:
    """The first (item, destination) that no route over the item's links joins; None where all is well.

    O(representatives x links x hops) at worst; O(links x hops) for a connected topology without rules.
    """
    costs, rules = problem.costs, problem.rules
    everything = np.ones(costs.links, dtype=np.bool_)
    if rules.allowed is None and _strongly_connected(problem):
        return None
    known: dict[tuple[int, bytes], Bools] = {}
    for number in problem.representatives:
        item = problem.demand.items[number]
        usable = everything if rules.allowed is None else rules.allowed[number]
        key = item.origin, np.packbits(usable).tobytes()
        if key not in known:
            known[key] = reach(costs.ranks, item.origin, costs.source[usable], costs.target[usable])
        wanted = np.array(item.destinations)
        missing = wanted[~known[key][wanted]]
        if len(missing):
            return number, int(missing[0])
    return None


def reach(ranks: int, start: int, source: Ints, target: Ints) -> Bools:
    """Shape (ranks,): what can be reached from a rank over links. O(links x hops)."""
    found = np.zeros(ranks, dtype=np.bool_)
    found[start] = True
    count = 0
    while count < (count := int(found.sum())):
        found[target[found[source]]] = True
    return found


def _strongly_connected(problem: Problem) -> bool:
    costs = problem.costs
    ways = ((costs.source, costs.target), (costs.target, costs.source))
    return all(reach(costs.ranks, 0, source, target).all() for source, target in ways)


def require_reachable(problem: Problem, topology: Topology, sketch: Sketch | None = None) -> None:
    """Insist that every destination can be reached; ``topology`` is the whole one, as it is given to ``pose``.

    Raises:
        SynthesisError: names the rank, and the statements of the sketch that clash.
    """
    gap = unreached(problem)
    if gap is None:
        return
    found = explain_gap(topology, sketch, problem.demand, *gap)
    statements = found.statements
    raise SynthesisError(found.text, rank=found.rank, origin=found.origin, statements=statements, reached=found.reached)


def explain_gap(topology: Topology, sketch: Sketch | None, wanted: Demand, number: int, rank: int) -> Explanation:
    """The explanation for one item and destination that the sketch keeps apart."""
    item = wanted.items[number]
    if sketch is None:
        posed = topology.reversed() if wanted.reduces else topology
        ends = np.array(sorted(posed.links), dtype=np.int64).reshape(-1, 2)
        reached = reach(topology.ranks, item.origin, ends[:, 0], ends[:, 1])
        return _explanation(topology, None, wanted, item, rank, reached, ())
    reached = _reached(topology, sketch, wanted, item, frozenset())
    every = Crossing(sketch, topology, Nodes.of(topology, sketch)).statements()
    clash = smallest(every, lambda without: not _reached(topology, sketch, wanted, item, without)[rank])
    return _explanation(topology, sketch, wanted, item, rank, reached, tuple(clash))


def smallest(statements: list[str], fails: Callable[[frozenset[str]], bool]) -> list[str]:
    """A minimal list of statements with which ``fails(those left out)`` still holds; it holds for all of them."""
    without: frozenset[str] = frozenset()
    for key in statements:
        if fails(without | {key}):
            without |= {key}
    return [key for key in statements if key not in without]


def _reached(topology: Topology, sketch: Sketch, wanted: Demand, item: Item, without: frozenset[str]) -> Bools:
    crossing = Crossing(sketch, topology, Nodes.of(topology, sketch), without)
    ends = np.array(sorted(selected(crossing).links), dtype=np.int64).reshape(-1, 2)
    source, target = (ends[:, 1], ends[:, 0]) if wanted.reduces else (ends[:, 0], ends[:, 1])
    usable = allowed_row(crossing, wanted, item, source, target)
    return reach(topology.ranks, item.origin, source[usable], target[usable])


def _explanation(
    topology: Topology,
    sketch: Sketch | None,
    wanted: Demand,
    item: Item,
    rank: int,
    reached: Bools,
    statements: tuple[str, ...],
) -> Explanation:
    inside = tuple(np.flatnonzero(reached).tolist())
    where = topology.name if sketch is None else sketch.file
    if wanted.reduces:
        text = f"{where}: sums for rank {item.origin} cannot come from rank {rank}, only from ranks {_some(inside)}"
    else:
        text = f"{where}: rank {rank} cannot be reached from rank {item.origin}, only ranks {_some(inside)}"
    if sketch is None or not statements:
        return Explanation(item.origin, rank, inside, (), f"{text}: {topology.name} has no links that lead there")
    meanings = "; ".join(f"{key} ({_meaning(sketch, key)})" for key in statements)
    return Explanation(item.origin, rank, inside, statements, f"{text}; these statements clash: {meanings}")


def _some(ranks: tuple[int, ...]) -> str:
    return ", ".join(map(str, ranks[:16])) + (", ..." if len(ranks) > 16 else "")


def _meaning(sketch: Sketch, key: str) -> str:
    """What a statement says, in words."""
    if key.endswith("strategy"):
        levels = {f"hierarchy[{k}].strategy": level.strategy for k, level in enumerate(sketch.hierarchy)}
        strategy = "relay" if key == STRATEGY else levels[key]
        once = strategy in ("relay", "direct")
        return f"{strategy}: items cross once, out of their own node" if once else f"{strategy}: who is linked to whom"
    gpu = key.partition('["')[2].rstrip('"]')
    if key.startswith(SENDERS):
        return f"items of its GPUs leave through GPU {gpu}" if gpu else "items of other GPUs have no sender"
    conns = [level.conn for level in sketch.hierarchy] + [sketch.internode.conn if sketch.internode else None]
    if not gpu and all(conn is None or isinstance(conn, str) for conn in conns):
        return ", ".join(dict.fromkeys(conn for conn in conns if isinstance(conn, str)))
    return f"GPU {gpu} sends to these GPUs of other nodes only" if gpu else "no other GPU sends to other nodes"


def require_kept(actions: Actions, topology: Topology, sketch: Sketch, generator: tuple[str, Ints]) -> None:
    """Insist that a symmetry of a sketch maps what the sketch leaves to itself.

    Raises:
        SketchError: names the first link that has no image, and the statements that clash with the symmetry.
    """
    key, image = generator
    broken = _broken(actions, image)
    if broken is None:
        return
    message, link = broken
    clash = _clash_with(image, topology, sketch, actions.demand, len(actions.demand.items) * actions.costs.links)
    others = f"; it clashes with {', '.join(clash)}" if clash else ""
    raise sketch.fail(key, message + others, link=link, statements=(key, *clash))


def _clash_with(image: Ints, topology: Topology, sketch: Sketch, wanted: Demand, effort: int) -> list[str]:
    """The statements without each of which the symmetry would hold; none where it never would."""
    every = Crossing(sketch, topology, Nodes.of(topology, sketch)).statements()

    def fails(without: frozenset[str]) -> bool:
        found = logical(topology, sketch, wanted, without, strict=False)
        costs = cost_table(found.topology, wanted.sizes)
        return _broken(Actions(costs, wanted, found.rules.allowed), image) is not None

    if effort * len(every) > _EFFORT or fails(frozenset(every)):
        return []
    return smallest(every, fails)


def _broken(actions: Actions, image: Ints) -> tuple[str, tuple[int, int] | None] | None:
    """What keeps a permutation from being a symmetry (the collective apart), and the link where it shows."""
    costs, links = actions.costs, actions.links(image)
    same = (links >= 0) & (costs.latency[links] == costs.latency).all(axis=1)
    if not same.all():
        place = int(np.flatnonzero(~same)[0])
        link, other = _ends(actions, place), tuple(image[list(_ends(actions, place))].tolist())
        why = "there is no such link" if links[place] < 0 else "costs differ"
        return f"link {link[0]} -> {link[1]} would become {other[0]} -> {other[1]}, and {why}", link
    if actions.resources(image) is None:
        return "links that share a port or NIC would become links that do not", None
    to, allowed = actions.items(image), actions.allowed
    if to is None or allowed is None:
        return None
    for item, row in enumerate(allowed):
        differ = np.flatnonzero(allowed[to[item]][links] != row)
        if len(differ):
            link, origin = _ends(actions, int(differ[0])), actions.demand.items[item].origin
            may, image_may = ("may", "may not") if row[differ[0]] else ("may not", "may")
            return f"items of rank {origin} {may} take link {link[0]} -> {link[1]}, and their images {image_may}", link
    return None


def _ends(actions: Actions, link: int) -> tuple[int, int]:
    return int(actions.costs.source[link]), int(actions.costs.target[link])
