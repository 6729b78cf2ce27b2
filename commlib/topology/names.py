"""Topologies by name: ``ndv2``, ``ring:8``, ``torus:8x8x8``, ``fat_tree:4``, ``nodes:128x8``, ..."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

from commlib.errors import TopologyError
from commlib.topology import shapes, switched
from commlib.topology.machines import ALIASES, MACHINES, Machine, hierarchy
from commlib.topology.model import Topology
from commlib.topology.node import Fabric, Internode, Node
from commlib.topology.profile import Cost, Profile, check_cost

_TEXT = re.compile(r"\s*([A-Za-z][A-Za-z0-9_ \-]*?)\s*(?:[:(]\s*([0-9xX*,\s]*?)\s*\)?)?\s*", re.ASCII)
_NUMBERS = re.compile(r"[0-9]{1,6}(?:\s*[xX*,]\s*[0-9]{1,6})*", re.ASCII)
_SHAPE_NIC_ALPHA, _SHAPE_NIC_BETA = 2.6e-6, 42e-6 / (1 << 20)


@dataclass(frozen=True)
class Shape:
    """A family of regular topologies: its builder, how its numbers are written, and an example."""

    build: Callable[..., Topology]
    parameters: str
    example: str
    title: str
    several: bool = False


SHAPES = {
    "ring": Shape(shapes.ring, "RANKS", "ring:8", "each rank linked to its two neighbours"),
    "line": Shape(shapes.line, "RANKS", "line:8", "a ring without its last link"),
    "mesh": Shape(shapes.mesh, "AxBx...", "mesh:2x4", "a grid of any dimensions", several=True),
    "torus": Shape(shapes.torus, "AxBx...", "torus:8x8x8", "a grid that wraps around", several=True),
    "hypercube": Shape(shapes.hypercube, "DIMENSIONS", "hypercube:4", "ranks whose numbers differ in one bit"),
    "star": Shape(shapes.star, "RANKS", "star:5", "rank 0 linked to all others"),
    "fully_connected": Shape(shapes.fully_connected, "RANKS", "fully_connected:8", "every rank linked to every other"),
    "fat_tree": Shape(switched.fat_tree, "K", "fat_tree:4", "k-ary fat tree, k**3/4 hosts, D-mod-k routes"),
    "dragonfly": Shape(
        switched.dragonfly,
        "ROUTERSxHOSTSxCABLES",
        "dragonfly:2x1x1",
        "groups of routers, a global cable between any two groups, minimal routes",
    ),
}
"""The shapes that have a name; ``nodes:COUNTxRANKS`` is understood beside them."""
_SIMPLE = {re.sub("[-_ ]", "", name): name for name in (*SHAPES, *MACHINES, "nodes")} | dict(ALIASES)


def named(
    text: str,
    nodes: int = 1,
    profile: Profile | None = None,
    cost: Cost = "exact",
    internode: Internode = "rail",
) -> Topology:
    """``nodes`` nodes of the machine or shape that a text names.

    Raises:
        TopologyError: no such name (the message has near ones), wrong numbers, or a profile that does not fit.
        LimitError: too many ranks or links.
    """
    node, count = _parsed(text, profile, cost)
    if count is not None and nodes != 1:
        raise TopologyError(f"{text}: says itself that there are {count} nodes; leave out the number of nodes")
    return node.cluster(nodes if count is None else count, internode)


def named_node(text: str, profile: Profile | None = None, cost: Cost = "exact") -> Node:
    """One node of what a text names, and its fabric.

    A shape's ranks have a NIC each: alpha 2.6 us, 25 GB/s. Raises as ``named`` does.
    """
    return _parsed(text, profile, cost)[0]


def machine(name: str) -> Machine:
    """The machine of a name; case, dashes, underscores and spaces do not matter.

    Raises:
        TopologyError: no such machine; the message has near names.
    """
    known = _known(name)
    if known not in MACHINES:
        raise _unknown(name, list(MACHINES))
    return MACHINES[known]


def shape(text: str) -> Topology:
    """The regular topology that a text such as ``torus:8x8x8`` or ``torus(8x8x8)`` names.

    Raises:
        TopologyError: no such shape (the message has near names) or wrong numbers.
        LimitError: too many ranks or links.
    """
    name, numbers = _split(text)
    if name not in SHAPES:
        raise _unknown(text, [made.example for made in SHAPES.values()])
    made = SHAPES[name]
    if not numbers or not (made.several or len(numbers) == made.parameters.count("x") + 1):
        raise TopologyError(f"{text}: a {name} is written {name}:{made.parameters}, for example {made.example}")
    return made.build(numbers) if made.several else made.build(*numbers)


def _parsed(text: str, profile: Profile | None, cost: Cost) -> tuple[Node, int | None]:
    """(one node, how many of them the text asks for itself)."""
    check_cost(cost)
    name, numbers = _split(text)
    if name == "nodes":
        if len(numbers) != 2 or 0 in numbers:
            raise TopologyError(f"{text}: nodes are written nodes:COUNTxRANKS, for example nodes:128x8")
        return hierarchy(numbers[1]).node(profile, cost), numbers[0]
    if name in MACHINES:
        if numbers:
            raise TopologyError(f"{text}: {name} takes no numbers; say nodes=K for several nodes")
        return MACHINES[name].node(profile, cost), None
    if name not in SHAPES:
        raise _unknown(text, [*MACHINES, *(made.example for made in SHAPES.values()), "nodes:128x8"])
    if profile is not None:
        raise TopologyError(f"{text}: a profile gives the costs of a named machine, and this is a shape")
    one = shape(text)
    return Node(one, Fabric(tuple(range(one.ranks)), _SHAPE_NIC_ALPHA, (_SHAPE_NIC_BETA,) * one.ranks)), None


def _split(text: str) -> tuple[str, list[int]]:
    """(the known name, or an empty one; its numbers)."""
    found = _TEXT.fullmatch(text) if len(text) <= 200 else None
    if found is None:
        return "", []
    name, numbers = _known(found[1]), found[2]
    if numbers is None:
        return name, []
    if _NUMBERS.fullmatch(numbers) is None:
        raise TopologyError(f"{text[:60]}: {numbers!r} is not numbers joined by x, such as 8x8x8")
    return name, [int(number) for number in re.findall("[0-9]+", numbers)]


def _known(name: str) -> str:
    return _SIMPLE.get(re.sub("[-_ ]", "", name).lower(), "")


def _unknown(text: str, choices: list[str]) -> TopologyError:
    word = re.split("[:(]", text[:60])[0].strip().lower()
    stems = {re.split("[:(]", choice)[0]: choice for choice in choices}
    near = [stems[name] for name in difflib.get_close_matches(word, stems, 3, 0.5)]
    hint = f"; near: {', '.join(near)}" if near else ""
    return TopologyError(f"{text[:60]!r} is no known topology{hint}; there are {', '.join(choices)}", name=text[:60])
