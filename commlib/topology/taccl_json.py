"""Reads TACCL's topology JSON: a profile of a named machine, or a topology of its own with link matrices.

Matrices are indexed [destination][source]; 0 in ``links`` is no link. Without ``nics_per_node`` and the three
``remote_`` keys nothing is known of several nodes. See ``profile`` for the unit.
"""

from __future__ import annotations

import os

from commlib.errors import CommlibError
from commlib.files.disk import read_text
from commlib.files.json_fields import Fields, Json, parse_json
from commlib.topology.limits import MAX_BYTES, MAX_RANKS
from commlib.topology.model import Topology
from commlib.topology.node import Node
from commlib.topology.numbers import cost, costs, is_cost
from commlib.topology.profile import Cable, Cost, Profile, Remote, chunk_of_name

_ALWAYS = {"name", "gpus_per_node", "alpha"}
_REMOTE = {"nics_per_node", "remote_alpha", "remote_beta", "remote_invbw"}
_LISTS = {"node_betas_list", "node_invbws_list"}
_MATRICES = {"links", "betas", "invbws"}
TELLTALES = _LISTS | {"gpus_per_node", "nics_per_node", "remote_beta"}
"""Keys that show a JSON file to be TACCL's, even if one of them is missing."""


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """The profile in a file of TACCL's topology JSON.

    Raises:
        FormatError: not such a file; the message names file and key.
        LimitError: larger than the limits allow.
    """
    file = os.fspath(path)
    return profile_from_json(parse_json(read_text(file, MAX_BYTES), file), file)


def profile_from_json(value: Json, file: str) -> Profile:
    """The profile in a JSON value; see ``read_profile``."""
    fields = Fields.of(value, file, "profile")
    matrices = bool(_MATRICES & fields.values.keys())
    remote = bool(_REMOTE & fields.values.keys())
    fields.check_keys(_ALWAYS | (_MATRICES if matrices else _LISTS) | (_REMOTE if remote else set()))
    name = fields.string("name")
    gpus = _count(fields, "gpus_per_node")
    size, scale = chunk_of_name(name)
    try:
        return Profile(
            name,
            gpus,
            _count(fields, "nics_per_node") if remote else 1,
            cost(fields, "alpha"),
            () if matrices else _cables(fields),
            _remote(fields) if remote else None,
            _matrices(fields, gpus) if matrices else None,
            size,
            scale,
        )
    except CommlibError as error:
        if "file" in error.fields:
            raise
        fields.refuse(error)


def _count(fields: Fields, key: str) -> int:
    number = fields.integer(key, 1)
    if number > MAX_RANKS:
        fields.fail(f"must be at most {MAX_RANKS}, not {number}", key=key)
    return number


def _remote(fields: Fields) -> Remote:
    return Remote(cost(fields, "remote_alpha"), cost(fields, "remote_beta"), cost(fields, "remote_invbw"))


def _cables(fields: Fields) -> tuple[Cable, ...]:
    betas, invbws = costs(fields, "node_betas_list"), costs(fields, "node_invbws_list")
    if len(betas) != len(invbws):
        fields.fail(f"has {len(invbws)} entries, node_betas_list {len(betas)}", key="node_invbws_list")
    if not betas:
        fields.fail("is empty", key="node_betas_list")
    return tuple(map(Cable, betas, invbws))


def _matrices(fields: Fields, gpus: int) -> dict[tuple[int, int], Cable]:
    links, betas, invbws = (_square(fields, key, gpus) for key in ("links", "betas", "invbws"))
    for rank in range(gpus):
        if links[rank][rank]:
            fields.fail(f"links GPU {rank} to itself", key="links")
    return {
        (source, destination): Cable(float(betas[destination][source]), float(invbws[destination][source]))
        for destination in range(gpus)
        for source in range(gpus)
        if links[destination][source]
    }


def _square(fields: Fields, key: str, size: int) -> list[Json]:
    rows = fields.array(key)
    if len(rows) != size or not all(isinstance(row, list) and len(row) == size for row in rows):
        fields.fail(f"must be a matrix of {size} x {size}, as gpus_per_node says", key=key)
    for number, row in enumerate(rows):
        if not all(map(is_cost, row)):
            fields.fail(f"row {number} must hold finite numbers of 0 or more only", key=key)
    return rows


def custom_node(profile: Profile, cost: Cost = "exact") -> Node:
    """The node that a profile with matrices describes. NICs are shared by equal blocks of consecutive GPUs."""
    links = {pair: profile.link(cable, cost) for pair, cable in sorted((profile.links or {}).items())}
    topology = Topology(profile.name, profile.gpus, links, unit=profile.unit)
    return Node(topology, profile.fabric((0,) * profile.gpus, cost))
