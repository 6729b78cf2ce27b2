"""Hundreds of spoilt sketches: each is a typed error or a sketch, and posing it gives a problem or a typed error."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from random import Random

import pytest

from commlib.collectives import Collective, allgather, alltoall, broadcast, reducescatter
from commlib.errors import FormatError
from commlib.topology import Topology, named
from synth.errors import SketchError, SynthesisError
from synth.explain import unreached
from synth.pose import pose
from synth.sketch import parse_sketch, sketch_json

GOOD = [
    {
        "nnodes": 2,
        "intranode_sketch": {
            "strategy": "switch",
            "switches": [[0, 1, 2, 3, 4, 5, 6, 7]],
            "switch_hyperedge_strategy": ["uc-min"],
        },
        "internode_sketch": {
            "strategy": "relay",
            "internode_conn": {"1": [0], "3": [2], "5": [4], "7": [6]},
            "gpus_to_sender_rev_map": {"1": [0, 1], "3": [2, 3], "5": [4, 5], "7": [6, 7]},
            "enforce_ordering": True,
        },
        "symmetry_offsets": [[2, 8], [8, 16]],
        "hyperparameters": {"input_chunkup": 2},
    },
    {
        "nnodes": 2,
        "intranode_sketch": {"strategy": "minmax"},
        "internode_sketch": {"strategy": "relay", "internode_conn": "direct-map"},
        "hierarchy": [{"group": 2, "strategy": "ring", "internode_conn": {"0": [1]}}],
        "symmetry_offsets": [[8, 16]],
    },
]
VALUES = [None, True, -1, 0, 1, 2, 3, 7, 8, 9, 16, 1e9, 10**30, "", "0", "9", "relay", "none", "switch", "ring",
          "fully-connected", "direct-map", [], [0], [[0, 1]], [1, 2], {}, {"0": [1]}, {"9": [9]}, "\ud800"]  # fmt: skip


def places(value: object, above: tuple = ()) -> list[tuple]:
    found = [above] if above else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        found += places(child, (*above, key))
    return found


def spoilt(random: Random) -> str:
    """A good sketch with one to three places replaced, deleted or copied elsewhere; sometimes with bytes changed."""
    sketch = json.loads(json.dumps(random.choice(GOOD)))
    for _ in range(random.randint(1, 3)):
        options = places(sketch)
        if not options:
            break
        *above, last = random.choice(options)
        place = sketch
        for key in above:
            place = place[key]
        kind = random.randrange(4)
        if kind == 0:
            del place[last]
        elif kind == 1 and isinstance(place, dict):
            place[str(random.choice(VALUES))] = place.pop(last)
        else:
            place[last] = deepcopy(random.choice(VALUES))
    text = json.dumps(sketch)
    if random.random() < 0.2:
        place = random.randrange(len(text))
        text = text[:place] + random.choice(['"', "{", "]", "9", ",", ""]) + text[place + random.randint(0, 2) :]
    return text


@pytest.mark.parametrize("seed", range(6))
def test_spoilt_sketches(seed):
    random, topology, kinds = Random(seed), named("a100", nodes=2, internode="all"), Counter[str]()
    for _ in range(150):
        kind, message = outcome(
            spoilt(random), topology, random.choice([allgather, alltoall, reducescatter, broadcast])
        )
        assert kind == "posed" or "spoilt.json" in message
        kinds[kind] += 1
    assert kinds.keys() == {"posed", "not read", "not posed"}


def outcome(text: str, topology: Topology, collective: Callable[[int], Collective]) -> tuple[str, str]:
    """What becomes of a sketch, and the message where it is refused; any other error fails the test."""
    try:
        sketch = parse_sketch(text, "spoilt.json")
    except (FormatError, SketchError) as error:
        return "not read", str(error)
    assert parse_sketch(json.dumps(sketch_json(sketch))) == sketch
    try:
        problem = pose(topology, collective(16), 1024.0, sketch).problem
    except (SketchError, SynthesisError) as error:
        return "not posed", str(error)
    assert unreached(problem) is None
    return "posed", ""
