"""TACCL's routing as a mixed integer program (NSDI 2023, section 5.1), on representatives and slots.

For each representative item and each link that it may cross there is a binary ``is_sent``; for an item with many
destinations there is a continuous arrival at each rank; and there is the time. A destination has exactly one link in,
a relay at most one, and only if it passes the item on. The time is at least every arrival and the load of every slot.

What differs from the paper, and why: variables exist for one item of each orbit (symmetry as equalities is slower by
two orders of magnitude); links are pruned by slack in weighted distance, not to the hop-shortest paths; each big-M is
the least that is right for its item and link; an arrival is at least the distance over the link chosen (linear, so
that it binds in the relaxation); a slot's load stands between the least head and tail of what may take it. An item
with one destination needs no arrivals: the latencies along its path add up. Sender's own items count as taken first
on the links where the sketch says so. The preferences of the sketch are weighed after time, never against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from synth.joint import Window, windows
from synth.problem import Problem
from synth.solver import Model

PREFERENCE = 0.01
"""TACCL's weight of a distinct link in a switch, or of a send on the most or least used link."""
_LARGEST = 10_000
"""Times beyond this many ticks are scaled down, for the sake of the solver's tolerances."""
Weight = Callable[[int, int], float]


@dataclass
class RoutingModel:
    """The program for routings that take ``lower`` to ``horizon`` ticks.

    ``sent[item, link]`` are the binaries, ``arrival[item, rank]`` the arrivals, ``end`` the time, in ``unit`` ticks.
    """

    problem: Problem
    lower: int
    horizon: int
    unit: float
    model: Model = field(default_factory=Model)
    windows: dict[int, Window] = field(default_factory=dict)
    sent: dict[tuple[int, int], int] = field(default_factory=dict)
    arrival: dict[tuple[int, int], int] = field(default_factory=dict)
    end: int = 0

    def chosen(self, values: Sequence[float]) -> dict[int, list[int]]:
        """The links of each item in a solver's answer."""
        links: dict[int, list[int]] = {item: [] for item in self.windows}
        for (item, link), variable in self.sent.items():
            if values[variable] > 0.5:
                links[item].append(link)
        return links


def routing_model(
    problem: Problem, lower: int, horizon: int, goal: str = "time", weight: Weight | None = None
) -> RoutingModel | None:
    """The program; None when some destination is farther than ``horizon``.

    ``goal`` is what is minimised: "time", the sketch's "preference", or "weight" of the links chosen (per item and
    link). O(representatives x links) variables and rows.
    """
    found = windows(problem, horizon)
    if found is None:
        return None
    unit = 1.0 if horizon <= _LARGEST else horizon / 1000
    made = RoutingModel(problem, lower, horizon, unit, windows=found)
    timed = goal == "time"
    made.end = made.model.variable(lower / unit, horizon / unit, whole=unit == 1.0, cost=1.0 if timed else 0.0)
    for item, window in found.items():
        for link in window.links:
            made.sent[item, link] = made.model.binary(weight(item, link) if weight and goal == "weight" else 0.0)
        _add_item(made, item, window)
    _add_loads(made)
    _add_own_first(made)
    if goal == "preference":
        _add_switches(made)
        _add_spread(made)
    return made


def _add_item(made: RoutingModel, item: int, window: Window) -> None:
    """The links of an item form a tree, or a path where it has one destination."""
    into, out_of = _sides(made, item, window)
    demanded = made.problem.demand.items[item]
    wanted = set(demanded.destinations)
    for rank in range(made.problem.costs.ranks):
        arrives, leaves = into.get(rank, []), out_of.get(rank, [])
        if rank in wanted:
            made.model.row([(v, 1.0) for v in arrives], "==", 1.0)
        elif arrives:
            made.model.row([(v, 1.0) for v in arrives], "<=", 1.0)
            made.model.row([(v, 1.0) for v in arrives] + [(v, -1.0) for v in leaves], "<=", 0.0)
        if rank != demanded.origin and rank not in wanted:
            for variable in leaves:
                made.model.row([(variable, 1.0)] + [(v, -1.0) for v in arrives], "<=", 0.0)
    if len(wanted) == 1:
        _add_path(made, item, window)
    else:
        _add_arrivals(made, item, window)


def _sides(made: RoutingModel, item: int, window: Window) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    into: dict[int, list[int]] = {}
    out_of: dict[int, list[int]] = {}
    for link in window.links:
        source, target = made.problem.ends[link]
        into.setdefault(target, []).append(made.sent[item, link])
        out_of.setdefault(source, []).append(made.sent[item, link])
    return into, out_of


def _add_path(made: RoutingModel, item: int, window: Window) -> None:
    """One destination: the latencies of the links add up to the arrival."""
    latency = made.problem.latencies[made.problem.demand.items[item].size]
    terms = [(made.sent[item, link], latency[link] / made.unit) for link in window.links]
    made.model.row([*terms, (made.end, -1.0)], "<=", 0.0)


