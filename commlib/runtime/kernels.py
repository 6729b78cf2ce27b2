"""What a step does to elements: copy and combine, for one element type. The numpy ones; torch's are in tensors.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from commlib.reductions import Combine
from commlib.runtime.transport import Bytes

Array = Any
"""A flat array that slices to views: numpy's, or a torch tensor."""


@dataclass(frozen=True)
class Kernels:
    """``typed`` views bytes as elements, ``copy(destination, source)``, ``combine(left, right, out)``, ``empty(n)``."""

    itemsize: int
    typed: Callable[[Bytes], Array]
    copy: Callable[[Array, Array], None]
    combine: Callable[[Array, Array, Array], None]
    empty: Callable[[int], Array]


NUMPY_COMBINES: dict[Combine, Callable[..., Any]] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}


def truncated(array: Array, divisor: int) -> Array:
    """An integer array divided by a positive number, each quotient truncated toward zero; 64 bits wide."""
    if array.dtype.kind == "u":
        return array.astype(np.uint64) // np.uint64(divisor)
    wide = array.astype(np.int64)
    return wide // divisor + ((wide < 0) & (wide % divisor != 0))


def numpy_kernels(dtype: np.dtype[Any], combine: Combine) -> Kernels:
    """Kernels on numpy arrays of one element type."""
    function = NUMPY_COMBINES[combine]

    def combine_into(left: Array, right: Array, out: Array) -> None:
        with np.errstate(all="ignore"):  # overflow to infinity is the sum's right result, no news
            function(left, right, out=out)

    return Kernels(
        dtype.itemsize,
        lambda memory: memory.view(dtype),
        np.copyto,
        combine_into,
        lambda size: np.zeros(size, dtype=dtype),
    )
