"""Hundreds of damaged files of every form: each is read as a valid topology or refused with a typed error, quickly."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from random import Random

import pytest
from topology_files import FILES

from commlib.errors import CommlibError
from commlib.topology import Topology, draw, load_topology, read_profile, topology_to_json

MUTANTS = 200
ODD = [
    "",
    "-1",
    "0",
    "1e999",
    "-0.0",
    "9" * 30,
    "nan",
    "true",
    "null",
    "[]",
    "{}",
    '""',
    "\x00",
    "é",
    "\ud800",
    "]",
    "<",
]
VALUES = [None, True, -1, 0, 1.5, 1e308, 10**40, 2**31, "", "x", [], {}, [[]], [None], {"a": 1}, [0] * 9, "\ud800"]


def flip(content: bytes, random: Random) -> bytes:
    """Some bytes changed."""
    damaged = bytearray(content)
    for _ in range(random.randint(1, 4)):
        damaged[random.randrange(len(damaged))] = random.randrange(256)
    return bytes(damaged)


def cut(content: bytes, random: Random) -> bytes:
    """Truncated, or a piece left out or doubled."""
    a, b = sorted(random.randrange(len(content)) for _ in range(2))
    return random.choice([content[:a], content[:a] + content[b:], content[:b] + content[a:]])


def token(content: bytes, random: Random) -> bytes:
    """A number or word replaced by an odd one."""
    text = content.decode()
    found = random.choice(list(re.finditer(r"[\w.+\-]+", text)))
    odd = random.choice([*ODD, random.choice(re.findall(r"[\w.+\-]+", text))])
    return (text[: found.start()] + odd + text[found.end() :]).encode("utf-8", "surrogatepass")


def value(content: bytes, random: Random) -> bytes:
    """Of JSON: a key left out or added, or a value of another type, anywhere."""
    if not content.startswith(b"{"):
        return token(content, random)
    whole = inner = json.loads(content)
    while True:
        key = random.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        if not isinstance(inner[key], dict | list) or not inner[key] or random.random() < 0.3:
            break
        inner = inner[key]
    action = random.choice(["drop", "set", "set", "add"])
    if action == "drop":
        del inner[key]
    elif action == "set":
        inner[key] = random.choice(VALUES)
    elif isinstance(inner, dict):
        inner[random.choice(["x", "rank", "node", "links", "name"])] = random.choice(VALUES)
    else:
        inner.append(random.choice(VALUES))
    return json.dumps(whole).encode()


@pytest.mark.parametrize("mutate", [flip, cut, token, value])
@pytest.mark.parametrize("name", FILES)
def test_damaged_files(tmp_path, name, mutate):
    random, path = Random(f"{name} {mutate.__name__}"), tmp_path / name
    start, outcomes = time.monotonic(), {True: 0, False: 0}
    for _ in range(MUTANTS):
        path.write_bytes(mutate(FILES[name].encode(), random))
        outcomes[isinstance(attempt(path), Topology)] += 1
    assert outcomes[False] > 0
    assert time.monotonic() - start < 20


def attempt(path) -> Topology | CommlibError:
    """The topology, also drawn and written, or the typed error; anything else fails the test."""
    with suppress(CommlibError):
        read_profile(path)
    with suppress(CommlibError):
        load_topology(path, nodes=2)
    try:
        made = load_topology(path)
        assert draw(made)
        assert topology_to_json(made)
    except CommlibError as error:
        return error
    return made