def _add_arrivals(made: RoutingModel, item: int, window: Window) -> None:
    """Many destinations: when the item arrives on each rank, and that the time is no less."""
    problem, model, unit = made.problem, made.model, made.unit
    demanded = problem.demand.items[item]
    latency = problem.latencies[demanded.size]
    # Links that take no time would let an item go round in a circle: they take a little less than nothing here.
    least = 0.4 / problem.costs.ranks
    slack = 0.5 if any(latency[link] == 0 for link in window.links) else 0.0
    cuts: dict[int, list[tuple[int, float]]] = {}
    for link in window.links:
        source, target = problem.ends[link]
        early, late = window.head[target], made.horizon - window.tail[target] + slack
        if (item, target) not in made.arrival:
            made.arrival[item, target] = model.variable(early / unit, late / unit)
        cuts.setdefault(target, []).append((made.sent[item, link], -(window.head[source] + latency[link]) / unit))
    for target, terms in cuts.items():
        model.row([(made.arrival[item, target], 1.0), *terms], ">=", 0.0)
        if target in demanded.slots:
            model.row([(made.end, 1.0), (made.arrival[item, target], -1.0)], ">=", -slack / unit)
    for link in window.links:
        source, target = problem.ends[link]
        if source == demanded.origin:
            continue
        takes = max(latency[link], least)
        big = (made.horizon - window.tail[source] + slack + takes - window.head[target]) / unit
        terms = [(made.arrival[item, target], 1.0), (made.arrival[item, source], -1.0), (made.sent[item, link], -big)]
        model.row(terms, ">=", takes / unit - big)


@dataclass
class _Load:
    """What may take a slot, and the least time before and after any of it."""

    terms: list[tuple[int, float]] = field(default_factory=list)
    head: int | None = None
    tail: int | None = None


def _add_loads(made: RoutingModel) -> None:
    """The time is no less than all that takes a slot, with the least head before it and the least tail after it."""
    problem, loads = made.problem, dict[int, _Load]()
    for (item, link), variable in made.sent.items():
        size, window = problem.demand.items[item].size, made.windows[item]
        source, target = problem.ends[link]
        for slot, ticks in problem.uses[size][link]:
            if ticks:
                load = loads.setdefault(slot, _Load())
                load.terms.append((variable, ticks / made.unit))
                head, tail = window.head[source], problem.latencies[size][link] - ticks + window.tail[target]
                load.head = head if load.head is None else min(load.head, head)
                load.tail = tail if load.tail is None else min(load.tail, tail)
    for load in loads.values():
        # A slot that nothing takes has neither head nor tail: no more than the time, which is ``lower`` at least.
        ends = min((load.head or 0) + (load.tail or 0), made.lower)
        made.model.row([*load.terms, (made.end, -1.0)], "<=", -ends / made.unit)


def _add_own_first(made: RoutingModel) -> None:
    """Where the sender's own items go first, what it passes on arrives after all of them."""
    problem = made.problem
    own: dict[int, list[tuple[int, int]]] = {}
    passed: dict[int, list[tuple[int, int]]] = {}
    ordered = {int(problem.orbits.slot_of[link]) for link in problem.rules.own_first}
    for item, link in made.sent:
        slot = problem.link_slots[link]
        if slot in ordered:
            side = own if problem.ends[link][0] == problem.demand.items[item].origin else passed
            side.setdefault(slot, []).append((item, link))
    for slot, later in passed.items():
        for item, link in later:
            arrival = made.arrival.get((item, problem.ends[link][1]))
            busy = problem.busy[problem.demand.items[item].size][link]  # what takes no time need not wait for the last
            if arrival is not None and slot in own and busy:
                _add_turn(made, item, link, arrival, own[slot])


def _add_turn(made: RoutingModel, item: int, link: int, arrival: int, own: list[tuple[int, int]]) -> None:
    problem, window = made.problem, made.windows[item]
    size = problem.demand.items[item].size
    latency = problem.latencies[size][link]
    busy = [(made.sent[o, e], problem.busy[problem.demand.items[o].size][e] / made.unit) for o, e in own]
    big = sum(ticks for _, ticks in busy) + max(0.0, latency - window.head[problem.ends[link][1]]) / made.unit
    terms = [(arrival, 1.0), (made.sent[item, link], -big), *((variable, -ticks) for variable, ticks in busy)]
    made.model.row(terms, ">=", latency / made.unit - big)


def _slot_users(made: RoutingModel) -> dict[int, list[tuple[int, int]]]:
    """For each orbit of links, the (link, binary) pairs that use it."""
    users: dict[int, list[tuple[int, int]]] = {}
    for (_, link), variable in made.sent.items():
        slot = made.problem.link_slots[link]
        users.setdefault(slot, []).append((link, variable))
    return users


def _add_switches(made: RoutingModel) -> None:
    """uc-min: few distinct links in a switch; uc-max: many."""
    problem, model = made.problem, made.model
    sizes: dict[int, int] = {}
    for link in range(problem.costs.links):
        slot = int(problem.orbits.slot_of[link])
        sizes[slot] = sizes.get(slot, 0) + 1
    for slot, users in _slot_users(made).items():
        sign = sum(_signs(problem, users[0][0]))
        if not sign:
            continue
        used = model.binary(sign * PREFERENCE * sizes[slot])
        if sign > 0:
            for _, variable in users:
                model.row([(used, 1.0), (variable, -1.0)], ">=", 0.0)
        else:
            model.row([(used, 1.0), *((variable, -1.0) for _, variable in users)], "<=", 0.0)


def _signs(problem: Problem, link: int) -> list[int]:
    source, target = problem.ends[link]
    inside = [wish for ranks, wish in problem.rules.switches if source in ranks and target in ranks]
    return [{"uc-min": 1, "uc-max": -1}.get(wish, 0) for wish in inside]


def _add_spread(made: RoutingModel) -> None:
    """minmax: the most used link inside a node is used little; maxmin: the least used one is used much."""
    problem, model, nodes = made.problem, made.model, made.problem.topology.node_of
    if problem.rules.spread not in ("minmax", "maxmin"):
        return
    most = problem.rules.spread == "minmax"
    use = model.variable(cost=PREFERENCE if most else -PREFERENCE)
    for users in _slot_users(made).values():
        source, target = problem.ends[users[0][0]]
        if nodes[source] == nodes[target]:
            terms = [(use, 1.0), *((variable, -1.0) for _, variable in users)]
            model.row(terms, ">=" if most else "<=", 0.0)
