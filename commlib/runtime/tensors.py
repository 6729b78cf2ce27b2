"""Torch's element types: which reductions they take, their kernels, and how tensors become flat arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from commlib.errors import SpecError
from commlib.reductions import Combine, DtypeKind, Reduction
from commlib.runtime.kernels import Array, Kernels, numpy_kernels, truncated
from commlib.runtime.transport import Bytes

_HALVES = (torch.float16, torch.bfloat16)
"""Done by torch: numpy has no bfloat16 and is slow on float16."""

_COMBINES: dict[Combine, Callable[..., Any]] = {
    "sum": torch.add,
    "prod": torch.mul,
    "min": torch.minimum,
    "max": torch.maximum,
}

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}
"""The element types that can be moved and reduced, by name."""


def dtype_name(dtype: torch.dtype) -> str:
    """The name of an element type, as in ``DTYPES``."""
    return str(dtype).removeprefix("torch.")


def kind_of(dtype: torch.dtype) -> DtypeKind:
    """The kind of an element type, which says what reductions it takes."""
    if dtype is torch.bool:
        return DtypeKind.BOOL
    if dtype.is_complex:
        return DtypeKind.COMPLEX
    return DtypeKind.FLOAT if dtype.is_floating_point else DtypeKind.INTEGER


def kernels_for(dtype: torch.dtype, reduction: Reduction | None) -> Kernels:
    """The kernels of an element type; ``reduction`` is None for a collective that only moves.

    Raises:
        SpecError: the reduction is not defined on this type, or the type is not supported at all.
    """
    name = dtype_name(dtype)
    if name not in DTYPES:
        raise SpecError(f"tensors of {name} cannot be moved; these can: {', '.join(DTYPES)}", dtype=name)
    if reduction is not None and not reduction.supports(kind_of(dtype)):
        raise SpecError(f"{reduction.name} is not defined on {name}", dtype=name, reduction=reduction.name)
    combine: Combine = "sum" if reduction is None else reduction.combine
    if dtype in _HALVES:
        return _torch_kernels(dtype, combine)
    return numpy_kernels(np.dtype(name), combine)


def _torch_kernels(dtype: torch.dtype, combine: Combine) -> Kernels:
    function = _COMBINES[combine]

    def typed(memory: Bytes) -> Array:
        return torch.from_numpy(memory).view(dtype)

    def copy(destination: Array, source: Array) -> None:
        destination.copy_(source)

    def combine_into(left: Array, right: Array, out: Array) -> None:
        function(left, right, out=out)

    return Kernels(dtype.itemsize, typed, copy, combine_into, lambda size: torch.zeros(size, dtype=dtype))


def flat(tensor: torch.Tensor) -> Array:
    """The flat array, over the same memory, of a contiguous tensor: numpy's, but torch's own for the half types."""
    line = tensor.detach().view(-1)
    return line if tensor.dtype in _HALVES else line.numpy()


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a contiguous copy of one that is not contiguous or is a conjugate or negative view."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor can be written as flat memory."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def check_tensor(tensor: torch.Tensor, what: str) -> None:
    """Refuse what is no tensor of strided CPU memory.

    Raises:
        SpecError: it is no tensor, on another device, or sparse.
    """
    if not isinstance(tensor, torch.Tensor):
        raise SpecError(f"the {what} is a {type(tensor).__name__}, not a tensor")
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        raise SpecError(f"the {what} is a {tensor.layout} tensor on {tensor.device}; this runtime takes CPU tensors")


def check_writable(tensor: torch.Tensor, what: str) -> None:
    """Refuse a tensor to write to of which several elements share memory, as ``expand`` makes them.

    Raises:
        SpecError: they do.
    """
    if not tensor.is_contiguous() and _shares(tensor):
        raise SpecError(
            f"elements of the {what} share memory (an expanded tensor?), so that no result can be written there: pass "
            "a copy, tensor.contiguous(), and take the result from it"
        )


def _shares(tensor: torch.Tensor) -> bool:
    """Whether two elements have one address: no if each stride passes all smaller ones, else the addresses tell."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            line = torch.arange(1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)))
            return len(np.unique(line.as_strided(tensor.shape, tensor.stride()).numpy())) < tensor.numel()
        reach += (size - 1) * stride
    return False


def scale(tensor: torch.Tensor, factor: complex) -> torch.Tensor:
    """A copy, each element times the factor; integers wrap, as they do in a sum.

    Raises:
        SpecError: the factor is no number of the tensor's kind.
    """
    kind = kind_of(tensor.dtype)
    real = not isinstance(factor, complex) or factor.imag == 0
    whole = kind is not DtypeKind.INTEGER or complex(factor).real % 1 == 0
    if not (whole and (real or kind is DtypeKind.COMPLEX)):
        raise SpecError(f"the factor of premul_sum is {factor!r}, which is no {kind.value}", factor=str(factor))
    if kind is not DtypeKind.INTEGER:
        return tensor * (factor if kind is DtypeKind.COMPLEX else complex(factor).real)
    number = int(factor.real) % (1 << 8 * tensor.element_size())
    array = tensor.numpy()
    unsigned = array.view(f"u{array.itemsize}")
    return torch.from_numpy(np.multiply(unsigned, unsigned.dtype.type(number)).view(array.dtype))


def divide(tensor: torch.Tensor, ranks: int) -> None:
    """Divide each element in place by the number of ranks; integers are truncated toward zero, as C and NCCL do."""
    if kind_of(tensor.dtype) is not DtypeKind.INTEGER:
        tensor.div_(ranks)
        return
    array = tensor.numpy()
    array[...] = truncated(array, ranks)
