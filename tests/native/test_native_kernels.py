"""Copies and combines of the native core against numpy's and torch's, bit for bit, on every set of instructions."""

from functools import reduce

import numpy as np
import pytest
import torch
from native_world import core, needs_core

from commlib.reductions import REDUCTIONS
from commlib.runtime.kernels import NUMPY_COMBINES
from commlib.runtime.tensors import DTYPES, kind_of

pytestmark = needs_core
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
TORCH = {"sum": torch.add, "prod": torch.mul, "min": torch.minimum, "max": torch.maximum}
COMBINES = ("sum", "prod", "min", "max", "band", "bor", "bxor")
CASES = [
    (dtype, combine)
    for dtype, kind in DTYPES.items()
    for combine in COMBINES
    if REDUCTIONS[combine].supports(kind_of(kind))
]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 65504.0, 65520.0, 6e-8, 2.0**-25, 3.4e38, 1.0]


@pytest.fixture(params=["generic", "avx2", "avx512"])
def instructions(request):
    """Each set of instructions that this machine has."""
    try:
        core.use_instructions(request.param)
    except ValueError:
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    core.use_instructions(None)


def operands(dtype: str, count: int, elements: int) -> list[np.ndarray]:
    """Random elements as bytes, special ones among them."""
    generator = np.random.default_rng([count, elements, len(dtype)])
    return [_operand(dtype, generator, elements) for _ in range(count)]


def _operand(dtype: str, generator: np.random.Generator, elements: int) -> np.ndarray:
    if dtype in HALVES:
        values = torch.from_numpy(generator.normal(0, 30, elements).astype(np.float32)).to(HALVES[dtype])
        for index in generator.integers(0, max(elements, 1), elements // 5).tolist():
            values[index] = torch.tensor(generator.choice(SPECIAL)).to(values)  # older torch refuses to round a number
        return values.view(torch.uint8).numpy()
    kind = np.dtype(dtype)
    if kind.kind in "fc":
        values = generator.normal(0, 30, (2, elements)).astype(np.float64)
        for index in generator.integers(0, max(elements, 1), elements // 5 if kind.kind == "f" else 0).tolist():
            values[0, index] = generator.choice(SPECIAL)
        with np.errstate(over="ignore"):
            return (values[0] + 1j * np.rint(values[1]) if kind.kind == "c" else values[0]).astype(kind).view(np.uint8)
    if kind.kind == "b":
        return generator.integers(0, 2, elements).astype(np.uint8)
    return generator.integers(0, 256, elements * kind.itemsize).astype(np.uint8)


def folded(dtype: str, combine: str, sources: list[np.ndarray]) -> np.ndarray:
    """What numpy or torch make of the sources, from left to right."""
    if dtype in HALVES:
        views = [torch.from_numpy(source).view(HALVES[dtype]) for source in sources]
        return reduce(TORCH[combine], views).view(torch.uint8).numpy()
    with np.errstate(all="ignore"):
        return reduce(NUMPY_COMBINES[combine], [source.view(dtype) for source in sources]).view(np.uint8)


def assert_same(dtype: str, combine: str, got: np.ndarray, wanted: np.ndarray) -> None:
    """Equal bits but for NaN's; of two zeros, min and max may take either, as numpy does by length."""
    if dtype in HALVES:
        first, second = (torch.from_numpy(a.copy()).view(HALVES[dtype]).float().numpy() for a in (got, wanted))
    else:
        first, second = got.view(dtype), wanted.view(dtype)
    np.testing.assert_array_equal(first, second)
    if combine not in ("min", "max") and first.dtype.kind == "f":
        known = ~np.isnan(first)
        np.testing.assert_array_equal(np.signbit(first[known]), np.signbit(second[known]))


@pytest.mark.parametrize(("dtype", "combine"), CASES, ids=lambda x: x)
def test_combines(dtype, combine, instructions):
    size = DTYPES[dtype].itemsize
    far = 65536 // size  # from there on kernels fetch ahead
    for count, elements in ((2, 1), (3, 7), (2, 64), (5, 129), (9, 1000), (2, 1027), (3, far), (8, far + 77)):
        sources = operands(dtype, count, elements)
        wanted = folded(dtype, combine, sources)
        fresh = [np.zeros_like(wanted), np.zeros_like(wanted)]
        targets = [fresh[0], sources[-1], fresh[1], sources[0]]
        core.combine(
            dtype, combine, [a.ctypes.data for a in targets], [a.ctypes.data for a in sources], elements * size
        )
        for target in targets:
            if instructions == "generic" and dtype.startswith("complex") and combine == "prod":
                np.testing.assert_allclose(target.view(dtype), wanted.view(dtype), rtol=1e-5 if size == 8 else 1e-13)
            else:  # (numpy fuses complex products where the machine can; the generic kernels do not)
                assert_same(dtype, combine, target, wanted)


@pytest.mark.usefixtures("instructions")
def test_all_halves_convert():
    """Every float16 and bfloat16 there is, plus another; and every one rounds as torch does."""
    everything = np.arange(1 << 16, dtype=np.uint16)
    for dtype in HALVES:
        for other in (0x0001, 0x3C01, 0x7BFF, 0x8400):
            second = np.full(1 << 16, other, dtype=np.uint16)
            for combine in TORCH:
                sources = [everything.view(np.uint8), second.view(np.uint8)]
                out = np.zeros(1 << 17, dtype=np.uint8)
                core.combine(dtype, combine, [out.ctypes.data], [a.ctypes.data for a in sources], 1 << 17)
                assert_same(dtype, combine, out, folded(dtype, combine, sources))


def test_nothing_is_combined_to_nothing():
    core.combine("float32", "sum", [1, 2], [1, 2, 3], 0)


def test_copies_to_several_destinations():
    source = operands("uint8", 1, 100_003)[0]
    targets = [np.zeros_like(source) for _ in range(3)]
    core.combine("uint8", None, [a.ctypes.data for a in (*targets, source)], [source.ctypes.data], source.nbytes)
    assert all((target == source).all() for target in targets)


def test_what_is_not_defined_is_refused():
    for dtype, combine in (("complex64", "min"), ("float32", "band"), ("float8", "sum"), ("int8", "avg")):
        with pytest.raises(ValueError, match="no kernel"):
            core.combine(dtype, combine, [1], [1, 1], 0)
    with pytest.raises(ValueError, match="no instructions"):
        core.use_instructions("mmx")
