"""Demands of a user's own: a matrix of chunks from each rank to each, a broadcast from several roots, or a file."""

from __future__ import annotations

import os

from commlib.collectives import Collective
from commlib.errors import FormatError
from commlib.formats import matrix_demand, multi_root, read_collective

__all__ = ["matrix_demand", "multi_root", "named_or_read", "read_demand"]


def read_demand(path: str | os.PathLike[str], ranks: int) -> Collective:
    """The collective in a JSON file: ``[[0, 2], [1, 0]]`` (a matrix), ``{"roots": [0, 3]}``, or a collective's form.

    Raises:
        FormatError: none of these, or not for ``ranks`` ranks.
    """
    file = os.fspath(path)
    found = read_collective(file, ranks=lambda: ranks)
    if found.ranks != ranks:
        raise FormatError(f"{file}: is for {found.ranks} ranks, and the topology has {ranks}", file=file)
    return found


def named_or_read(text: str, ranks: int) -> str | Collective:
    """What a user means by COLLECTIVE: a standard name, or a ``.json`` file.

    Raises:
        FormatError: as ``read_demand``.
    """
    return read_demand(text, ranks) if text.lower().endswith(".json") else text
