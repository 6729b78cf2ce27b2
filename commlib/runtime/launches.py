"""Launches: what calls of one signature share, whatever carries them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch

from commlib.collectives import Placement
from commlib.ir.algorithm import STEP_COLUMNS, TB_COLUMNS, Algorithm
from commlib.reductions import reduction
from commlib.runtime.kernels import Kernels
from commlib.runtime.layout import ChunkLayout, plan_layout
from commlib.runtime.tensors import dtype_name, kernels_for


@dataclass(frozen=True)
class Signature:
    """All that ranks must agree on in a call. ``reduce`` names a reduction; None for what only moves. ``text``: what
    is called, in the caller's words."""

    algorithm: Algorithm
    placement: Placement
    elements: int
    sizes: tuple[tuple[int, ...], ...] | None
    dtype: torch.dtype
    reduce: str | None
    text: str = ""


@dataclass(frozen=True, eq=False)
class Launch:
    """A signature, laid out; ``fingerprint`` and ``text`` tell it from others."""

    signature: Signature
    layout: ChunkLayout
    kernels: Kernels
    fingerprint: bytes
    text: str


def plan_launch(signature: Signature, agreed: tuple[object, ...]) -> Launch:
    """Lay a launch out; ``agreed``: what ranks must agree on besides.

    Raises:
        SpecError: size, type, reduction or placement do not fit.
    """
    s = signature
    kernels = kernels_for(s.dtype, None if s.reduce is None else reduction(s.reduce))
    layout = plan_layout(s.algorithm, s.placement, s.elements, s.sizes)
    words = (s.algorithm.name, dtype_name(s.dtype), s.reduce or "move", s.elements, s.placement.value)
    return Launch(s, layout, kernels, _fingerprint(s, agreed), s.text or " ".join(map(str, words)))


def _fingerprint(s: Signature, agreed: tuple[object, ...]) -> bytes:
    """Eight bytes of a hash of everything that all ranks must agree on."""
    digest = hashlib.sha256(_program_digest(s.algorithm))
    rest = (s.placement.value, s.elements, s.sizes, str(s.dtype), s.reduce, s.text, agreed)
    digest.update(repr(rest).encode())
    return digest.digest()[:8]


@lru_cache(maxsize=1024)
def _program_digest(algorithm: Algorithm) -> bytes:
    """Of all columns, the operands of one-sided steps included."""
    a = algorithm
    digest = hashlib.sha256(repr((a.collective, a.collective.custom, a.scratch_chunks)).encode())
    for column in TB_COLUMNS + STEP_COLUMNS:
        digest.update(getattr(a, column).tobytes())
    return digest.digest()
