"""Limits of topologies: what a name or a file may ask for before anything of that size is allocated."""

from __future__ import annotations

from commlib.errors import LimitError

MAX_RANKS = 4096
MAX_LINKS = 1 << 20
MAX_BYTES = 16 << 20
"""Bytes of a file; 1024 ranks in 128 nodes, 137,216 links, take 9 MB in our JSON."""


def check_size(name: str, ranks: int, links: int = 0) -> None:
    """Refuse a topology of more ranks or links than anybody here can work with.

    Raises:
        LimitError: more than MAX_RANKS ranks or MAX_LINKS links.
    """
    if ranks > MAX_RANKS:
        raise LimitError(f"{name}: more than {MAX_RANKS} ranks", limit="max_ranks", ranks=min(ranks, 1 << 31))
    if links > MAX_LINKS:
        raise LimitError(f"{name}: more than {MAX_LINKS} links", limit="max_links", links=min(links, 1 << 31))
