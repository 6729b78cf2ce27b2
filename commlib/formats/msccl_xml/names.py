"""What the two dialects of MSCCL XML call things, and what the runtimes take for an attribute that is missing.

Dialects: ``msccl`` is read by the NCCL fork microsoft/msccl and written by msccl-tools; ``executor`` is read by
msccl-executor-nccl and by RCCL. A file is of the executor's dialect when it has the attribute ``outofplace``, which
those runtimes require. The attribute ``placements`` is our own: a file of the dialect ``msccl`` that is for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from commlib.collectives import COLLECTIVES

Dialect = Literal["msccl", "executor"]
DIALECTS: tuple[str, ...] = get_args(Dialect)
PROTOCOLS = ("Simple", "LL", "LL128")
CUSTOM = "custom"

ALGO_ATTRIBUTES = frozenset(("name", "proto", "nchannels", "nchunksperloop", "ngpus", "coll")) | frozenset(
    ("inplace", "outofplace", "placements", "minBytes", "maxBytes", "redop")
)
BOTH_PLACEMENTS = "in out"
GPU_ATTRIBUTES = frozenset(("id", "i_chunks", "o_chunks", "s_chunks"))
TB_ATTRIBUTES = frozenset(("id", "send", "recv", "chan"))
STEP_ATTRIBUTES = frozenset(("s", "type", "srcbuf", "srcoff", "dstbuf", "dstoff", "cnt", "depid", "deps", "hasdep"))

DEFAULT_MIN_BYTES = 0
DEFAULT_MAX_BYTES: dict[Dialect, int] = {"msccl": 1 << 35, "executor": 0}
"""What a missing maxBytes means: 32 GiB for microsoft/msccl; 0 is the executor's word for "no upper limit"."""

PER_RANK = frozenset({"allgather", "reducescatter", "alltoall", "alltoallv", "gather", "scatter"})
"""Collectives whose larger buffer has one shard per rank; nchunksperloop counts the chunks of that buffer."""

PER_SHARD_IN_EXECUTOR = frozenset({"gather", "scatter", "alltoallv"})
"""Where the executor's runtime divides one shard, not the larger buffer, into nchunksperloop chunks."""

_CANONICAL = {name.replace("_", ""): name for name in COLLECTIVES}


@dataclass(frozen=True)
class XmlInfo:
    """What an XML file says that an Algorithm does not hold.

    ``min_bytes`` and ``max_bytes`` bound the message sizes that the runtime uses the file for (``max_bytes`` 0: no
    upper bound). ``notes`` tells what was taken as a runtime takes it: defaults, ignored attributes, late releases.
    """

    dialect: Dialect
    name: str
    coll: str
    proto: str
    nchannels: int
    nchunksperloop: int
    ngpus: int
    min_bytes: int
    max_bytes: int
    in_place: bool
    out_of_place: bool
    redop: str | None = None
    notes: tuple[str, ...] = ()


def canonical(coll: str) -> str | None:
    """The collective that a file means by its coll attribute; None when it is a custom one or unknown.

    Case, ``_`` and ``-`` do not matter: microsoft/msccl says reduce_scatter, RCCL reducescatter.
    """
    return _CANONICAL.get(coll.lower().replace("_", "").replace("-", ""))


def runtime_name(collective: str, dialect: Dialect) -> str:
    """The name of a standard collective in a dialect.

    sendrecv and alltonext go by their own names, which no GPU runtime knows.
    """
    return "reduce_scatter" if collective == "reducescatter" and dialect == "msccl" else collective


def chunks_per_loop(collective: str, ranks: int, chunks: int, dialect: Dialect) -> int:
    """The value of nchunksperloop for a standard collective whose shards have ``chunks`` chunks."""
    if collective not in PER_RANK or (dialect == "executor" and collective in PER_SHARD_IN_EXECUTOR):
        return chunks
    return ranks * chunks
